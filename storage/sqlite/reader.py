"""Reading the embedded log. Everything here runs in one of the readers' threads."""

import contextlib
import heapq
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec

from storage.accounts import CLIENT_COLUMNS, read_client
from storage.errors import NotFound
from storage.log import LogPage, Range, RangePage
from storage.models import Bucket, Client, Device, Latest, Reading, Revocation, Sample
from storage.patterns import Selection
from storage.sqlite.connection import open_reader
from storage.sqlite.values import IS_NUMBER, decode_value, decode_values

_LOG = (
    "SELECT r.offset, s.device, s.metric, r.ts, r.value FROM readings r "
    "LEFT JOIN series s ON s.id = r.series WHERE r.offset > ? AND r.offset <= ? ORDER BY r.offset LIMIT ?"
)
_FLOOR = "SELECT floor FROM head WHERE id = 1"
_SERIES = "SELECT id, metric FROM series WHERE device = ? ORDER BY metric"
# A device without series is one row of NULLs, an unknown one is none.
_SERIES_OF = (
    "SELECT s.id, s.metric FROM devices d LEFT JOIN series s ON s.device = d.device "
    "WHERE d.device = ? ORDER BY s.metric"
)
# The + keeps the planner from searching by offset.
_RANGE = (
    "SELECT ts, offset, value FROM readings "
    "WHERE series = ? AND ts >= ? AND ts < ? AND +offset <= ? ORDER BY ts"
)
_RANGE_DOWN = _RANGE + " DESC"
_NEWEST = "SELECT ts, value, offset FROM readings WHERE series = ? ORDER BY ts DESC LIMIT 1"
_NEXT_NUMBER = (
    f"SELECT ts FROM readings WHERE series = ? AND ts >= ? AND ts < ? AND {IS_NUMBER} ORDER BY ts LIMIT 1"
)
_FIGURES = (
    "SELECT avg(value), min(value), max(value), count(*), total(value) FROM readings "
    f"WHERE series = ? AND ts >= ? AND ts < ? AND {IS_NUMBER}"
)
_FIRST = (
    f"SELECT value FROM readings WHERE series = ? AND ts >= ? AND ts < ? AND {IS_NUMBER} ORDER BY ts LIMIT 1"
)
_LAST = (
    f"SELECT value FROM readings WHERE series = ? AND ts >= ? AND ts < ? AND {IS_NUMBER} "
    "ORDER BY ts DESC LIMIT 1"
)
_DEVICE = "SELECT device, name, labels, created_at, last_seen, last_offset FROM devices WHERE device = ?"
_DEVICES = (
    "SELECT device, name, labels, created_at, last_seen, last_offset FROM devices "
    "WHERE device >= ? AND device < ? ORDER BY device"
)
_CLIENT = f"SELECT {CLIENT_COLUMNS} FROM clients WHERE id = ?"
_CLIENTS = f"SELECT {CLIENT_COLUMNS} FROM clients WHERE id > ? ORDER BY id LIMIT ?"
_REVOCATIONS = "SELECT kind, id, cutoff, expires FROM revocations WHERE expires >= ? ORDER BY expires"

# Rows of the log that one page searches at most: a page of a rare match ends early, maybe empty.
SEARCH_ROWS = 20_000

_NOTHING = RangePage((), (), (), ())

_labels = msgspec.json.Decoder(dict[str, str])


