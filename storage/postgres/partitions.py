"""Partitions of the readings by time: which periods there are, and when one is worth a partition."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from storage.postgres.pool import Pool

_log = logging.getLogger("tidegate.postgres")

_PARTITIONS = "SELECT lower, upper FROM tidegate.partitions ORDER BY lower"
_ADD = "SELECT tidegate.add_partition(%s, %s, %s)"
_DROP = "SELECT tidegate.drop_partition(%s)"

_DAY = timedelta(days=1)
# The year 2000. Clocks that were never set lie before it: what they say stays in the partition for the rest.
_FIRST = 946_684_800_000_000
# Periods ahead of now that get a partition before anything is in them.
AHEAD = 2
# More are not made by themselves: each costs every plan a little.
PARTITIONS_MAX = 400
# So many times of a commit are looked at.
_SAMPLES = 64
# Periods that wait for a partition: what is noted beyond will be noted again.
WANTED_MAX = 16


class Period(Struct, frozen=True):
    """`lower <= ts < upper` in microseconds, and the name of its partition."""

    name: str
    lower: int
    upper: int


def period(ts: int, *, daily: bool) -> Period:
    """The month or day (in UTC) that holds `ts`."""
    at = datetime.fromtimestamp(ts // 1_000_000, UTC)
    day = datetime(at.year, at.month, at.day, tzinfo=UTC)
    if daily:
        return Period(f"readings_{day:%Y_%m_%d}", _micros(day), _micros(day + _DAY))
    month = day.replace(day=1)
    following = (month + 31 * _DAY).replace(day=1)
    return Period(f"readings_{month:%Y_%m}", _micros(month), _micros(following))


def ahead(now: int, *, daily: bool) -> list[Period]:
    """The period of `now` and those that follow."""
    found = [period(now, daily=daily)]
    for _ in range(AHEAD):
        found.append(period(found[-1].upper, daily=daily))
    return found


class Partitions:
    """Makes partitions: for the periods to come, and for others once readings of theirs arrive."""

    def __init__(self, pool: Pool, now: Callable[[], int], *, daily: bool) -> None:
        self._pool = pool
        self._now = now
        self._daily = daily
        # Where most readings belong: within, nothing needs a look.
        self._usual = range(0)
        self._known: list[range] = []
        self._wanted: dict[str, Period] = {}

    def note(self, times: list[int]) -> None:
        """Readings of these times were written."""
        usual = self._usual
        if min(times) in usual and max(times) in usual:
            return
        for ts in times[:: 1 + len(times) // _SAMPLES]:
            if _FIRST <= ts < usual.stop and ts not in usual and not any(ts in span for span in self._known):
                wanted = period(ts, daily=self._daily)
                if len(self._wanted) < WANTED_MAX:
                    self._wanted[wanted.name] = wanted

    async def make(self) -> None:
        """Make those that are missing: StorageError."""
        usual = ahead(self._now(), daily=self._daily)
        self._usual = range(usual[0].lower, usual[-1].upper)
        wanted, self._wanted = self._wanted, {}
        await self._look()
        for new in usual:
            if not self._has(new):
                await self._add(new)
        for new in wanted.values():
            if not self._has(new) and len(self._known) < PARTITIONS_MAX:
                await self._add(new)

    async def drop(self, oldest: int) -> bool:
        """Drop one whose readings all have a ts before `oldest`; False if there is none."""
        dropped: bool = (await self._pool.fetch(_DROP, (oldest,)))[0][0]
        return dropped

    async def _look(self) -> None:
        self._known = [range(*bounds) for bounds in await self._pool.fetch(_PARTITIONS)]

    def _has(self, wanted: Period) -> bool:
        return any(wanted.lower in span and wanted.upper - 1 in span for span in self._known)

    async def _add(self, new: Period) -> None:
        if (await self._pool.fetch(_ADD, (new.name, new.lower, new.upper)))[0][0]:
            _log.info("a new partition", extra={"partition": new.name})
            await self._look()


def _micros(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000
