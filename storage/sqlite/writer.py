"""The one writer of the embedded log. Everything here runs in the writer's thread."""

import contextlib
import secrets
from pathlib import Path
from typing import Any

import apsw
import msgspec

from storage import errors
from storage.log import LogState
from storage.models import Appended, Batch, Outcome, Reading, Value, Write
from storage.sqlite import registry
from storage.sqlite.connection import migrate, open_writer, transact, translate
from storage.sqlite.directory import HeadFile
from storage.sqlite.values import decode_value, encode_value, same_value

_INSERT_READING = "INSERT INTO readings (offset, series, ts, value) VALUES (?, ?, ?, ?)"
_UPSERT_DEVICE = (
    "INSERT INTO devices (device, name, labels, created_at, last_seen, last_offset) "
    "VALUES (?1, '', '{}', ?2, ?2, ?3) "
    "ON CONFLICT (device) DO UPDATE SET last_seen = ?2, last_offset = ?3"
)
_MOVE_HEAD = "UPDATE head SET head = ? WHERE id = 1"
_FIND_SERIES = "SELECT id FROM series WHERE device = ? AND metric = ?"
_ADD_SERIES = "INSERT INTO series (device, metric) VALUES (?, ?) RETURNING id"
_NEWEST = "SELECT ts FROM readings WHERE series = ? ORDER BY ts DESC LIMIT 1"
_STORED = "SELECT value FROM readings WHERE series = ? AND ts = ?"
_TAKEN = "SELECT ts FROM readings WHERE series = ? AND ts >= ? ORDER BY ts"
_FIND_KEY = "SELECT digest, outcome FROM idempotency WHERE principal = ? AND key = ?"
_ADD_KEY = "INSERT INTO idempotency (principal, key, digest, outcome, created) VALUES (?, ?, ?, ?, ?)"
_REMOVE_SOME = "DELETE FROM readings WHERE offset IN (SELECT offset FROM readings WHERE series = ? LIMIT ?)"
_OLDER = "SELECT offset FROM readings WHERE series = ? AND ts < ? LIMIT ?"

# The key table keeps an answer for this long.
IDEMPOTENCY_SECONDS = 24 * 3600
# Rows that one transaction of the clean-up removes: a commit never waits longer than for these.
SWEEP_ROWS = 5_000

_outcomes = msgspec.msgpack.Decoder(Outcome)


class _Series:
    """What the writer remembers of a series.

    `newest`: no stored reading has a greater ts, so a greater one needs no look-up. `given`: the
    newest time that the gate gave itself.
    """

    __slots__ = ("given", "id", "newest")

    def __init__(self, id: int, newest: int) -> None:
        self.id = id
        self.newest = newest
        self.given = 0


class _Stage:
    """What one transaction is going to insert."""

    __slots__ = ("created", "devices", "head", "pending", "readings", "rows")

    def __init__(self, head: int) -> None:
        self.head = head
        self.rows: list[tuple[int, int, int, Value | bytes]] = []
        self.readings: list[Reading] = []
        # (series, ts) of what is staged, for duplicates inside the transaction.
        self.pending: dict[tuple[int, int], Value] = {}
        self.created: list[tuple[str, str]] = []
        # device -> (received, offset) of its newest staged reading
        self.devices: dict[str, tuple[int, int]] = {}


