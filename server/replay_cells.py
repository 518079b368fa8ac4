"""What the cells of a CSV file of measurements say: times, values, and what a column holds."""

import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, tzinfo

from storage.models import INTEGER_MAX, TS_END, Value

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
COMPACT_DATE = re.compile(r"(?:19|20)\d{6}", re.ASCII)
SLASHED_DATE = re.compile(r"(\d{4})/(\d{1,2})/(\d{1,2})(?=$|[T ])", re.ASCII)
# Any number could be an epoch, so a column of numbers is one only if its name says so.
TIME_NAME = re.compile(r"time|date|epoch|stamp|(?:^|[^a-z])(?:ts|t|at)(?:$|[^a-z])", re.IGNORECASE)
FORMATS = "ISO 8601, 2010/01/01 00:00, or an epoch in s, ms or us"
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none"))
BOOLEANS = {"true": True, "false": False}


class Clock:
    """Turns the time cells of one file into microseconds since 1970, those without an offset as of `zone`."""

    def __init__(self, zone: tzinfo) -> None:
        self.naive = self.ambiguous = self.nonexistent = 0
        self._zone = zone
        self._last = -(2**63)

    def read(self, cell: str) -> int:
        """Return the microseconds of `cell`; ValueError where it is no time that the gate knows."""
        moment = parse_time(cell)
        if moment.tzinfo is None:
            self.naive += 1
            moment = self._local(moment)
        if not 0 <= (ts := micros(moment)) < TS_END:
            raise ValueError("not from 1970 to 9999")
        self._last = ts
        return ts

    def _local(self, moment: datetime) -> datetime:
        first = moment.replace(tzinfo=self._zone)
        second = first.replace(fold=1)
        if first.utcoffset() == second.utcoffset():
            return first
        if first.astimezone(UTC).astimezone(self._zone).replace(tzinfo=None) != moment:
            # Skipped when summer time began: counted on from the old offset, an hour later on the clock.
            self.nonexistent += 1
            return first
        # Comes twice when summer time ends: the second one where the file would otherwise go back.
        self.ambiguous += 1
        return second if micros(first) <= self._last else first


def micros(moment: datetime) -> int:
    """Microseconds since 1970 of an aware time."""
    return (moment - EPOCH) // MICROSECOND


def parse_time(cell: str) -> datetime:
    """Read a time in one of `FORMATS`, naive where it states no offset; ValueError where it is none."""
    cell = cell.strip()
    if NUMBER.fullmatch(cell):
        if COMPACT_DATE.fullmatch(cell):
            return datetime.strptime(cell, "%Y%m%d")
        number = float(cell)
        for unit, least in ((1, 1e14), (1_000, 1e11), (1_000_000, 1e8)):
            if least <= number < 1e17:
                return EPOCH + timedelta(microseconds=round(number * unit))
        raise ValueError("out of range")
    if match := SLASHED_DATE.match(cell):
        year, month, day = match.groups()
        cell = f"{year}-{month:0>2}-{day:0>2}{cell[match.end() :]}"
    if cell.endswith(" UTC"):
        cell = cell[:-4] + "Z"
    return datetime.fromisoformat(cell)


def parse_value(cell: str, kind: str) -> Value:
    """Read a cell of a column of `kind`; ValueError where it is not of that kind."""
    if kind == "text":
        return cell
    cell = cell.strip()
    if kind == "boolean":
        if cell.lower() not in BOOLEANS:
            raise ValueError("is neither true nor false")
        return BOOLEANS[cell.lower()]
    if not NUMBER.fullmatch(cell):
        raise ValueError("is no number")
    # An integer beyond what a double holds exactly is refused, not rounded.
    value = int(cell) if INTEGER.fullmatch(cell) and len(cell) < 64 else float(cell)
    if not math.isfinite(value) or (isinstance(value, int) and abs(value) > INTEGER_MAX):
        raise ValueError("is too large a number")
    return value


def kind_of(cells: Iterable[str]) -> str | None:
    """What a column holds, by some of its cells; None where they are all empty."""
    present = [cell for cell in (cell.strip().lower() for cell in cells) if cell not in MISSING]
    if not present:
        return None
    if all(cell in BOOLEANS for cell in present):
        return "boolean"
    return "number" if all(NUMBER.fullmatch(cell) for cell in present) else "text"


def metric_name(header: str, index: int) -> str:
    """A valid metric name that resembles the header of column `index`."""
    name = re.sub(r"[^A-Za-z0-9_.:/%-]+", "_", header.strip())[:64].strip("_")
    return name or f"column_{index + 1}"


def is_time(cell: str) -> bool:
    """Whether `cell` is a time."""
    try:
        parse_time(cell)
    except ValueError:
        return False
    return True
