"""Group commit: many waiting writers, one transaction.

Writers append to a list. When the engine is free, everything that waits becomes one transaction
and all its writers get their answer from that commit. There is no artificial delay: an idle gate
commits at once, a busy one batches by itself.

The next transaction begins before the writers of the last one are told: the engine does its work
while the loop does theirs. Where what waits fills a transaction anyway, the engine is given it while
the one before is still under way, and can make it ready meanwhile.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from storage import tasks
from storage.errors import KeyRunning, Overloaded, StorageError, Timeout, Unavailable
from storage.models import Appended, Batch, Idempotency, Result, Write

_log = logging.getLogger("tidegate.commit")

# Readings of one transaction; a single larger write still is one.
BATCH_READINGS = 10_000


_UNKNOWN = "the database did not answer in time; the write may be stored or not"
# Transactions that the engine has at one time.
DEPTH = 2


class Appender(Protocol):
    """The engine's side: commits writes in one transaction."""

    def append(self, writes: list[Write]) -> asyncio.Future[Appended]:
        """Commit, after what was given before; the future never fails, whatever goes wrong is a result.

        It is not cancelled. The transaction has begun by the next turn of the loop.
        """


class CommitFigures:
    """What the group commit counts."""

    __slots__ = ("conflicts", "duplicates", "failed", "queued_bytes", "queued_readings", "stored")

    def __init__(self) -> None:
        self.stored = 0
        self.duplicates = 0
        self.conflicts = 0
        self.failed = 0
        self.queued_readings = 0
        self.queued_bytes = 0


class _Commit:
    """A transaction that the engine has."""

    __slots__ = ("future", "writes")

    def __init__(self, writes: list[Write], future: asyncio.Future[Appended]) -> None:
        self.writes = writes
        self.future = future


