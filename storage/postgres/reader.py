"""Reading the shared log: a few statements, each sees one moment."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from storage.accounts import CLIENT_COLUMNS, read_client
from storage.errors import NotFound, Timeout
from storage.log import LogPage, Range, RangePage
from storage.models import Bucket, Client, Device, Latest, Reading, Revocation, Sample
from storage.patterns import Selection
from storage.postgres.names import Name, Names
from storage.postgres.pool import Pool
from storage.postgres.values import INTEGER, decode_value, labels, numbers, texts

_LOG = (
    "SELECT h.floor, h.generation, r.*, h.epoch FROM tidegate.head h "
    "LEFT JOIN LATERAL tidegate.read_log(%s, %s, %s) r ON true WHERE h.id = 1 ORDER BY r.log_offset"
)
_NAMES = (
    "SELECT h.generation, s.id, s.device, s.metric FROM tidegate.head h "
    "LEFT JOIN tidegate.series s ON s.id = ANY (%s::integer[]) WHERE h.id = 1"
)
_RANGE = "SELECT * FROM tidegate.read_range(%s, %s::text[], %s, %s, %s, %s, %s, %s, %s)"
# A function's columns have the collation of the database.
_LATEST = 'SELECT * FROM tidegate.read_latest(%s::text[]) ORDER BY device COLLATE "C", metric COLLATE "C"'
_BUCKETS = (
    "SELECT b.* FROM tidegate.devices d LEFT JOIN LATERAL ("
    "SELECT s.metric, f.* FROM tidegate.series s CROSS JOIN LATERAL tidegate.buckets(s.id, %s, %s, %s, %s) f "
    "WHERE s.device = d.device AND (%s OR s.metric = ANY (%s::text[])) AND (f.bucket, s.metric) > (%s, %s)"
    ") b ON true WHERE d.device = %s ORDER BY b.bucket, b.metric LIMIT %s"
)
_DEVICES = (
    "SELECT d.device, d.name, d.labels, d.created_at, d.last_seen, "
    "ARRAY(SELECT s.metric FROM tidegate.series s WHERE s.device = d.device ORDER BY s.metric) "
    "FROM tidegate.devices d WHERE d.device = ANY (%s::text[]) ORDER BY d.device"
)
_IDS = (
    "SELECT device FROM tidegate.devices "
    "WHERE device > %s AND device >= %s AND device < %s ORDER BY device LIMIT %s"
)
_CLIENT = f"SELECT {CLIENT_COLUMNS} FROM tidegate.clients WHERE id = %s"
_CLIENTS = f"SELECT {CLIENT_COLUMNS} FROM tidegate.clients WHERE id > %s ORDER BY id LIMIT %s"
_REVOCATIONS = (
    "SELECT kind, id, cutoff, expires FROM tidegate.revocations WHERE expires >= %s ORDER BY expires"
)

# Rows of the log that one page searches at most: a page of a rare match ends early, maybe empty.
SEARCH_ROWS = 20_000
# Aggregates look at more than they give, and have so many deadlines of time.
HEAVY = 4
# Offsets that the first look of a page takes in at least; empty ones make the next look wider.
_LOOK = 256
_WIDER = 8
_WIDEST = 1_000_000
# Device ids read at one time when only some of them match.
_IDS_PAGE = 1_000
_PLACE_MAX = 2**62

_NOTHING = RangePage((), (), (), ())


class Reader:
    """Statements that read, over a pool. `deadline`: seconds of a call."""

    def __init__(self, pool: Pool, names: Names, deadline: float) -> None:
        self._pool = pool
        self._names = names
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()

    async def read_from(self, offset: int, until: int, limit: int, selection: Selection) -> LogPage:
        """See storage.log.Log."""
        end = self._loop.time() + self._deadline
        readings: list[Reading] = []
        floor, epoch, budget, look = 0, "", SEARCH_ROWS, max(limit, _LOOK)
        while True:
            to = min(until, offset + look)
            rows = await self._fetch(_LOG, (offset, to, budget), end)
            if epoch not in ("", rows[0][8]):
                # The log was replaced on the way: what follows is none of this page.
                return LogPage(readings, offset, floor, epoch)
            floor, epoch = rows[0][0], rows[0][8]
            names = await self._named(rows, end)
            found = 0 if rows[0][2] is None else len(rows)
            for _, _, place, series, ts, num, kind, txt, _ in rows[:found]:
                name = names[series]
                # What was deleted and not swept yet has no series any more.
                if name is not None and selection.takes(*name):
                    readings.append(Reading(place, *name, ts, decode_value(num, kind, txt)))
                    if len(readings) == limit:
                        return LogPage(readings, place, floor, epoch)
            # A look that ran out of rows has searched up to its end, holes included.
            offset = rows[-1][2] if found == budget else to
            budget -= found
            if offset == until or not budget:
                return LogPage(readings, offset, floor, epoch)
            look = min(look * _WIDER, max(budget, 0 if found else _WIDEST))

    async def _named(self, rows: list[tuple[Any, ...]], end: float) -> dict[int, Name | None]:
        """The names of the series of these rows of the log; None of those that are deleted."""
        names = self._names
        names.trim()
        names.follow(rows[0][1])
        ids = {row[3] for row in rows} - {None}
        # What is remembered may be gone when the answer comes: this page has its own.
        found = {id: names.by_id[id] for id in ids & names.by_id.keys()}
        missing = ids - found.keys()
        if missing:
            fresh: dict[int, Name | None] = dict.fromkeys(missing)
            told = await self._fetch(_NAMES, (numbers(list(missing)),), end)
            fresh.update({id: (device, metric) for _, id, device, metric in told if id is not None})
            if told[0][0] == names.generation:
                names.by_id.update(fresh)
            found.update(fresh)
        return found

    async def range(self, span: Range, after: tuple[int, int] | None, until: int, limit: int) -> RangePage:
        """See storage.log.Log."""
        start, stop = span.start, span.end
        if span.descending:
            place = (_PLACE_MAX, 0) if after is None else after
            stop = min(stop, place[0] + 1)
        else:
            place = (-1, 0) if after is None else after
            start = max(start, place[0])
        metrics = texts(span.metrics) if span.metrics else None
        rows = await self._fetch(
            _RANGE, (span.device, metrics, start, stop, *place, until, limit, span.descending)
        )
        if not rows:
            raise _not_found(span.device)
        rows = [row for row in rows if row[1] is not None]
        if not rows:
            return _NOTHING
        names, times, offsets, nums, kinds, txts = zip(*rows, strict=True)
        return RangePage(offsets, names, times, [*map(decode_value, nums, kinds, txts)])

    async def buckets(
        self,
        span: Range,
        every: int,
        functions: tuple[str, ...],
        after: tuple[int, str] | None,
        limit: int,
    ) -> list[Bucket]:
        """See storage.log.Log."""
        place = (-1, "") if after is None else after
        start = max(span.start, place[0])
        # The first bucket of each series may be one that `after` has passed.
        rows = await self._fetch(
            _BUCKETS,
            (
                *(start, span.end, every, limit + 1),
                *(not span.metrics, texts(span.metrics), *place, span.device, limit),
            ),
            self._loop.time() + self._deadline * HEAVY,
        )
        if not rows:
            raise _not_found(span.device)
        return [_bucket(row, functions) for row in rows if row[1] is not None]

    async def latest(self, device: str) -> Latest:
        """See storage.log.Log."""
        found = await self._latest([device], self._loop.time() + self._deadline)
        if not found:
            raise _not_found(device)
        return found[0]

    async def latest_page(self, selection: Selection, after: str, limit: int) -> list[Latest]:
        """See storage.log.Log."""
        end = self._loop.time() + self._deadline
        return await self._latest(await self._selected(selection, after, limit, end), end)

    async def _latest(self, devices: list[str], end: float) -> list[Latest]:
        found: list[Latest] = []
        if not devices:
            return found
        for device, newest, metric, ts, num, kind, txt, offset in await self._fetch(
            _LATEST, (texts(devices),), end
        ):
            if not found or found[-1].device != device:
                found.append(Latest(device, newest, {}))
            if ts is not None:
                found[-1].metrics[metric] = Sample(ts, decode_value(num, kind, txt), offset)
        return found

    # -- devices and accounts ------------------------------------------------------------------

    async def device(self, device: str) -> Device:
        """The device with this id; NotFound."""
        found = await self._devices([device], self._loop.time() + self._deadline)
        if not found:
            raise _not_found(device)
        return found[0]

    async def devices(self, selection: Selection, after: str, limit: int) -> list[Device]:
        """Selected devices with an id greater than `after`, in order of id."""
        end = self._loop.time() + self._deadline
        return await self._devices(await self._selected(selection, after, limit, end), end)

    async def _devices(self, devices: list[str], end: float) -> list[Device]:
        if not devices:
            return []
        return [
            Device(device, name, labels.decode(text), created, seen, tuple(metrics))
            for device, name, text, created, seen, metrics in await self._fetch(
                _DEVICES, (texts(devices),), end
            )
        ]

    async def _selected(self, selection: Selection, after: str, limit: int, end: float) -> list[str]:
        found: list[str] = []
        async for device in self._ids(selection, after, limit, end):
            if selection.takes_device(device):
                found.append(device)
                if len(found) == limit:
                    break
        return found

    async def _ids(self, selection: Selection, after: str, limit: int, end: float) -> AsyncIterator[str]:
        """Device ids that may be selected, in order."""
        size = limit
        for prefix in selection.prefixes():
            last, more = after, True
            while more:
                rows = await self._fetch(_IDS, (last, prefix, prefix + "\U0010ffff", size), end)
                for (last,) in rows:
                    yield last
                more = len(rows) == size
                size = max(size, _IDS_PAGE)

    async def client(self, id: str) -> Client | None:
        """The client with this id."""
        rows = await self._fetch(_CLIENT, (id,))
        return read_client(rows[0]) if rows else None

    async def clients(self, after: str, limit: int) -> list[Client]:
        """Clients with an id greater than `after`, in order of id."""
        return [read_client(row) for row in await self._fetch(_CLIENTS, (after, limit))]

    async def revocations(self, now: int) -> list[Revocation]:
        """Those that have not expired at `now` (seconds)."""
        return [Revocation(*row) for row in await self._fetch(_REVOCATIONS, (now,))]

    async def _fetch(
        self, sql: str, args: tuple[object, ...], end: float | None = None
    ) -> list[tuple[Any, ...]]:
        """Rows; `end`: of a call of several statements, by the loop's clock."""
        left = self._deadline if end is None else end - self._loop.time()
        if left <= 0:
            raise Timeout(f"the database did not answer within {self._deadline} s")
        return await self._pool.fetch(sql, args, left)


def _not_found(device: str) -> NotFound:
    return NotFound(f"there is no device {device}")


def _bucket(row: tuple[Any, ...], functions: tuple[str, ...]) -> Bucket:
    metric, ts, average, total, count, *found = row
    least, greatest, first, last = map(_number, found[::2], found[1::2])
    figures = {
        "avg": average,
        "min": least,
        "max": greatest,
        "count": count,
        "sum": total,
        "first": first,
        "last": last,
    }
    return Bucket(ts, metric, {name: figures[name] for name in functions})


def _number(num: float, kind: int) -> int | float:
    return int(num) if kind == INTEGER else num
