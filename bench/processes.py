"""Targets as processes: fresh for each measurement, pinned to one core, on a directory of their own."""

import contextlib
import http.client
import os
import select
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import psycopg2
from msgspec import Struct

from bench import servers
from bench.commands import uninterrupted
from bench.contract import LIMIT, SECRET
from bench.environment import DATA, SERVER_CORE, family, group_cpu
from bench.servers import Backing
from bench.targets import HOME, POSTGRESQL, Target, TargetError

START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0
# What a loop may take beyond its own time, to make bodies and to end.
LOOP_PATIENCE = 120.0


class Server(Struct, frozen=True):
    """A running server: its URL, where its data is, the seconds until it was ready, what runs beside it.

    `database`: URL of its PostgreSQL database, "" without one.
    """

    url: str
    data: Path
    target: Target
    group: int
    start: float = 0.0
    beside: tuple[Backing, ...] = ()
    database: str = ""

    def cpu(self) -> float:
        """The CPU seconds that it has used, its workers included, and its database's."""
        return group_cpu(self.group) + sum(each.cpu() for each in self.beside)

    def rows(self) -> int:
        """The rows that are committed in its database, read behind its back; 0 without one or a table."""
        return count_rows(self.target, self.data, self.database)

    def faults(self) -> list[str]:
        """What makes its commits less than durable, as far as its database tells."""
        return servers.faults(self.database, self.target.table) if self.database else []

    def pending(self) -> bool:
        """Whether a commit is not on the disk yet, as far as its database tells."""
        return bool(self.database) and servers.pending(self.database)


class Beside(Struct, frozen=True):
    """What runs beside a target: the servers, and where they are, by the name that its description has."""

    servers: tuple[Backing, ...] = ()
    urls: dict[str, str] = {}

    @property
    def database(self) -> str:
        """URL of its PostgreSQL database, "" without one."""
        return self.urls.get("database", "")

    def cpu(self) -> float:
        """The CPU seconds that they have used."""
        return sum(each.cpu() for each in self.servers)


class Looped(Struct, frozen=True):
    """What a loop printed, how many rows it left behind, and the CPU seconds of what ran beside it."""

    output: bytes
    stored: int
    cpu: float = 0.0


@contextmanager
def needed(target: Target) -> Iterator[Beside]:
    """A fresh PostgreSQL and a fresh Redis, if the target needs them; TargetError if they do not start."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Backing] = {}
        try:
            if target.database == POSTGRESQL:
                found["database"] = stack.enter_context(servers.postgresql())
            if target.redis:
                found["redis"] = stack.enter_context(servers.redis())
        except (servers.ServerError, psycopg2.Error) as error:
            raise TargetError(f"{target.name}: {error}") from error
        yield Beside(tuple(found.values()), {name: each.url for name, each in found.items()})


@contextmanager
def running(target: Target, limit: int = LIMIT) -> Iterator[Server]:
    """The server, ready, with what it needs beside it; `limit`: requests per minute of a principal.

    TargetError if it, or what it needs beside it, does not start, with what it said last.
    """
    with needed(target) as beside, serving(target, beside, limit) as server:
        yield server


@contextmanager
def serving(target: Target, beside: Beside, limit: int = LIMIT) -> Iterator[Server]:
    """The server, ready, on what runs beside it already; TargetError if it does not start."""
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(_fresh_directory())
        said = stack.enter_context(tempfile.TemporaryFile())
        port = servers.free_port()
        _refuse_busy(port)
        began = time.monotonic()
        values = {**beside.urls, "limit": str(limit), "port": str(port)}
        with uninterrupted():
            process = _start(target, data, said, values)
            stack.callback(_stop, process, 0.0 if target.deaf else STOP_TIMEOUT)
        _await_start(process, port, target, said)
        yield Server(
            f"http://127.0.0.1:{port}",
            data,
            target,
            process.pid,
            time.monotonic() - began,
            beside.servers,
            beside.database,
        )


def run_loop(
    target: Target, warm_up: float, seconds: float, scenario: str = "", beside: Beside | None = None
) -> Looped:
    """Run a loop to its end, on what runs beside it; TargetError."""
    beside = beside or Beside()
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(_fresh_directory())
        said = stack.enter_context(tempfile.TemporaryFile())
        times = {"warm_up": str(warm_up), "seconds": str(seconds), "scenario": scenario}
        spent = beside.cpu()
        with uninterrupted():
            process = _start(target, data, said, {**times, **beside.urls}, subprocess.PIPE)
            stack.callback(_stop, process, STOP_TIMEOUT)
        try:
            output, _ = process.communicate(timeout=warm_up + seconds + LOOP_PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise TargetError(f"{target.name} did not end in time") from error
        if process.returncode:
            raise TargetError(f"{target.name} ended with {process.returncode}: {_last_words(said)}")
        return Looped(output, count_rows(target, data, beside.database), beside.cpu() - spent)


def count_rows(target: Target, data: Path, database: str = "") -> int:
    """The rows that are committed in a target's database; 0 if it has none, or no table yet."""
    if not target.database:
        return 0
    if target.database == POSTGRESQL:
        try:
            found: int = servers.query(database, target.rows)[0][0]
        except psycopg2.errors.UndefinedTable:
            return 0
        return found
    connection = sqlite3.connect(f"file:{data / target.database}?mode=ro", uri=True, timeout=30)
    with contextlib.closing(connection):
        count: int = connection.execute(target.rows).fetchone()[0]
        return count


