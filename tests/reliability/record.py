"""What a follower has received, what the log holds, and where the two differ.

It shares no code with the gate: rows come straight from the database, patterns are matched by regular
expressions. So an error of the hub, of recovery or of matching shows as a difference.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import apsw
import psycopg2

from tests.running import DEFAULTS, database_name

_ROWS = """SELECT r.offset, s.device, s.metric, r.ts, r.value
           FROM readings r JOIN series s ON s.id = r.series ORDER BY r.offset"""


class Row(NamedTuple):
    """A reading of the log, or one that a follower got; `offset`: that of the position it came with."""

    offset: int
    device: str
    metric: str
    ts: int
    value: int | float | str


_SHARED_ROWS = """SELECT r.log_offset, s.device, s.metric, r.ts, r.kind, r.num, r.txt
                  FROM tidegate.readings r JOIN tidegate.series s ON s.id = r.series ORDER BY r.log_offset"""


def stored(data: Path) -> list[Row]:
    """All readings of the gate of a data directory, read past the gate."""
    shared = DEFAULTS.get("DATABASE_URL")
    if shared:
        return stored_in(shared.format(database_name(data)))
    connection = apsw.Connection(str(data / "tidegate.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return [Row(*row) for row in connection.execute(_ROWS)]
    finally:
        connection.close()


def stored_in(url: str) -> list[Row]:
    """All readings of a PostgreSQL database."""
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(_SHARED_ROWS)
        return [
            Row(offset, device, metric, ts, _value(kind, number, text))
            for offset, device, metric, ts, kind, number, text in cursor
        ]


def _value(kind: int, number: float, text: str) -> int | float | str:
    return (int(number), number, bool(number), text)[kind] if number is not None else text


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
