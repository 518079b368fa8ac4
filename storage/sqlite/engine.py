"""The embedded engine as the rest of the gate sees it: Log, Accounts and Appender over one SQLite file."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec
from msgspec import Struct

from storage.log import LogPage, LogState, Range, RangePage
from storage.models import (
    Appended,
    Bucket,
    Client,
    Device,
    Latest,
    Revocation,
    Write,
)
from storage.patterns import Selection
from storage.sqlite import registry
from storage.sqlite.connection import translate
from storage.sqlite.directory import DataDirectory, HeadFile
from storage.sqlite.reader import Reader
from storage.sqlite.threads import Threads
from storage.sqlite.writer import Writer

T = TypeVar("T")

_TOUCH = "SELECT 1 FROM head WHERE id = 1"

READERS = 2
# Jobs that may wait for a thread; the group commit has a queue of its own and needs one place.
READS_WAITING = 10_000
WRITES_WAITING = 1_000


class SqliteEngine:
    """One SQLite file in a data directory that this process holds alone.

    `deadline`: seconds that a read, or a write outside the log, may take. `now`: microseconds.
    Made by `open`; used on one event loop.
    """

    def __init__(self, parts: "_Parts", now: Callable[[], int], deadline: float) -> None:
        writer = parts.writer
        self.migrated = writer.migrated
        self._directory = parts.directory
        self._heads = parts.heads
        self._now = now
        self._deadline = deadline
        self._state = writer.state
        self._writer = writer
        self._writing = parts.writing
        self._reading = parts.reading

    @classmethod
    async def open(cls, path: Path, now: Callable[[], int], deadline: float = 10.0) -> "SqliteEngine":
        """Take the data directory, migrate the database, settle the epoch."""
        return cls(await asyncio.to_thread(_open, path, asyncio.get_running_loop()), now, deadline)

    async def close(self) -> None:
        """Finish what was submitted and let the data directory go."""
        await self._reading.close()
        await self._writing.close()
        self._heads.close()
        self._directory.release()

    # -- the log -------------------------------------------------------------------------------

    def state(self) -> LogState:
        """Epoch, head and floor as of the last commit that was published."""
        return self._state

    async def refresh(self) -> LogState:
        """The same: nobody else writes here."""
        return self._state

    def append(self, writes: list[Write]) -> asyncio.Future[Appended]:
        """Commit writes in one transaction (for the group commit alone)."""
        future = self._writing.submit(Writer.append, writes)
        future.add_done_callback(self._appended)
        return future

    def _appended(self, _: object) -> None:
        self._state = self._writer.state

    def _swept(self) -> None:
        # The writer may be ahead by a commit that is not published yet.
        state, floor = self._state, self._writer.state.floor
        self._state = LogState(state.epoch, state.head, min(floor, state.head))

    async def read_from(self, offset: int, until: int, limit: int, selection: Selection) -> LogPage:
        """See storage.log.Log."""
        return await self._read(Reader.read_from, offset, until, limit, selection)

    async def latest(self, device: str) -> Latest:
        """See storage.log.Log."""
        return await self._read(Reader.latest, device)

    async def latest_page(self, selection: Selection, after: str, limit: int) -> list[Latest]:
        """See storage.log.Log."""
        return await self._read(Reader.latest_page, selection, after, limit)

    async def range(self, span: Range, after: tuple[int, int] | None, until: int, limit: int) -> RangePage:
        """See storage.log.Log."""
        return await self._read(Reader.range, span, after, until, limit)

    async def buckets(
        self,
        span: Range,
        every: int,
        functions: tuple[str, ...],
        after: tuple[int, str] | None,
        limit: int,
    ) -> list[Bucket]:
        """See storage.log.Log."""
        return await self._read(Reader.buckets, span, every, functions, after, limit)

    # -- devices -------------------------------------------------------------------------------

    async def device(self, device: str) -> Device:
        """The device with this id; NotFound."""
        return await self._read(Reader.device, device)

    async def devices(self, selection: Selection, after: str, limit: int) -> list[Device]:
        """Selected devices with an id greater than `after`, in order of id."""
        return await self._read(Reader.devices, selection, after, limit)

    async def put_device(self, device: str, name: str, labels: dict[str, str]) -> bool:
        """Register a device or change its name and labels; True if it is new."""
        text = msgspec.json.encode(labels, order="sorted").decode()
        return await self._write(registry.put_device, device, name, text, self._now())

    async def delete_device(self, device: str, *, readings: bool) -> None:
        """Forget a device, with `readings` all that it wrote; NotFound."""
        await self._writing.run(Writer.delete_device, device, readings, deadline=self._deadline)

    # -- accounts ------------------------------------------------------------------------------

    async def add_client(self, client: Client) -> None:
        """See storage.accounts.Accounts."""
        await self._write(registry.add_client, client)

    async def client(self, id: str) -> Client | None:
        """See storage.accounts.Accounts."""
        return await self._read(Reader.client, id)

    async def clients(self, after: str, limit: int) -> list[Client]:
        """See storage.accounts.Accounts."""
        return await self._read(Reader.clients, after, limit)

    async def remove_client(self, id: str, revocation: Revocation) -> None:
        """See storage.accounts.Accounts."""
        await self._write(registry.remove_client, id, revocation)

    async def revoke(self, revocation: Revocation) -> None:
        """See storage.accounts.Accounts."""
        await self._write(registry.revoke, revocation)

    async def revocations(self) -> list[Revocation]:
        """See storage.accounts.Accounts."""
        return await self._read(Reader.revocations, self._now() // 1_000_000)

    # -- upkeep --------------------------------------------------------------------------------

    async def sweep(self, oldest: int) -> None:
        """Remove readings of deleted devices, and those with a ts before `oldest` (0: none).

        In small transactions between the commits, so that no writer waits long.
        """
        while await self._writing.run(Writer.sweep, oldest, deadline=self._deadline):
            self._swept()
        self._swept()
        await self._writing.run(Writer.forget_expired, self._now(), deadline=self._deadline)

    async def ping(self) -> None:
        """Whether reading and writing are possible at all: Unavailable, Timeout."""
        await self._write(_touch)
        await self._read(Reader.revocations, self._now() // 1_000_000)

    async def _read(self, work: Callable[..., T], *args: Any) -> T:
        return await self._reading.run(_read, work, *args, deadline=self._deadline)

    async def _write(self, work: Callable[..., T], *args: Any) -> T:
        return await self._writing.run(Writer.run, work, *args, deadline=self._deadline)


class _Parts(Struct):
    """What an engine is made of."""

    directory: DataDirectory
    heads: HeadFile
    writer: Writer
    writing: Threads[Writer]
    reading: Threads[Reader]


def _open(path: Path, loop: asyncio.AbstractEventLoop) -> _Parts:
    with ExitStack() as stack:
        directory = DataDirectory(path)
        stack.callback(directory.release)
        heads = HeadFile(path / "head")
        stack.callback(heads.close)
        writer = Writer(directory.database, heads)
        stack.callback(writer.close)
        readers = []
        for _ in range(READERS):
            readers.append(Reader(directory.database))
            stack.callback(readers[-1].close)
        writing = Threads([writer], WRITES_WAITING, "sqlite-writer", loop)
        reading = Threads(readers, READS_WAITING, "sqlite-reader", loop)
        stack.pop_all()
    return _Parts(directory, heads, writer, writing, reading)


def _read(reader: Reader, work: Callable[..., T], *args: Any) -> T:
    try:
        return work(reader, *args)
    except apsw.Error as error:
        raise translate(error) from error


def _touch(connection: apsw.Connection) -> None:
    connection.execute(_TOUCH).fetchall()
