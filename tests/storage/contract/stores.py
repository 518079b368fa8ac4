"""One log of either engine for the tests that state what every engine promises, and a look behind it."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import apsw
import psycopg2
import pytest

from storage.engine import Engine
from storage.errors import Unavailable
from storage.models import Appended, Outcome, Reading, Write
from storage.postgres.engine import PostgresEngine
from storage.postgres.names import Names
from storage.postgres.values import decode_value as decode_postgres
from storage.sqlite.engine import SqliteEngine
from storage.sqlite.values import decode_value as decode_sqlite
from storage.sqlite.writer import Writer as SqliteWriter
from tests.running import PATIENCE

Rows = list[tuple[Any, ...]]
S = TypeVar("S", bound="Store")


class Store(ABC):
    """A log with its engine. `now`: what the engine takes for the time, in microseconds."""

    # Where the constants SWEEP_ROWS, SWEEP_SERIES and SEARCH_ROWS stand.
    sweeping: str
    searching: str
    engine: Engine
    now = 1_000_000

    async def append(self, *writes: Write) -> list[Any]:
        """Commit; the results."""
        return list((await self.appended(*writes)).results)

    async def appended(self, *writes: Write) -> Appended:
        """Commit."""
        async with asyncio.timeout(20):
            return await self.engine.append(list(writes))

    async def stored(self, *writes: Write) -> list[Reading]:
        """Commit writes that must succeed; the readings."""
        appended = await self.appended(*writes)
        assert all(isinstance(result, Outcome) for result in appended.results), appended.results
        return [] if appended.batch is None else appended.batch.readings

    async def open(self) -> None:
        """Start the engine."""
        self.engine = await self._open()

    async def close(self) -> None:
        """End it."""
        await self.engine.close()

    async def reopen(self) -> None:
        """Restart."""
        await self.close()
        await self.open()

    async def ask(self, sql: str) -> Rows:
        """Rows, by a connection that is not the gate's."""
        return await asyncio.to_thread(self._ask, sql)

    async def devices(self) -> dict[str, tuple[int, int]]:
        """Of each device last_seen and last_offset."""
        rows = await self.ask(f"SELECT device, last_seen, last_offset FROM {self.prefix}devices")
        return {device: (seen, offset) for device, seen, offset in rows}

    async def series(self) -> set[tuple[str, str]]:
        """Those that are known."""
        rows = await self.ask(f"SELECT device, metric FROM {self.prefix}series")
        return {(device, metric) for device, metric in rows}

    async def table(self, table: str) -> Rows:
        """All that stands in a table."""
        return await self.ask(f"SELECT * FROM {self.prefix}{table} ORDER BY 1")

    async def count(self, table: str, where: str = "true") -> int:
        """Rows of a table, visible or not."""
        found = await self.ask(f"SELECT count(*) FROM {self.prefix}{table} WHERE {where}")
        number: int = found[0][0]
        return number

    prefix = ""

    @abstractmethod
    async def _open(self) -> Engine: ...

    @abstractmethod
    def _ask(self, sql: str) -> Rows: ...

    @abstractmethod
    async def rows(self) -> Rows:
        """The visible log: offset, device, metric, ts, value."""

    @abstractmethod
    async def sweep_one_step(self) -> None:
        """The least of the clean-up that the engine does at a time."""

    @abstractmethod
    async def poison(self) -> None:
        """From now on the database refuses the number 666."""

    @abstractmethod
    def remember(self, patch: pytest.MonkeyPatch, series: int) -> None:
        """Keep so many series in memory at most."""

    @abstractmethod
    def remembered(self) -> int:
        """How many are kept now."""


class SqliteStore(Store):
    """One SQLite file."""

    sweeping = "storage.sqlite.writer"
    searching = "storage.sqlite.reader"
    engine: SqliteEngine

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def _open(self) -> SqliteEngine:
        return await SqliteEngine.open(self._folder, lambda: self.now, deadline=20)

    def _ask(self, sql: str) -> Rows:
        with closing(apsw.Connection(str(self._folder / "tidegate.db"))) as connection:
            return connection.execute(sql).fetchall()

    async def rows(self) -> Rows:
        found = await self.ask(
            "SELECT r.offset, s.device, s.metric, r.ts, r.value FROM readings r "
            "JOIN series s ON s.id = r.series ORDER BY r.offset"
        )
        return [(*row[:4], decode_sqlite(row[4])) for row in found]

    async def sweep_one_step(self) -> None:
        await self.engine._writing.run(SqliteWriter.sweep, 0, deadline=20)

    async def poison(self) -> None:
        await self.ask(
            "CREATE TRIGGER poison BEFORE INSERT ON readings WHEN new.value = 666 "
            "BEGIN SELECT raise(ABORT, 'poisoned'); END"
        )

    def remember(self, patch: pytest.MonkeyPatch, series: int) -> None:
        patch.setattr(SqliteWriter, "SERIES_MAX", series)

    def remembered(self) -> int:
        return len(self.engine._writer._series)


class PostgresStore(Store):
    """One database."""

    sweeping = "storage.postgres.upkeep"
    searching = "storage.postgres.reader"
    prefix = "tidegate."
    engine: PostgresEngine

    def __init__(self, url: str) -> None:
        self.url = url

    async def _open(self) -> PostgresEngine:
        async with asyncio.timeout(PATIENCE):
            while True:
                # A starved server may need more than the second that one attempt to connect has.
                with suppress(Unavailable):
                    return await PostgresEngine.open(self.url, lambda: self.now, deadline=20)

    def _ask(self, sql: str) -> Rows:
        with closing(psycopg2.connect(self.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []

    async def clear(self) -> None:
        """Forget all; while no engine is open."""
        await self.ask(
            "TRUNCATE tidegate.readings, tidegate.series, tidegate.doomed, tidegate.devices, "
            "tidegate.writers, tidegate.idempotency, tidegate.clients, tidegate.revocations "
            "RESTART IDENTITY; "
            "UPDATE tidegate.head SET head = 0, floor = 0, generation = 0"
        )

    async def rows(self) -> Rows:
        found = await self.ask(
            "SELECT r.log_offset, s.device, s.metric, r.ts, r.num, r.kind, r.txt FROM tidegate.readings r "
            "JOIN tidegate.series s ON s.id = r.series ORDER BY r.log_offset"
        )
        return [(*row[:4], decode_postgres(*row[4:])) for row in found]

    async def sweep_one_step(self) -> None:
        await self.ask("SELECT tidegate.sweep_doomed(1)")

    async def poison(self) -> None:
        await self.ask(
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.num = 666 THEN "
            "RAISE check_violation USING MESSAGE = 'poisoned'; END IF; RETURN new; END $$; "
            "CREATE TRIGGER poison BEFORE INSERT ON tidegate.readings FOR EACH ROW EXECUTE FUNCTION poison()"
        )

    def remember(self, patch: pytest.MonkeyPatch, series: int) -> None:
        patch.setattr(Names, "MAX", series)

    def remembered(self) -> int:
        names = self.engine._names
        return max(len(names.by_name), len(names.by_id))


# Makes an empty log, and closes it at the end.
Fresh = Callable[[], AbstractAsyncContextManager[Store]]


@asynccontextmanager
async def opened(made: S) -> AsyncIterator[S]:
    """The store, open; closed at the end."""
    await made.open()
    try:
        yield made
    finally:
        await made.close()
