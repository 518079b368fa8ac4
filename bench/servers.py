"""What targets need beside themselves: PostgreSQL and Redis, fresh for each cell, on the load's core.

They run as an unprivileged user where the bench is root, since PostgreSQL refuses root. Nothing of
PostgreSQL's durability is relaxed: fsync, full_page_writes and synchronous_commit are on.
"""

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from msgspec import Struct

from bench.commands import uninterrupted
from bench.environment import DATA, LOAD_CORE, tree_cpu

PATIENCE = 30.0
# Where ports are looked for, and how often.
_PORTS, _TRIES = range(10_000, 32_000), 100
CONFIGURATION = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "autovacuum": "on",
    "timezone": "UTC",
    "lc_messages": "C",
}


class ServerError(Exception):
    """A server cannot be had, and why."""


class Backing(Struct, frozen=True):
    """A server beside the target: where it is, and the id of its first process."""

    url: str
    process: int

    def cpu(self) -> float:
        """The CPU seconds that it has used, its children included."""
        return tree_cpu(self.process)


@contextmanager
def postgresql() -> Iterator[Backing]:
    """A new PostgreSQL with an empty database, that trusts everybody on loopback; ServerError."""
    program = _program("postgres", "usr/lib/postgresql/*/bin")
    with _directory("postgresql") as home:
        data = home / "data"
        template = _template(program)
        shutil.copytree(template, data, copy_function=shutil.copy)
        _hand_over(home)
        port = free_port()
        settings = {**CONFIGURATION, "unix_socket_directories": str(home), "port": str(port)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(program), "-D", str(data), *options]
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        # Nobody wants the data any more: SIGQUIT ends it at once.
        with _running(command, home, lambda: query(url, "SELECT 1"), signal.SIGQUIT) as process:
            yield Backing(url, process)


@contextmanager
def redis() -> Iterator[Backing]:
    """A new Redis that keeps nothing on disk; ServerError."""
    program = _program("redis-server")
    with _directory("redis") as home:
        port = free_port()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(home)]
        with _running([str(program), *options], home, lambda: _ping(port), signal.SIGTERM) as process:
            yield Backing(f"redis://127.0.0.1:{port}/0", process)


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """The rows of a statement, on a connection of its own, committed; psycopg2.Error."""
    with contextlib.closing(psycopg2.connect(url, connect_timeout=5)) as connection:
        # Each statement is a transaction of its own.
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def faults(url: str, table: str) -> list[str]:
    """What makes commits less than durable in a database: its settings, those of the user, of a table."""
    asked = ("fsync", "full_page_writes", "synchronous_commit")
    settings = {name: query(url, f"SHOW {name}")[0][0] for name in asked}
    found = [f"{name} = {value}" for name, value in settings.items() if value != "on"]
    if query(url, f"SELECT to_regclass('{table}')") == [(None,)]:
        return [*found, f"no table {table}"]
    # Of a table that is partitioned the partitions too.
    tables = f"SELECT '{table}'::regclass UNION SELECT relid FROM pg_partition_tree('{table}')"
    kinds = query(url, f"SELECT relpersistence FROM pg_class WHERE oid IN ({tables})")
    if any(kind != "p" for (kind,) in kinds):
        found.append(f"no durable table {table}")
    return found


def pending(url: str) -> bool:
    """Whether the log holds what is not on the disk yet, as after a commit with synchronous_commit = off."""
    lag: int = query(url, "SELECT pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn()")[0][0]
    return lag > 0


def _template(program: Path) -> Path:
    """An empty data directory of this version, made once on this machine."""
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True)
    mark = "".join(letter if letter.isalnum() else "-" for letter in version.stdout.split()[-1])
    place = Path(DATA) / f"tidegate-bench-template-{os.geteuid()}-{mark}"
    if place.exists():
        return place
    with _directory("initdb") as home:
        data = home / "data"
        options = ["--auth=trust", "-U", "postgres", "-E", "UTF8", "--locale=C"]
        done = subprocess.run(
            [str(program.resolve().parent / "initdb"), *options, "-D", str(data)],
            cwd=home,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
            **_as_owner(),
        )
        if done.returncode:
            raise ServerError(f"PostgreSQL makes no data directory: {done.stderr.strip()[-500:]}")
        # Whoever comes second keeps the first one's.
        with contextlib.suppress(OSError):
            data.rename(place)
    return place


@contextmanager
def _running(
    command: list[str], home: Path, ready: Callable[[], object], end: signal.Signals
) -> Iterator[int]:
    """A server that is ready, its process id; `end` is the signal that ends it."""
    log = home / "log"
    with contextlib.ExitStack() as stack:
        said = stack.enter_context(log.open("wb"))
        with uninterrupted():
            process = subprocess.Popen(
                ["taskset", "--cpu-list", str(LOAD_CORE), *command],
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **_as_owner(),
            )
            stack.callback(_end, process, end)
        _await(process, ready, log, command[0])
        yield process.pid


def _end(process: "subprocess.Popen[bytes]", how: signal.Signals) -> None:
    process.send_signal(how)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(PATIENCE)


def _await(process: "subprocess.Popen[bytes]", ready: Callable[[], object], log: Path, name: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            ready()
            return
        except (OSError, psycopg2.Error) as error:
            said = log.read_text(errors="replace")[-500:]
            if process.poll() is not None:
                raise ServerError(f"{name} does not start: {said}") from error
            if time.monotonic() > deadline:
                raise ServerError(f"{name} is not ready: {error} {said}") from error
        time.sleep(0.02)


def _ping(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(b"PING\r\n")
        if connection.recv(64) != b"+PONG\r\n":
            raise ConnectionError("Redis is not ready")


def _program(name: str, *places: str) -> Path:
    """The program as the system has it, of several versions the newest; ServerError."""
    for place in places:
        found = [path for path in Path("/").glob(f"{place}/{name}") if path.is_file()]
        if found:
            return max(found, key=lambda path: int(path.parent.parent.name))
    path = shutil.which(name)
    if path is None:
        raise ServerError(f"{name} is not installed")
    return Path(path)


def _owner() -> pwd.struct_passwd | None:
    """Whom to be where the bench is root."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServerError("root has no unprivileged user to run PostgreSQL as")


def _as_owner() -> dict[str, Any]:
    user = _owner()
    variables = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}
    if user is None:
        return {"env": variables}
    return {"env": variables, "user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _hand_over(path: Path) -> None:
    user = _owner()
    if user is not None:
        for each in (path, *path.rglob("*")):
            os.chown(each, user.pw_uid, user.pw_gid)


@contextmanager
def _directory(name: str) -> Iterator[Path]:
    """On a disk, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix=f"tidegate-bench-{name}-", dir=DATA) as path:
        _hand_over(Path(path))
        yield Path(path)


def free_port() -> int:
    """A port that nobody has, below those that the system gives to outgoing connections."""
    for port in random.sample(_PORTS, _TRIES):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise ServerError("no port is free")
