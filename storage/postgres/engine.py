"""The engine over PostgreSQL as the rest of the gate sees it; many processes share one log."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec

from storage import tasks
from storage.errors import StorageError, Unavailable
from storage.log import LogPage, LogState, Range, RangePage
from storage.models import Appended, Batch, Bucket, Client, Device, Latest, Revocation, Write
from storage.patterns import Selection
from storage.postgres import registry, schema
from storage.postgres.names import Names
from storage.postgres.partitions import Partitions
from storage.postgres.pool import Pool
from storage.postgres.reader import Reader
from storage.postgres.upkeep import Upkeep
from storage.postgres.writer import Writer

_log = logging.getLogger("tidegate.postgres")

# One question for what may change; the rest is asked under the lock, where it has.
_STATE = (
    "SELECT epoch, head, floor, "
    "started = pg_postmaster_start_time() AND relation = tableoid FROM tidegate.head WHERE id = 1"
)
_HOLD = "SELECT epoch, head, floor FROM tidegate.hold_head(%s, %s, %s)"
_PING = (
    "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean "
    "FROM tidegate.head WHERE id = 1"
)

# Sessions beside the one for the commits.
SESSIONS = 4
# Seconds that the migrations may take, all of them.
MIGRATION_SECONDS = 600.0
# Seconds between two questions for what became of a commit.
SETTLE_FIRST = 0.05
SETTLE_LAST = 0.5
SETTLE_DEADLINE = 1.0


class PostgresEngine:
    """The log, devices and accounts in a PostgreSQL database.

    Made by `open`; used on one event loop. `deadline`: seconds that a call may take. `now`: microseconds.
    """

    def __init__(
        self,
        writing: Pool,
        pool: Pool,
        now: Callable[[], int],
        deadline: float,
        *,
        synchronous: bool,
        daily: bool,
    ) -> None:
        self.migrated: list[str] = []
        self._writing = writing
        self._pool = pool
        self._now = now
        self._synchronous = synchronous
        self._loop = asyncio.get_running_loop()
        self._state = LogState("", 0, 0)
        self._names = Names()
        self._partitions = Partitions(pool, now, daily=daily)
        self._writer = Writer(writing, self._names, self._partitions, self._state, synchronous=synchronous)
        self._reader = Reader(pool, self._names, deadline)
        self._upkeep = Upkeep(pool, self._partitions)
        # One commit at a time.
        self._turn = asyncio.Lock()
        self._closed = False
        self._appending: set[asyncio.Task[None]] = set()
        self._settling: asyncio.Task[None] | None = None
        # What `_settling` found to be stored: for the next commit, so that its answer finds it published.
        self._late: Batch | None = None
        self._summarizing: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        now: Callable[[], int],
        deadline: float = 2.0,
        *,
        synchronous: bool = False,
        daily: bool = False,
    ) -> "PostgresEngine":
        """Connect, migrate the database, settle the epoch.

        `synchronous`: a failover loses no commit, so it keeps the epoch. `daily`: partitions of a day
        instead of a month. StorageError if the database cannot be used.
        """
        migrated = await _migrate(url)
        async with AsyncExitStack() as stack:
            writing = await Pool.open(url, 1, name="tidegate-commit", deadline=deadline)
            stack.push_async_callback(writing.close)
            pool = await Pool.open(url, SESSIONS, name="tidegate", deadline=deadline)
            stack.push_async_callback(pool.close)
            engine = cls(writing, pool, now, deadline, synchronous=synchronous, daily=daily)
            engine.migrated = migrated
            await engine._writer.settle()
            engine._state = engine._writer.state
            try:
                await engine._partitions.make()
            except StorageError as error:
                _log.warning("no partitions were made: %s", error)
            stack.pop_all()
        return engine

    async def close(self) -> None:
        """Finish what was submitted and let go of the database."""
        self._closed = True
        while self._appending:
            await asyncio.wait(self._appending)
        for task in (self._settling, self._summarizing):
            if task is not None:
                await tasks.end(task)
        await self._writing.close()
        await self._pool.close()

    # -- the log -------------------------------------------------------------------------------

    def state(self) -> LogState:
        """Epoch, head and floor as of the last commit or `refresh` of this process."""
        return self._state

    async def refresh(self) -> LogState:
        """Where the log stands in the database now, others' commits included. Unavailable, Timeout."""
        known = self._state
        epoch, head, floor, same = (await self._pool.fetch(_STATE))[0]
        # What was known before the question is less than the answer, unless the log was put back.
        if not same or (epoch == known.epoch and head < known.head):
            epoch, head, floor = (
                await self._pool.fetch(_HOLD, (self._synchronous, known.epoch, known.head))
            )[0]
        # A commit that has found a new epoch meanwhile knows better.
        if self._state.epoch == known.epoch:
            self._advance(LogState(epoch, head, floor))
        return self._state

    def append(self, writes: list[Write]) -> asyncio.Future[Appended]:
        """Commit writes in one transaction (for the group commit alone)."""
        future: asyncio.Future[Appended] = self._loop.create_future()
        if self._closed:
            future.set_result(_failed(writes, "the database is closed"))
            return future
        task = self._loop.create_task(self._append(writes, future))
        self._appending.add(task)
        task.add_done_callback(self._appending.discard)
        return future

    async def _append(self, writes: list[Write], future: asyncio.Future[Appended]) -> None:
        # The commit before may be under way.
        columns = self._writer.prepare(writes)
        async with self._turn:
            before = self._writer.state
            if self._writer.unsettled:
                appended = _failed(writes, "the end of the last commit is not known yet; nothing was stored")
            else:
                appended = await self._writer.append(writes, columns)
                if self._late is not None:
                    appended, self._late = Appended(appended.results, appended.batch, self._late), None
            if self._writer.state is not before:
                self._advance(self._writer.state)
        if self._writer.unsettled and (self._settling is None or self._settling.done()):
            self._settling = self._loop.create_task(self._settle(), name="postgres-settle")
        if self._upkeep.due(self._state.head) and (self._summarizing is None or self._summarizing.done()):
            self._summarizing = self._loop.create_task(self._summarize(), name="postgres-summarize")
        if not future.done():
            future.set_result(appended)

    async def _settle(self) -> None:
        """Ask what became of a commit until the database answers."""
        pause = SETTLE_FIRST
        while self._writer.unsettled:
            try:
                told = await self._writer.settle(SETTLE_DEADLINE)
                self._late = None if told is None else told.batch
            except StorageError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, SETTLE_LAST)
        self._advance(self._writer.state)

    async def _summarize(self) -> None:
        try:
            await self._upkeep.summarize(self._state.head)
        except StorageError as error:
            _log.info("BRIN was not told of new pages: %s", error)

    def _advance(self, state: LogState) -> None:
        """What is known of the log; answers may come in another order than they were given."""
        known = self._state
        if state.epoch == known.epoch:
            state = LogState(state.epoch, max(state.head, known.head), max(state.floor, known.floor))
        elif known.epoch:
            _log.warning("the log has a new epoch", extra={"epoch": state.epoch, "head": state.head})
        self._state = state

    async def read_from(self, offset: int, until: int, limit: int, selection: Selection) -> LogPage:
        """See storage.log.Log."""
        return await self._reader.read_from(offset, until, limit, selection)

    async def latest(self, device: str) -> Latest:
        """See storage.log.Log."""
        return await self._reader.latest(device)

    async def latest_page(self, selection: Selection, after: str, limit: int) -> list[Latest]:
        """See storage.log.Log."""
        return await self._reader.latest_page(selection, after, limit)

    async def range(self, span: Range, after: tuple[int, int] | None, until: int, limit: int) -> RangePage:
        """See storage.log.Log."""
        return await self._reader.range(span, after, until, limit)

    async def buckets(
        self,
        span: Range,
        every: int,
        functions: tuple[str, ...],
        after: tuple[int, str] | None,
        limit: int,
    ) -> list[Bucket]:
        """See storage.log.Log."""
        return await self._reader.buckets(span, every, functions, after, limit)

    # -- devices -------------------------------------------------------------------------------

    async def device(self, device: str) -> Device:
        """The device with this id; NotFound."""
        return await self._reader.device(device)

    async def devices(self, selection: Selection, after: str, limit: int) -> list[Device]:
        """Selected devices with an id greater than `after`, in order of id."""
        return await self._reader.devices(selection, after, limit)

    async def put_device(self, device: str, name: str, labels: dict[str, str]) -> bool:
        """Register a device or change its name and labels; True if it is new."""
        text = msgspec.json.encode(labels, order="sorted").decode()
        return await registry.put_device(self._pool, device, name, text, self._now())

    async def delete_device(self, device: str, *, readings: bool) -> None:
        """Forget a device, with `readings` all that it wrote; NotFound."""
        await registry.forget_device(self._pool, device, readings=readings)

    # -- accounts ------------------------------------------------------------------------------

    async def add_client(self, client: Client) -> None:
        """See storage.accounts.Accounts."""
        await registry.add_client(self._pool, client)

    async def client(self, id: str) -> Client | None:
        """See storage.accounts.Accounts."""
        return await self._reader.client(id)

    async def clients(self, after: str, limit: int) -> list[Client]:
        """See storage.accounts.Accounts."""
        return await self._reader.clients(after, limit)

    async def remove_client(self, id: str, revocation: Revocation) -> None:
        """See storage.accounts.Accounts."""
        await registry.remove_client(self._pool, id, revocation)

    async def revoke(self, revocation: Revocation) -> None:
        """See storage.accounts.Accounts."""
        await registry.revoke(self._pool, revocation)

    async def revocations(self) -> list[Revocation]:
        """See storage.accounts.Accounts."""
        return await self._reader.revocations(self._now() // 1_000_000)

    # -- upkeep --------------------------------------------------------------------------------

    async def sweep(self, oldest: int) -> None:
        """Remove readings of deleted devices, and those with a ts before `oldest` (0: none)."""
        try:
            await self._upkeep.sweep(oldest, self._now())
        finally:
            await self._learn_floor()

    async def ping(self) -> None:
        """Whether reading and writing are possible at all: Unavailable, Timeout."""
        if (await self._pool.fetch(_PING))[0][0]:
            raise Unavailable("the database takes no writes")
        if not self._writing.size:
            raise Unavailable("the session for the commits is not back yet")
        if self._writer.unsettled:
            raise Unavailable("the end of the last commit is not known yet")

    async def _learn_floor(self) -> None:
        # The head may be that of a commit that is not answered yet.
        epoch, _, floor, _ = (await self._pool.fetch(_STATE))[0]
        known = self._state
        if epoch == known.epoch:
            self._advance(LogState(epoch, known.head, min(floor, known.head)))


async def _migrate(url: str) -> list[str]:
    """Bring the database up to date; the names of the migrations that were applied."""
    pool = await Pool.open(
        url,
        1,
        name="tidegate-migrate",
        statement_timeout=MIGRATION_SECONDS,
        deadline=MIGRATION_SECONDS,
    )
    try:
        return await schema.migrate(pool)
    finally:
        await pool.close()


def _failed(writes: list[Write], reason: str) -> Appended:
    error = Unavailable(reason)
    return Appended([error for _ in writes])