class Writer:
    """Appends to the log and cleans it up; `connection` is there for the other statements that write."""

    # Series kept in memory (about 250 bytes each); past it the memory starts anew.
    SERIES_MAX = 100_000

    def __init__(self, path: Path, heads: HeadFile) -> None:
        self._path = path
        self._heads = heads
        self._series: dict[tuple[str, str], _Series] = {}
        # After an I/O error: what memory and this connection believe need not be what is on disk.
        self._doubtful = False
        self._connection = open_writer(path)
        self.migrated = migrate(self._connection)
        self._settle_epoch()
        self.state = self._read_state()

    # -- life ----------------------------------------------------------------------------------

    @property
    def connection(self) -> apsw.Connection:
        """For statements that write something else than the log."""
        return self._connection

    def interrupt(self) -> None:
        """Never: an append must end with a known outcome."""

    def close(self) -> None:
        """Fold the WAL into the database and close it."""
        # What a checkpoint cannot move stays in the WAL, where the next start finds it.
        with contextlib.suppress(apsw.Error):
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._connection.close()

    def _read_state(self) -> LogState:
        row = self._connection.execute("SELECT epoch, head, floor FROM head WHERE id = 1").get
        return LogState(*row)

    def _settle_epoch(self) -> None:
        """A database that is behind the newest head ever seen here is another log: a new epoch."""
        row = self._connection.execute("SELECT epoch, head FROM head WHERE id = 1").get
        seen = self._heads.read()
        if row is not None and seen is not None and row[0] == seen[0] and row[1] >= seen[1]:
            return
        epoch = secrets.token_hex(4)
        with self._connection:
            self._connection.execute(
                "INSERT INTO head (id, epoch, head, floor) VALUES (1, ?1, 0, 0) "
                "ON CONFLICT (id) DO UPDATE SET epoch = ?1",
                (epoch,),
            )
        self._heads.write(epoch, 0 if row is None else row[1])

    def _reopen(self) -> None:
        """Read again what really is on disk."""
        self._series.clear()
        self._connection.close()
        self._connection = open_writer(self._path)
        self.state = self._read_state()
        self._doubtful = False

    # -- the log -------------------------------------------------------------------------------

    def append(self, writes: list[Write]) -> Appended:
        """Commit all writes in one transaction.

        Where the database refuses a row, each write gets a transaction of its own, so that only
        the culprit fails.
        """
        try:
            return self._append(writes)
        except errors.Refused as error:
            if len(writes) == 1:
                return Appended([error])
        except errors.StorageError as error:
            return Appended([error] * len(writes))
        alone = [self.append([write]) for write in writes]
        results = [result for appended in alone for result in appended.results]
        batches = [appended.batch for appended in alone if appended.batch is not None]
        if not batches:
            return Appended(results)
        readings = [reading for batch in batches for reading in batch.readings]
        return Appended(results, Batch(batches[0].first, batches[-1].last, readings))

    def _append(self, writes: list[Write]) -> Appended:
        if self._doubtful:
            self._reopen()
        if len(self._series) > self.SERIES_MAX:
            self._series.clear()
        execute, executemany = self._connection.execute, self._connection.executemany
        stage = _Stage(self.state.head)
        try:
            execute("BEGIN IMMEDIATE")
            results = [self._resolve(write, stage) for write in writes]
            if stage.rows:
                executemany(_INSERT_READING, stage.rows)
                execute(_MOVE_HEAD, (stage.head,))
                executemany(_UPSERT_DEVICE, [(device, *seen) for device, seen in stage.devices.items()])
            execute("COMMIT")
        except Exception as error:
            self._roll_back(error)
            raise translate(error) from error
        if not stage.rows:
            return Appended(results)
        first = self.state.head + 1
        self.state = LogState(self.state.epoch, stage.head, self.state.floor)
        self._heads.write(self.state.epoch, stage.head)
        return Appended(results, Batch(first, stage.head, stage.readings))

    def _roll_back(self, error: Exception) -> None:
        self._series.clear()
        match error:
            case apsw.IOError() | apsw.CorruptError() | apsw.CantOpenError() | apsw.NotADBError():
                self._doubtful = True
            case _:
                try:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                except apsw.Error:
                    self._doubtful = True

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
        start, created = stage.head, len(stage.created)
        offset, duplicates = start, 0
        conflicts: list[int] = []
        touched = set()
        for index, (device, metric, wanted, value) in enumerate(write.readings):
            series = remembered.get((device, metric)) or self._find_series(device, metric, stage)
            if wanted is None:
                ts = self._give_time(series, write.received, pending)
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
            self._unstage(stage, start, created)
            return Outcome(0, duplicates, tuple(conflicts), start)
        stage.head = offset
        for device in touched:
            stage.devices[device] = (write.received, offset)
        return Outcome(offset - start, duplicates, tuple(conflicts), offset)

    def _give_time(self, series: _Series, received: int, pending: dict[tuple[int, int], Value]) -> int:
        ts = max(received, series.given + 1)
        if ts <= series.newest:
            ts = self._next_free(series.id, ts, pending)
        series.given = ts
        return ts

    def _unstage(self, stage: _Stage, start: int, created: int) -> None:
        """Take back what a refused write had staged."""
        keep = start - self.state.head
        for _, series_id, ts, _ in stage.rows[keep:]:
            del stage.pending[series_id, ts]
        del stage.rows[keep:], stage.readings[keep:]
        for name in stage.created[created:]:
            series = self._series.pop(name)
            self._connection.execute("DELETE FROM series WHERE id = ?", (series.id,))
        del stage.created[created:]

    def _find_series(self, device: str, metric: str, stage: _Stage) -> _Series:
        number = self._connection.execute(_FIND_SERIES, (device, metric)).get
        newest = None
        if number is None:
            number = self._connection.execute(_ADD_SERIES, (device, metric)).get
            stage.created.append((device, metric))
        else:
            newest = self._connection.execute(_NEWEST, (number,)).get
        series = self._series[device, metric] = _Series(number, -1 if newest is None else newest)
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
        registry.delete_device(self._connection, device, readings)
        if readings:
            self._series = {name: s for name, s in self._series.items() if name[0] != device}

    def sweep(self, oldest: int) -> bool:
        """One step of the clean-up; True if there may be more to do.

        Removes readings of deleted devices, then those with a ts before `oldest` (0: none), which
        raises the floor. Rows of one step: at most SWEEP_ROWS.
        """
        doomed = self._connection.execute("SELECT series FROM doomed LIMIT 1").get
        if doomed is None:
            return oldest > 0 and self._expire(oldest)
        removed = transact(self._connection, (_REMOVE_SOME, (doomed, SWEEP_ROWS)))
        if removed < SWEEP_ROWS:
            transact(self._connection, ("DELETE FROM doomed WHERE series = ?", (doomed,)))
        return True

    def _expire(self, oldest: int) -> bool:
        offsets: list[tuple[Any, ...]] = []
        for (series,) in self._connection.execute("SELECT id FROM series"):
            room = SWEEP_ROWS - len(offsets)
            offsets += self._connection.execute(_OLDER, (series, oldest, room)).fetchall()
            if len(offsets) >= SWEEP_ROWS:
                break
        if not offsets:
            return False
        floor = max(self.state.floor, max(offsets)[0])
        try:
            with self._connection:
                self._connection.executemany("DELETE FROM readings WHERE offset = ?", offsets)
                self._connection.execute("UPDATE head SET floor = ? WHERE id = 1", (floor,))
        except Exception as error:
            raise translate(error) from error
        self.state = LogState(self.state.epoch, self.state.head, floor)
        return True

    def forget_expired(self, now: int) -> None:
        """Drop idempotency keys and revocations that have had their time; `now` in microseconds."""
        transact(
            self._connection,
            ("DELETE FROM idempotency WHERE created < ?", (now - IDEMPOTENCY_SECONDS * 1_000_000,)),
            ("DELETE FROM revocations WHERE expires < ?", (now // 1_000_000,)),
        )