@contextmanager
def _fresh_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-", dir=DATA) as name:
        yield Path(name)


def _start(
    target: Target,
    data: Path,
    said: BinaryIO,
    values: Mapping[str, str],
    stdout: int = subprocess.DEVNULL,
) -> "subprocess.Popen[bytes]":
    every = dict.fromkeys(("port", "warm_up", "seconds", "scenario", "database", "redis", "limit"), "")
    every |= {"data": str(data), "secret": SECRET, "common": str(HOME / "common"), **values}
    command, variables = target.filled(every)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    try:
        return subprocess.Popen(
            # Whatever ends the bench, even while it starts a target, ends that too.
            ["setpriv", "--pdeathsig", "KILL", "taskset", "--cpu-list", str(SERVER_CORE), *command],
            cwd=target.home,
            env={**kept, **variables},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=said,
            # A group of its own: its workers go with it.
            start_new_session=True,
        )
    except OSError as error:
        raise TargetError(f"{target.name} does not start: {error}") from error


def _stop(process: "subprocess.Popen[bytes]", patience: float) -> None:
    """End it; whoever does not listen for so long is killed, its workers too. None of them runs after it."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with contextlib.ExitStack() as opened:
        killed = []
        # As long as the first one lives it is known whose the others are, whatever their groups.
        for each in family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                killed.append(os.pidfd_open(each))
                opened.callback(os.close, killed[-1])
                signal.pidfd_send_signal(killed[-1], signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_TIMEOUT)
        # Nobody can wait for those whose parent has ended: init may look after them at any time.
        for each in killed:
            select.select([each], [], [], STOP_TIMEOUT)


def _refuse_busy(port: int) -> None:
    """Whoever else answers there must not be taken for the target; TargetError."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        raise TargetError(f"port {port} is busy: something else listens there")


def _await_start(process: "subprocess.Popen[bytes]", port: int, target: Target, said: BinaryIO) -> None:
    """Until it answers anything at all."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TargetError(f"{target.name} ended with {process.returncode} at once: {_last_words(said)}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            time.sleep(0.005)
        else:
            return
        finally:
            connection.close()
    raise TargetError(f"{target.name} was not ready within {START_TIMEOUT} s: {_last_words(said)}")


def _last_words(said: BinaryIO) -> str:
    said.seek(0)
    return said.read().decode(errors="replace").strip()[-1000:]
