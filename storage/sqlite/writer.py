"""The one writer of the embedded log. Everything here runs in the writer's thread."""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec

from storage import errors
from storage.log import LogState
from storage.models import IDEMPOTENCY_SECONDS, Appended, Batch, Outcome, Reading, Value, Write
from storage.sqlite import registry
from storage.sqlite.connection import (
    BUSY_MILLISECONDS,
    is_doubtful,
    migrate,
    open_writer,
    transact,
    transaction,
    translate,
)
from storage.sqlite.directory import HeadFile
from storage.sqlite.values import decode_value, encode_value, same_value

T = TypeVar("T")

_STATE = "SELECT epoch, head, floor FROM head WHERE id = 1"
_NEW_EPOCH = (
    "INSERT INTO head (id, epoch, head, floor) VALUES (1, ?1, 0, 0) ON CONFLICT (id) DO UPDATE SET epoch = ?1"
)
_INSERT_READING = "INSERT INTO readings (offset, series, ts, value) VALUES (?, ?, ?, ?)"
_UPSERT_DEVICE = (
    "INSERT INTO devices (device, name, labels, created_at, last_seen, last_offset) "
    "VALUES (?1, '', '{}', ?2, ?2, ?3) "
    "ON CONFLICT (device) DO UPDATE SET last_seen = ?2, last_offset = ?3"
)
_MOVE_HEAD = "UPDATE head SET head = ? WHERE id = 1"
_RAISE_FLOOR = "UPDATE head SET floor = ? WHERE id = 1"
_FIND_SERIES = "SELECT id FROM series WHERE device = ? AND metric = ?"
_ADD_SERIES = "INSERT INTO series (device, metric) VALUES (?, ?) RETURNING id"
_REMOVE_SERIES = "DELETE FROM series WHERE id = ?"
_SOME_SERIES = "SELECT id FROM series WHERE id > ? ORDER BY id LIMIT ?"
_NEWEST = "SELECT ts FROM readings WHERE series = ? ORDER BY ts DESC LIMIT 1"
_STORED = "SELECT value FROM readings WHERE series = ? AND ts = ?"
_TAKEN = "SELECT ts FROM readings WHERE series = ? AND ts >= ? ORDER BY ts"
_FIND_KEY = "SELECT digest, outcome FROM idempotency WHERE principal = ? AND key = ?"
_ADD_KEY = "INSERT INTO idempotency (principal, key, digest, outcome, created) VALUES (?, ?, ?, ?, ?)"
_DOOMED = "SELECT series FROM doomed ORDER BY series LIMIT 1"
_SPENT = "DELETE FROM doomed WHERE series = ?"
_REMOVE_SOME = "DELETE FROM readings WHERE offset IN (SELECT offset FROM readings WHERE series = ? LIMIT ?)"
_OLDER = "SELECT offset FROM readings WHERE series = ? AND ts < ? LIMIT ?"
_REMOVE = "DELETE FROM readings WHERE offset = ?"
_FORGET_KEYS = "DELETE FROM idempotency WHERE created < ?"
_FORGET_REVOCATIONS = "DELETE FROM revocations WHERE expires < ?"

# What one step of the clean-up looks at and removes: a commit never waits longer than for these.
SWEEP_SERIES = 1_000
SWEEP_ROWS = 5_000
# Pages of the WAL from which every commit folds it into the database as far as readers allow, and
# from which, once in so many, it waits for them: else reads that always overlap let it grow for ever.
FOLD_PAGES = 1_000
WAIT_PAGES = 16_384
WAIT_MILLISECONDS = 250

_outcomes = msgspec.msgpack.Decoder(Outcome)


class _Series:
    """What the writer remembers of a series.

    `newest`: no stored reading has a greater ts, so a greater one needs no look-up. `given`: the
    newest time that the gate gave itself.
    """

    __slots__ = ("given", "id", "newest")

    def __init__(self, id: int, newest: int, given: int) -> None:
        self.id = id
        self.newest = newest
        self.given = given


