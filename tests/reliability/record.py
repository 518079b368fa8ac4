"""What a follower has received, what the log holds, and where the two differ.

It shares no code with the gate: rows come straight from the database, patterns are matched by regular
expressions. So an error of the hub, of recovery or of matching shows as a difference.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import apsw

_ROWS = """SELECT r.offset, s.device, s.metric, r.ts, r.value
           FROM readings r JOIN series s ON s.id = r.series ORDER BY r.offset"""


class Row(NamedTuple):
    """A reading of the log, or one that a follower got; `offset`: that of the position it came with."""

    offset: int
    device: str
    metric: str
    ts: int
    value: int | float | str


def stored(data: Path) -> list[Row]:
    """All readings of a data directory, read past the gate."""
    connection = apsw.Connection(str(data / "tidegate.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return [Row(*row) for row in connection.execute(_ROWS)]
    finally:
        connection.close()


class Wish:
    """Which readings a follower wants: patterns over devices, and metrics (none: all)."""

    def __init__(self, match: Sequence[str], metrics: Sequence[str] = ()) -> None:
        self.match = tuple(match)
        self.metrics = tuple(metrics)
        self._form = re.compile("|".join(map(_expression, match)))

    def takes(self, device: str, metric: str) -> bool:
        """Whether a reading of this series is wanted."""
        return bool(self._form.fullmatch(device)) and (not self.metrics or metric in self.metrics)

    def of(self, rows: Iterable[Row]) -> list[Row]:
        """The rows that are wanted."""
        known: dict[tuple[str, str], bool] = {}
        found = []
        for row in rows:
            wanted = known.get(row[1:3])
            if wanted is None:
                wanted = known[row[1:3]] = self.takes(row.device, row.metric)
            if wanted:
                found.append(row)
        return found

    def __repr__(self) -> str:
        return f"<{' '.join(self.match)} {' '.join(self.metrics)}>"


def _expression(pattern: str) -> str:
    """The devices that a pattern matches, as API.md says: `*` is one token, a last `>` one or more."""
    tokens = pattern.split(".")
    forms = {"*": r"[^.]+", ">": r"[^.]+(?:\.[^.]+)*"}
    return r"\.".join(forms.get(token, re.escape(token)) for token in tokens)


def differences(record: Sequence[Row], log: Sequence[Row], wish: Wish, start: int) -> list[str]:
    """How a record differs from the rows behind `start` that its follower wants; [] if it is exact."""
    due = wish.of(row for row in log if row.offset > start)
    if list(record) == due:
        return []
    found = []
    counts, wanted = Counter(record), set(due)
    lost = [row for row in due if row not in counts]
    if lost:
        found.append(f"{len(lost)} of {len(due)} were lost, first {lost[0]}")
    doubled = [row for row, count in counts.items() if count > 1]
    if doubled:
        found.append(f"{len(doubled)} came again, first {doubled[0]}")
    strange = [row for row in counts if row not in wanted]
    if strange:
        found.append(f"{len(strange)} do not belong here, first {strange[0]}")
    if not found:
        at = next(i for i, (got, row) in enumerate(zip(record, due, strict=True)) if got != row)
        found.append(f"out of order: {record[at]} instead of {due[at]}")
    return found