class GroupCommit:
    """The queue before the log.

    `readings`, `size`: bounds of what may wait, in readings and bytes. `deadline`: seconds after
    which a transaction counts as stuck: its writers get Timeout (outcome unknown), those behind it
    Unavailable (nothing stored), until the engine answers again. `publish` is called with every
    batch before the writers get their answers; `observe` with (readings, seconds) per transaction. What
    they or a writer's listener raise is logged and harms nobody else.
    """

    def __init__(
        self,
        engine: Appender,
        publish: Callable[[Batch], None],
        observe: Callable[[int, float], None],
        *,
        readings: int,
        size: int,
        deadline: float,
    ) -> None:
        self._engine = engine
        self._publish = publish
        self._observe = observe
        self._max_readings = readings
        self._max_size = size
        self._deadline = deadline
        self._waiting: deque[Write] = deque()
        # What the engine has, the oldest first.
        self._commits: deque[_Commit] = deque()
        # Idempotency keys of what waits or is being committed.
        self._keys: set[tuple[str, str]] = set()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.stuck = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._run(), name="group-commit")
        self.figures = CommitFigures()

    def submit(self, write: Write) -> None:
        """Queue a write; its answer arrives through `Write.then`.

        Overloaded when too much waits, Unavailable when the engine is stuck or closed, KeyRunning
        when a write with the same idempotency key is on its way.
        """
        figures = self.figures
        if self._closed or self.stuck:
            raise Unavailable("the database does not answer" if self.stuck else "the gate is closing")
        readings = figures.queued_readings + len(write.readings)
        size = figures.queued_bytes + write.size
        # What is alone in the queue is let in, however large.
        if self._waiting and (readings > self._max_readings or size > self._max_size):
            raise Overloaded("too many writes wait for the disk")
        if write.idempotency is not None:
            self._hold_key(write.idempotency)
        figures.queued_readings = readings
        figures.queued_bytes = size
        self._waiting.append(write)
        self._work.set()

    async def drain(self) -> None:
        """Wait until everything that was submitted is settled."""
        while self._waiting or not self._idle.is_set():
            await self._idle.wait()
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Take nothing more, settle what waits, end."""
        self._closed = True
        await self.drain()
        await tasks.end(self.task)

    async def _run(self) -> None:
        commits = self._commits
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                self._idle.clear()
                self._begin()
                while commits:
                    appended, seconds = await self._answer(commits[0])
                    commit = commits.popleft()
                    self._begin()
                    try:
                        if commits:
                            # It begins before the loop is busy with those who have waited for this one.
                            await asyncio.sleep(0)
                    finally:
                        self._tell(commit, appended, seconds)
                self._idle.set()
        finally:
            self._closed = True
            for commit in commits:
                self._settle_all(commit.writes, Timeout(_UNKNOWN))
            self._refuse("the gate is closing; nothing was stored")
            self._idle.set()

    def _begin(self) -> None:
        """Give the engine what waits: all if it has nothing, full transactions while it is busy."""
        commits, figures = self._commits, self.figures
        while self._waiting and (
            not commits or (len(commits) < DEPTH and figures.queued_readings >= BATCH_READINGS)
        ):
            writes = self._take()
            try:
                future = self._engine.append(writes)
            except Exception as error:
                future = self._loop.create_future()
                future.set_exception(error)
            commits.append(_Commit(writes, future))

    def _take(self) -> list[Write]:
        waiting, figures = self._waiting, self.figures
        writes = [waiting.popleft()]
        readings, size = len(writes[0].readings), writes[0].size
        while waiting and readings + len(waiting[0].readings) <= BATCH_READINGS:
            write = waiting.popleft()
            readings += len(write.readings)
            size += write.size
            writes.append(write)
        figures.queued_readings -= readings
        figures.queued_bytes -= size
        return writes

    async def _answer(self, commit: _Commit) -> tuple[Appended, float]:
        """What the engine has made of the oldest, and in how many seconds."""
        started = self._loop.time()
        alarm = self._loop.call_later(self._deadline, self._let_go)
        try:
            appended = await commit.future
        except StorageError as error:
            appended = Appended([error] * len(commit.writes))
        except Exception:
            _log.exception("the engine broke its promise")
            appended = Appended([Unavailable("the database failed")] * len(commit.writes))
        finally:
            alarm.cancel()
        self.stuck = False
        return appended, self._loop.time() - started

    def _tell(self, commit: _Commit, appended: Appended, seconds: float) -> None:
        batch = appended.batch
        with self._apart("observer"):
            self._observe(0 if batch is None else len(batch.readings), seconds)
        for stored in (appended.late, batch):
            if stored is not None:
                with self._apart("publisher"):
                    self._publish(stored)
        self._count(appended.results)
        # Nobody is left where the writers were told that nobody knows.
        for write, result in zip(commit.writes, appended.results, strict=False):
            self._settle(write, result)

    @contextlib.contextmanager
    def _apart(self, part: str) -> Iterator[None]:
        """Around what others do here: their errors must not end the commits of all."""
        try:
            yield
        except Exception:
            _log.exception("a %s of commits broke", part)

    def _let_go(self) -> None:
        """The engine is stuck: nobody waits for it any longer, though what it has may be stored yet."""
        self.stuck = True
        for commit in self._commits:
            self.figures.failed += len(commit.writes)
            self._settle_all(commit.writes, Timeout(_UNKNOWN))
            commit.writes = []
        self._refuse("the database does not answer; nothing was stored")

    def _refuse(self, reason: str) -> None:
        while self._waiting:
            writes = self._take()
            self.figures.failed += len(writes)
            self._settle_all(writes, Unavailable(reason))

    def _settle_all(self, writes: list[Write], result: Result) -> None:
        for write in writes:
            self._settle(write, result)

    def _hold_key(self, idempotency: Idempotency) -> None:
        key = idempotency.principal, idempotency.key
        if key in self._keys:
            raise KeyRunning("the first request with this Idempotency-Key is still running")
        self._keys.add(key)

    def _settle(self, write: Write, result: Result) -> None:
        if write.idempotency is not None:
            self._keys.discard((write.idempotency.principal, write.idempotency.key))
        try:
            write.settle(result)
        except Exception:
            _log.exception("a listener of a write broke")

    def _count(self, results: list[Result]) -> None:
        figures = self.figures
        for result in results:
            if isinstance(result, StorageError):
                figures.failed += 1
            else:
                figures.stored += result.accepted
                figures.duplicates += result.duplicates
                figures.conflicts += len(result.conflicts)
