"""The log of readings: what every engine offers to read it, and the position that names a place in it."""

import re
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from storage.models import Bucket, Latest, Reading, Value, Verdict
from storage.patterns import Selection

_POSITION = re.compile(r"([a-z0-9]{1,32})-(0|[1-9][0-9]{0,18})", re.ASCII)


class InvalidPosition(ValueError):
    """The text is not a position."""


class Position(Struct, frozen=True):
    """A place in the log: everything up to and including `offset` lies before it."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


def parse_position(text: str) -> Position:
    """Read `<epoch>-<offset>`; InvalidPosition if it is not one."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise InvalidPosition(f"{text[:80]!r} is not a position")
    return Position(found[1], int(found[2]))


class LogState(Struct, frozen=True):
    """Where the log stands. `head`: the newest offset. `floor`: the newest one removed by age."""

    epoch: str
    head: int
    floor: int

    def judge(self, position: Position) -> Verdict:
        """Whether reading can continue from this position without a gap."""
        if position.epoch != self.epoch:
            return Verdict.UNKNOWN_EPOCH
        if position.offset > self.head:
            return Verdict.AHEAD
        if position.offset < self.floor:
            return Verdict.EXPIRED
        return Verdict.OK


class LogPage(Struct, frozen=True):
    """A stretch of the log. `scanned`: the offset up to which it was searched.

    `floor`: the newest offset removed by age when it was read; what lies below it may be missing.
    `epoch`: that of the log that it was read from; "" where a log keeps its epoch as long as the gate runs.
    """

    readings: list[Reading]
    scanned: int
    floor: int
    epoch: str = ""


class Range(Struct, frozen=True):
    """Readings of one device with `start <= ts < end`, in order of (ts, offset)."""

    device: str
    metrics: tuple[str, ...]
    start: int
    end: int
    descending: bool = False


class RangePage(Struct, frozen=True):
    """Readings of one device, column by column: on the way to the encoder no object is made for each."""

    offsets: Sequence[int]
    metrics: Sequence[str]
    times: Sequence[int]
    values: Sequence[Value]


class Log(Protocol):
    """Reading the log and what is derived from it. Every call has a deadline of its own.

    Errors: Unavailable, Timeout; NotFound where a device is named that is not registered.
    """

    def state(self) -> LogState:
        """Epoch, head and floor as of the last commit or `refresh` of this process; no wait."""

    async def refresh(self) -> LogState:
        """Where the log stands in the database now, others' commits included."""

    async def read_from(self, offset: int, until: int, limit: int, selection: Selection) -> LogPage:
        """Readings after `offset` up to and including `until`, in log order, at most `limit`.

        A page may hold fewer, also none, before the end: the search of one page is bounded.
        """

    async def latest(self, device: str) -> Latest:
        """The newest reading of each metric of a device."""

    async def latest_page(self, selection: Selection, after: str, limit: int) -> list[Latest]:
        """The same for the selected devices whose id is greater than `after`."""

    async def range(self, span: Range, after: tuple[int, int] | None, until: int, limit: int) -> RangePage:
        """A page of a range that follows the place `after` (ts, offset); offsets up to `until`."""

    async def buckets(
        self,
        span: Range,
        every: int,
        functions: tuple[str, ...],
        after: tuple[int, str] | None,
        limit: int,
    ) -> list[Bucket]:
        """Aggregates per bucket of `every` microseconds and metric, after (bucket ts, metric)."""
