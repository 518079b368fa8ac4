"""pgbouncer for tests, in transaction mode before a PostgreSQL. Tests that use it are marked `system`."""

import asyncio
import functools
import itertools
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import psycopg2

from tests.servers.postgres import USER, PostgresServer
from tests.servers.programs import Program, directory, find, free_port, hand_over

_numbers = itertools.count(1)


class Pgbouncer:
    """A running pgbouncer that gives every database of its server, in transaction mode."""

    host = "127.0.0.1"

    def __init__(self, file: Path, log: Path, port: int) -> None:
        self.port = port
        binary = find("pgbouncer", wheel="", inside="")
        self.program = Program(
            [str(binary), str(file)], file.parent, log, functools.partial(self._admin, "SHOW VERSION")
        )

    def database_url(self, name: str) -> str:
        """Of the database `name`, through here."""
        return f"postgresql://{USER}@{self.host}:{self.port}/{name}"

    def through(self, url: str) -> str:
        """The URL of the server's database, led through here."""
        return self.database_url(url.rpartition("/")[2])

    def pids(self) -> list[int]:
        """Its one process."""
        return self.program.pids()

    async def start(self) -> None:
        """Start it; returns when it answers."""
        await self.program.start()

    async def stop(self) -> None:
        """End it at once, whoever is connected."""
        await self.program.end(signal.SIGTERM)

    async def restart(self) -> None:
        """Stop, then start on the same port."""
        await self.stop()
        await self.start()

    def freeze(self) -> None:
        """Stop it where it stands (SIGSTOP)."""
        self.program.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.program.thaw()

    async def admin(self, command: str) -> list[tuple[Any, ...]]:
        """A command of its console, as RECONNECT, KILL name, RESUME name, SHOW POOLS; its rows."""
        return await asyncio.to_thread(self._admin, command)

    def _admin(self, command: str) -> list[tuple[Any, ...]]:
        dsn = f"{self.database_url('pgbouncer')}?connect_timeout=5"
        with closing(psycopg2.connect(dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(command)
                return cursor.fetchall() if cursor.description else []


@asynccontextmanager
async def pgbouncer(server: PostgresServer, tmp_path: Path, **conf: str) -> AsyncIterator[Pgbouncer]:
    """A new pgbouncer before `server`, started; `conf` as in pool_size="4". Its log is in `tmp_path`."""
    with directory("pgbouncer") as home:
        port = free_port()
        users = home / "users.txt"
        users.write_text(f'"{USER}" ""\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": str(home),
            "auth_type": "trust",
            "auth_file": str(users),
            "admin_users": USER,
            "pool_mode": "transaction",
            "max_client_conn": "200",
            "default_pool_size": "20",
            # By default a server that refused is left alone for 15 seconds; KILL counts as that.
            "server_login_retry": "1",
            **conf,
        }
        lines = [f"{name} = {value}\n" for name, value in settings.items()]
        file = home / "pgbouncer.ini"
        file.write_text(
            f"[databases]\n* = host={server.host} port={server.port}\n[pgbouncer]\n" + "".join(lines)
        )
        for path in (users, file):
            hand_over(path)
        bouncer = Pgbouncer(file, tmp_path / f"pgbouncer-{next(_numbers)}.log", port)
        try:
            await bouncer.start()
            yield bouncer
        finally:
            await bouncer.stop()
