"""What a run says while it goes on: each cell as it is done, and how long the rest takes."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from bench import plans
from bench.live.scenarios import LIVE
from bench.results import Cell, Figures, Plan
from bench.scenarios import SCENARIOS
from bench.targets import Target

# From these seconds on minutes are told.
_MINUTES_FROM = 90


def say(text: str) -> None:
    """A line for whoever waits; stdout is the report's."""
    print(text, file=sys.stderr, flush=True)


def now() -> str:
    """UTC, as cells note when they began."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Progress:
    """Counts what is done, and learns how long cells really take.

    What a cell took in an earlier round is what it will take; of the others the plan's guess counts,
    corrected by what the guesses were wrong so far.
    """

    def __init__(self, plan: Plan, known: Mapping[str, Target], todo: Sequence[str]) -> None:
        self._guess = {name: plans.seconds_of(plan, name, known) for name in todo}
        self._todo = list(todo)
        self._done = 0
        self._took: dict[str, list[float]] = {}

    def line(self, cell: Cell, spent: float) -> str:
        """The line of a cell that is done, all attempts and the canary in `spent` seconds."""
        self._done += 1
        self._took.setdefault(cell.name, []).append(spent)
        place = f"[{self._done}/{len(self._todo)}] round {cell.round}"
        return f"{place}: {cell.name} {_found(cell)}  ({_time(self.left())} left)"

    def left(self) -> float:
        """Seconds until all is done, about."""
        guessed = sum(self._guess[name] * len(took) for name, took in self._took.items())
        factor = sum(map(sum, self._took.values())) / guessed if guessed else 1.0
        return sum(
            statistics.fmean(self._took[name]) if name in self._took else self._guess[name] * factor
            for name in self._todo[self._done :]
        )


def _found(cell: Cell) -> str:
    if cell.figures is None:
        return f"VOID: {cell.void}"
    suite = LIVE if cell.scenario in LIVE else SCENARIOS
    rate = cell.figures.rate
    text = f"{rate:,.{0 if rate > 100 else 1}f} {suite[cell.scenario].unit}"
    return text + _latency(cell.scenario, cell.figures)


def _latency(scenario: str, figures: Figures) -> str:
    if figures.open is not None and not scenario.endswith("-ceiling"):
        where = "" if scenario in LIVE else " at half of it"
        return f", p99 {figures.open.p99_ms:.2f} ms{where}"
    if figures.curve:
        last = figures.curve[-1]
        return f", p99 {last.p99_ms:.2f} ms at {last.planned:,.0f}/s"
    return ""


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= _MINUTES_FROM else f"{seconds:.0f} s"