class Reader:
    """One read-only connection and the statements that use it."""

    def __init__(self, path: Path) -> None:
        self._connection = open_reader(path)
        self._interrupted = False
        # Those that a job may leave half read.
        self._cursors: list[apsw.Cursor] = []

    def interrupt(self) -> None:
        """Make the statement that runs now fail, and those that the same job would run next."""
        self._interrupted = True
        self._connection.interrupt()

    def rest(self) -> None:
        """End what the job has begun.

        A cursor that somebody still holds, and be it the traceback of an error, would keep its
        snapshot: the next job would see old data, and the WAL would grow.
        """
        for cursor in self._cursors:
            cursor.close(True)
        self._cursors.clear()
        if self._connection.in_transaction:
            with contextlib.suppress(apsw.Error):
                self._connection.execute("ROLLBACK")
        self._interrupted = False

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _rows(self, sql: str, bindings: tuple[Any, ...]) -> Any:
        """The rows of a statement one by one, as far as somebody asks."""
        cursor = self._connection.cursor()
        self._cursors.append(cursor)
        return self._run(cursor, sql, bindings)

    def _execute(self, sql: str, bindings: tuple[Any, ...]) -> Any:
        """For who takes all rows at once."""
        return self._run(self._connection.cursor(), sql, bindings)

    def _run(self, cursor: apsw.Cursor, sql: str, bindings: tuple[Any, ...]) -> apsw.Cursor:
        # SQLite forgets an interrupt that comes between two statements.
        if self._interrupted:
            raise apsw.InterruptError("interrupted")
        return cursor.execute(sql, bindings)

    def _hold(self) -> None:
        """All statements until the end of the job see the database as of one moment."""
        self._connection.execute("BEGIN")

    # -- readings ------------------------------------------------------------------------------

    def read_from(self, offset: int, until: int, limit: int, selection: Selection) -> LogPage:
        """See storage.log.Log."""
        self._hold()
        floor: int = self._execute(_FLOOR, ()).get
        takes = selection.takes
        readings: list[Reading] = []
        scanned, last = 0, offset
        for row in self._rows(_LOG, (offset, until, SEARCH_ROWS)):
            scanned += 1
            last, device, metric, ts, value = row
            # What was deleted and not swept yet has no series any more.
            if device is not None and takes(device, metric):
                readings.append(Reading(last, device, metric, ts, decode_value(value)))
                if len(readings) == limit:
                    return LogPage(readings, last, floor)
        # A page that ran out of rows has searched up to the end, holes included.
        return LogPage(readings, last if scanned == SEARCH_ROWS else until, floor)

    def range(self, span: Range, after: tuple[int, int] | None, until: int, limit: int) -> RangePage:
        """See storage.log.Log."""
        series = self._execute(_SERIES_OF, (span.device,)).fetchall()
        if not series:
            raise _not_found(span.device)
        lanes = [
            (metric, self._lane(span, id, after, until))
            for id, metric in series
            if metric in span.metrics or not span.metrics
        ]
        rows: Sequence[tuple[int, int, Any]]
        metrics: Sequence[str]
        if len(lanes) == 1:
            metric, lane = lanes[0]
            rows = list(itertools.islice(lane, limit))
            metrics = [metric] * len(rows)
        else:
            # As tuples they are in order of (ts, offset), and no offset is there twice.
            named = (zip(lane, itertools.repeat(metric)) for metric, lane in lanes)
            found = list(itertools.islice(heapq.merge(*named, reverse=span.descending), limit))
            rows, metrics = zip(*found, strict=True) if found else ((), ())
        if not rows:
            return _NOTHING
        times, offsets, values = zip(*rows, strict=True)
        return RangePage(offsets, metrics, times, decode_values(values))

    def _lane(
        self, span: Range, id: int, after: tuple[int, int] | None, until: int
    ) -> Iterator[tuple[int, int, Any]]:
        """(ts, offset, value) of one series, read as far as somebody asks: a page costs a page."""
        start, end, descending = span.start, span.end, span.descending
        if after is None:
            return self._rows(_RANGE_DOWN if descending else _RANGE, (id, start, end, until))  # type: ignore[no-any-return]
        if descending:
            rows = self._rows(_RANGE_DOWN, (id, start, min(end, after[0] + 1), until))
            return itertools.dropwhile(lambda row: row[:2] >= after, rows)
        rows = self._rows(_RANGE, (id, max(start, after[0]), end, until))
        return itertools.dropwhile(lambda row: row[:2] <= after, rows)

    def buckets(
        self,
        span: Range,
        every: int,
        functions: tuple[str, ...],
        after: tuple[int, str] | None,
        limit: int,
    ) -> list[Bucket]:
        """See storage.log.Log."""
        self._hold()
        self._must_exist(span.device)
        start = span.start if after is None else max(span.start, after[0])
        lanes = [
            self._bucket_lane(span, id, metric, every, functions, start)
            for id, metric in self._series_of(span.device, span.metrics)
        ]
        merged: Iterator[Bucket] = heapq.merge(*lanes, key=_bucket_place)
        if after is not None:
            place = after
            merged = itertools.dropwhile(lambda bucket: _bucket_place(bucket) <= place, merged)
        return list(itertools.islice(merged, limit))

    def _bucket_lane(
        self, span: Range, id: int, metric: str, every: int, functions: tuple[str, ...], start: int
    ) -> Iterator[Bucket]:
        # From one bucket that has numbers to the next: empty stretches cost one look-up.
        while True:
            found = self._execute(_NEXT_NUMBER, (id, start, span.end)).get
            if found is None:
                return
            bucket = found - found % every
            stretch = (id, max(bucket, span.start), min(bucket + every, span.end))
            row = self._execute(_FIGURES, stretch).get
            figures = dict(zip(("avg", "min", "max", "count", "sum"), row, strict=True))
            if "first" in functions:
                figures["first"] = self._execute(_FIRST, stretch).get
            if "last" in functions:
                figures["last"] = self._execute(_LAST, stretch).get
            yield Bucket(bucket, metric, {name: figures[name] for name in functions})
            start = bucket + every

    def latest(self, device: str) -> Latest:
        """See storage.log.Log."""
        self._hold()
        return self._latest(device, self._must_exist(device)[5])

    def latest_page(self, selection: Selection, after: str, limit: int) -> list[Latest]:
        """See storage.log.Log."""
        self._hold()
        rows = itertools.islice(self._selected(selection, after), limit)
        return [self._latest(row[0], row[5]) for row in rows]

    def _latest(self, device: str, offset: int) -> Latest:
        metrics = {}
        for id, metric in self._series_of(device, ()):
            row = self._execute(_NEWEST, (id,)).get
            if row is not None:
                metrics[metric] = Sample(row[0], decode_value(row[1]), row[2])
        return Latest(device, offset, metrics)

    def _must_exist(self, device: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._execute(_DEVICE, (device,)).get
        if row is None:
            raise _not_found(device)
        return row

    def _series_of(self, device: str, metrics: tuple[str, ...]) -> list[tuple[int, str]]:
        rows = self._execute(_SERIES, (device,)).fetchall()
        return [(id, metric) for id, metric in rows if not metrics or metric in metrics]

    # -- devices and accounts ------------------------------------------------------------------

    def device(self, device: str) -> Device:
        """The device with this id; NotFound."""
        return self._device(self._must_exist(device))

    def devices(self, selection: Selection, after: str, limit: int) -> list[Device]:
        """Selected devices with an id greater than `after`, in order of id."""
        rows = itertools.islice(self._selected(selection, after), limit)
        return [self._device(row) for row in rows]

    def _selected(self, selection: Selection, after: str) -> Iterator[tuple[Any, ...]]:
        # The smallest id after `after`: a statement with two lower bounds searches by one of them only.
        following = after + "\0"
        for prefix in selection.prefixes():
            for row in self._rows(_DEVICES, (max(following, prefix), prefix + "\U0010ffff")):
                if selection.takes_device(row[0]):
                    yield row

    def _device(self, row: tuple[Any, ...]) -> Device:
        metrics = tuple(metric for _, metric in self._series_of(row[0], ()))
        return Device(row[0], row[1], _labels.decode(row[2]), row[3], row[4], metrics)

    def client(self, id: str) -> Client | None:
        """The client with this id."""
        row = self._execute(_CLIENT, (id,)).get
        return None if row is None else read_client(row)

    def clients(self, after: str, limit: int) -> list[Client]:
        """Clients with an id greater than `after`, in order of id."""
        return [read_client(row) for row in self._execute(_CLIENTS, (after, limit)).fetchall()]

    def revocations(self, now: int) -> list[Revocation]:
        """Those that have not expired at `now` (seconds)."""
        return [Revocation(*row) for row in self._execute(_REVOCATIONS, (now,)).fetchall()]


def _not_found(device: str) -> NotFound:
    return NotFound(f"there is no device {device}")


def _bucket_place(bucket: Bucket) -> tuple[int, str]:
    return bucket.ts, bucket.metric