class _Stage:
    """What one transaction is going to insert."""

    __slots__ = ("created", "devices", "given", "head", "pending", "readings", "rows")

    def __init__(self, head: int) -> None:
        self.head = head
        self.rows: list[tuple[int, int, int, Value | bytes]] = []
        self.readings: list[Reading] = []
        # (series, ts) of what is staged, for duplicates inside the transaction.
        self.pending: dict[tuple[int, int], Value] = {}
        self.created: list[tuple[str, str]] = []
        # The series that were given times, with what `given` was before.
        self.given: list[tuple[_Series, int]] = []
        # device -> (received, offset) of its newest staged reading
        self.devices: dict[str, tuple[int, int]] = {}


class Writer:
    """Appends to the log and cleans it up; `run` is there for the other statements that write.

    `vfs`: the one of SQLite to use, its own if None.
    """

    # Series kept in memory (about 250 bytes each); past it the memory starts anew.
    SERIES_MAX = 100_000

    def __init__(self, path: Path, heads: HeadFile, vfs: str | None = None) -> None:
        self._path = path
        self._heads = heads
        self._vfs = vfs
        self._series: dict[tuple[str, str], _Series] = {}
        # The newest receive time seen, and what it was when series were last forgotten: all times that
        # those were given and that lie after it are taken, so counting on from it gives none twice.
        self._clock = self._horizon = 0
        # The last series that the clean-up by age has looked at.
        self._swept = 0
        self._wait_pages = WAIT_PAGES
        # After an I/O error: what memory and this connection believe need not be what is on disk.
        self._doubtful = False
        self._connection = self._open()
        try:
            self.migrated = migrate(self._connection)
            self.state = self._read_state()
        except BaseException:
            self._connection.close(True)
            raise

    # -- life ----------------------------------------------------------------------------------

    def _open(self) -> apsw.Connection:
        connection = open_writer(self._path, self._vfs)
        connection.set_wal_hook(self._fold)
        return connection

    def _fold(self, connection: apsw.Connection, name: str, pages: int) -> int:
        """After each commit, which stands whatever happens here; `pages`: of the WAL."""
        if pages < FOLD_PAGES:
            self._wait_pages = WAIT_PAGES
            return apsw.SQLITE_OK
        with contextlib.suppress(apsw.Error):
            if pages < self._wait_pages:
                connection.wal_checkpoint(name, apsw.SQLITE_CHECKPOINT_PASSIVE)
                return apsw.SQLITE_OK
            self._wait_pages = pages + WAIT_PAGES
            connection.set_busy_timeout(WAIT_MILLISECONDS)
            connection.wal_checkpoint(name, apsw.SQLITE_CHECKPOINT_RESTART)
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        return apsw.SQLITE_OK

    def interrupt(self) -> None:
        """Never: an append must end with a known outcome."""

    def rest(self) -> None:
        """Nothing is left behind: every job ends its transaction."""

    def close(self) -> None:
        """Fold the WAL into the database and close it."""
        # What a checkpoint cannot move stays in the WAL, where the next start finds it.
        with contextlib.suppress(apsw.Error):
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._connection.close(True)

    def run(self, work: Callable[..., T], *args: Any) -> T:
        """Do `work(connection, *args)`, which writes something else than the log; errors: StorageError."""
        with self._in_our_words():
            return work(self._connection, *args)

    @contextlib.contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """Around all that uses the connection: errors come out translated, and a doubtful one is replaced."""
        try:
            if self._doubtful:
                self._reopen()
            yield
        except errors.StorageError:
            raise
        except Exception as error:
            self._forget_series()
            self._doubtful = self._doubtful or is_doubtful(error) or self._connection.in_transaction
            raise translate(error) from error

    def _read_state(self) -> LogState:
        """Where the log stands; one behind the newest head ever seen here is another log: a new epoch."""
        try:
            row = self._connection.execute(_STATE).get
            state = LogState("", 0, 0) if row is None else LogState(*row)
            seen = self._heads.read()
            if seen is not None and state.epoch == seen[0] and state.head >= seen[1]:
                return state
            epoch = secrets.token_hex(4)
            transact(self._connection, (_NEW_EPOCH, (epoch,)))
        except apsw.Error as error:
            raise translate(error) from error
        self._heads.write(epoch, state.head)
        return LogState(epoch, state.head, state.floor)

    def _reopen(self) -> None:
        """Read again what really is on disk."""
        self._forget_series()
        self._connection.close(True)
        self._connection = self._open()
        self.state = self._read_state()
        self._doubtful = False

    def _forget_series(self) -> None:
        self._series.clear()
        self._horizon = self._clock

    # -- the log -------------------------------------------------------------------------------

    def append(self, writes: list[Write]) -> Appended:
        """Commit all writes in one transaction.

        Where the database refuses a row, the halves are tried apart, and so on, so that only the
        culprit fails.
        """
        try:
            with self._in_our_words():
                return self._append(writes)
        except errors.Refused as error:
            if len(writes) == 1:
                return Appended([error])
        except errors.StorageError as error:
            return Appended([error] * len(writes))
        middle = len(writes) // 2
        halves = [self.append(writes[:middle]), self.append(writes[middle:])]
        results = [result for appended in halves for result in appended.results]
        batches = [appended.batch for appended in halves if appended.batch is not None]
        if not batches:
            return Appended(results)
        readings = [reading for batch in batches for reading in batch.readings]
        return Appended(results, Batch(batches[0].first, batches[-1].last, readings))

    def _append(self, writes: list[Write]) -> Appended:
        if len(self._series) > self.SERIES_MAX:
            self._forget_series()
        execute, executemany = self._connection.execute, self._connection.executemany
        stage = _Stage(self.state.head)
        with transaction(self._connection):
            results = [self._resolve(write, stage) for write in writes]
            if stage.rows:
                executemany(_INSERT_READING, stage.rows)
                execute(_MOVE_HEAD, (stage.head,))
                executemany(_UPSERT_DEVICE, [(device, *seen) for device, seen in stage.devices.items()])
        if not stage.rows:
            return Appended(results)
        first = self.state.head + 1
        self.state = LogState(self.state.epoch, stage.head, self.state.floor)
        self._heads.write(self.state.epoch, stage.head)
        return Appended(results, Batch(first, stage.head, stage.readings))

    def _resolve(self, write: Write, stage: _Stage) -> Outcome | errors.StorageError:
        """Stage a write, unless its Idempotency-Key says that it was here before."""
        idempotency = write.idempotency
        if idempotency is None:
            return self._stage(write, stage)
        row = self._connection.execute(_FIND_KEY, (idempotency.principal, idempotency.key)).get
        if row is not None:
            digest, outcome = row
            if digest != idempotency.digest:
                return errors.KeyReused("this Idempotency-Key was used with another body")
            return _outcomes.decode(outcome)
        outcome = self._stage(write, stage)
        if not (write.strict and outcome.conflicts):
            self._connection.execute(
                _ADD_KEY,
                (
                    idempotency.principal,
                    idempotency.key,
                    idempotency.digest,
                    msgspec.msgpack.encode(outcome),
                    write.received,
                ),
            )
        return outcome

    def _stage(self, write: Write, stage: _Stage) -> Outcome:
        """Number what is new in this write and stage it; tell duplicates and conflicts."""
        rows, readings, pending, remembered = stage.rows, stage.readings, stage.pending, self._series
        start, created, given = stage.head, len(stage.created), len(stage.given)
        offset, duplicates = start, 0
        conflicts: list[int] = []
        touched = set()
        for index, (device, metric, wanted, value) in enumerate(write.readings):
            series = remembered.get((device, metric)) or self._find_series(device, metric, stage)
            if wanted is None:
                ts = self._give_time(series, write.received, stage)
            else:
                ts = wanted
                if ts <= series.newest:
                    stored = self._find_value(series.id, ts, pending)
                    if stored is not None:
                        if same_value(stored, value):
                            duplicates += 1
                        else:
                            conflicts.append(index)
                        continue
            if ts > series.newest:
                series.newest = ts
            offset += 1
            pending[series.id, ts] = value
            rows.append((offset, series.id, ts, encode_value(value)))
            readings.append(Reading(offset, device, metric, ts, value))
            touched.add(device)
        if conflicts and write.strict:
            self._unstage(stage, start, created, given)
            return Outcome(0, duplicates, tuple(conflicts), start)
        stage.head = offset
        for device in touched:
            stage.devices[device] = (write.received, offset)
        return Outcome(offset - start, duplicates, tuple(conflicts), offset)

    def _give_time(self, series: _Series, received: int, stage: _Stage) -> int:
        if received > self._clock:
            self._clock = received
        ts = max(received, series.given + 1)
        if ts <= series.newest:
            ts = self._next_free(series.id, ts, stage.pending)
        stage.given.append((series, series.given))
        series.given = ts
        return ts

    def _unstage(self, stage: _Stage, start: int, created: int, given: int) -> None:
        """Take back what a refused write had staged."""
        keep = start - self.state.head
        for _, series_id, ts, _ in stage.rows[keep:]:
            del stage.pending[series_id, ts]
        del stage.rows[keep:], stage.readings[keep:]
        for series, before in reversed(stage.given[given:]):
            series.given = before
        del stage.given[given:]
        for name in stage.created[created:]:
            self._connection.execute(_REMOVE_SERIES, (self._series.pop(name).id,))
        del stage.created[created:]

    def _find_series(self, device: str, metric: str, stage: _Stage) -> _Series:
        number = self._connection.execute(_FIND_SERIES, (device, metric)).get
        newest = None
        if number is None:
            number = self._connection.execute(_ADD_SERIES, (device, metric)).get
            stage.created.append((device, metric))
        else:
            newest = self._connection.execute(_NEWEST, (number,)).get
        series = _Series(number, -1 if newest is None else newest, self._horizon - 1)
        self._series[device, metric] = series
        return series

    def _find_value(self, series: int, ts: int, pending: dict[tuple[int, int], Value]) -> Value | None:
        staged = pending.get((series, ts))
        if staged is not None:
            return staged
        stored = self._connection.execute(_STORED, (series, ts)).get
        return None if stored is None else decode_value(stored)

    def _next_free(self, series: int, ts: int, pending: dict[tuple[int, int], Value]) -> int:
        """The first microsecond from `ts` on at which the series has no reading."""
        for (taken,) in self._connection.execute(_TAKEN, (series, ts)):
            while (series, ts) in pending:
                ts += 1
            if taken > ts:
                break
            if taken == ts:
                ts += 1
        while (series, ts) in pending:
            ts += 1
        return ts

    # -- clean-up ------------------------------------------------------------------------------

    def delete_device(self, device: str, readings: bool) -> None:
        """Forget a device; with `readings` they are gone from every answer at once. NotFound."""
        self.run(registry.delete_device, device, readings)
        if readings:
            self._series = {name: s for name, s in self._series.items() if name[0] != device}

    def sweep(self, oldest: int) -> bool:
        """One step of the clean-up; True if there may be more to do.

        Removes readings of deleted devices, then those with a ts before `oldest` (0: none), which
        raises the floor. A step removes at most SWEEP_ROWS and looks at most at SWEEP_SERIES.
        """
        with self._in_our_words():
            doomed: int | None = self._connection.execute(_DOOMED).get
            if doomed is None:
                return oldest > 0 and self._expire(oldest)
            if transact(self._connection, (_REMOVE_SOME, (doomed, SWEEP_ROWS))) < SWEEP_ROWS:
                transact(self._connection, (_SPENT, (doomed,)))
            return True

    def _expire(self, oldest: int) -> bool:
        execute = self._connection.execute
        rows: list[Any] = execute(_SOME_SERIES, (self._swept, SWEEP_SERIES)).fetchall()
        series: list[int] = [id for (id,) in rows]
        offsets: list[Any] = []
        swept = 0 if len(series) < SWEEP_SERIES else series[-1]
        for place, id in enumerate(series):
            offsets += execute(_OLDER, (id, oldest, SWEEP_ROWS - len(offsets))).fetchall()
            if len(offsets) == SWEEP_ROWS:
                # This one may have more: the next step begins with it.
                swept = series[place - 1] if place else self._swept
                break
        if offsets:
            floor = max(self.state.floor, max(offsets)[0])
            with transaction(self._connection):
                self._connection.executemany(_REMOVE, offsets)
                execute(_RAISE_FLOOR, (floor,))
            self.state = LogState(self.state.epoch, self.state.head, floor)
        self._swept = swept
        return swept > 0 or len(offsets) == SWEEP_ROWS

    def forget_expired(self, now: int) -> None:
        """Drop idempotency keys and revocations that have had their time; `now` in microseconds."""
        self.run(
            transact,
            (_FORGET_KEYS, (now - IDEMPOTENCY_SECONDS * 1_000_000,)),
            (_FORGET_REVOCATIONS, (now // 1_000_000,)),
        )
