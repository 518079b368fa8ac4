"""What a replay tells a person: the bar while it runs and the summary at its end."""

import math
from typing import TextIO

from msgspec import Struct

from server.replay_csv import Reject

STEP = 1.02  # latencies are kept in classes 2 % wide
BAR = 24
TERMINAL = 100  # columns that a bar fills at most


class Latencies:
    """A distribution of times in constant memory, quantiles exact to 2 %."""

    def __init__(self) -> None:
        self.max = 0.0
        self._classes: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        """Count one."""
        self.max = max(self.max, seconds)
        place = math.ceil(math.log(max(seconds, 1e-6), STEP))
        self._classes[place] = self._classes.get(place, 0) + 1

    def quantile(self, share: float) -> float:
        """Seconds within which `share` of all were; 0 when there are none."""
        left = share * sum(self._classes.values())
        for place in sorted(self._classes):
            left -= self._classes[place]
            if left <= 0:
                return min(STEP**place, self.max)
        return self.max


class Summary(Struct, frozen=True):
    """What a replay did.

    `sent`: readings that the gate answered for, each as accepted, a duplicate or rejected; `rejected`
    counts those of the file itself (no number, no time) too. `resent`: duplicates that came of sending
    again what was never answered. `skipped`: sent by an earlier run. `repeated`: rows with the time of a
    row not long before. `latencies`: p50, p95, p99 and max of a batch in seconds, retries included; at a
    given rate from when it was due. `complete`: the whole file was answered for.
    """

    file: str
    device: str
    url: str
    layout: str
    timezone: str
    rows: int
    sent: int
    accepted: int
    duplicates: int
    resent: int
    rejected: int
    skipped: int
    empty: int
    repeated: int
    naive: int
    ambiguous: int
    nonexistent: int
    retries: int
    seconds: float
    latencies: tuple[float, float, float, float]
    rejects: tuple[Reject, ...]
    complete: bool

    @property
    def exit_code(self) -> int:
        """0 when every reading of the file is stored, else 1."""
        return 0 if self.complete and not self.rejected else 1

    def __str__(self) -> str:
        p50, p95, p99, most = (f"{1000 * seconds:,.1f}" for seconds in self.latencies)
        resent = f" ({self.resent:,} of them sent again after a lost answer)" if self.resent else ""
        rate = self.sent / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.file} -> {self.device} at {self.url}{'' if self.complete else ', not complete'}",
            f"  rows       {self.rows:,} read",
            f"  readings   {self.accepted:,} accepted, {self.duplicates:,} duplicates{resent}, "
            f"{self.rejected:,} rejected; {self.sent:,} sent",
            *(f"             {reject}" for reject in self.rejects),
            f"  rate       {rate:,.0f} readings/s in {self.seconds:,.1f} s, {self.retries:,} retries",
            f"  latency    p50 {p50}, p95 {p95}, p99 {p99}, max {most} ms a batch",
            *(f"  note       {note}" for note in self._notes()),
        ]
        return "\n".join(lines)

    def _notes(self) -> list[str]:
        notes = (
            (self.skipped, "readings were answered for in an earlier run"),
            (self.naive, f"times without an offset were taken in {self.timezone}"),
            (self.ambiguous, "local times come twice when summer time ends; their order told which is which"),
            (self.nonexistent, "local times do not exist, summer time began; they were taken an hour on"),
            (
                self.repeated,
                "rows have the time of an earlier row; of each metric the gate keeps the first value",
            ),
            (self.empty, "empty cells"),
        )
        return [f"{count:,} {text}" for count, text in notes if count]


class Bar:
    """Progress on `out`: a bar that is drawn over on a terminal, elsewhere a line now and then."""

    def __init__(self, out: TextIO, name: str) -> None:
        self._out = out
        self._name = name
        self._width = 0
        self._terminal = out.isatty()
        self.interval = 0.1 if self._terminal else 5.0

    def draw(self, share: float, readings: int, rate: float, state: str) -> None:
        """Show where things are: `share` of the file, readings so far and per second, and what is amiss."""
        share = min(max(share, 0.0), 1.0)
        text = f"{100 * share:3.0f} %  {readings:,} readings, {rate:,.0f}/s{'  ' if state else ''}{state}"
        if self._terminal:
            filled = round(BAR * share)
            text = f"{self._name} [{'#' * filled}{'.' * (BAR - filled)}] {text}"[:TERMINAL]
            self._out.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._out.write(f"{self._name} {text}\n")
        self._out.flush()

    def say(self, text: str) -> None:
        """Write lines of their own, the bar out of the way."""
        if self._width:
            self._out.write("\r" + " " * self._width + "\r")
            self._width = 0
        self._out.write(text + "\n")
        self._out.flush()
