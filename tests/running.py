"""A gate to test against: in this process (its event loop is watched) or as a process of its own."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psycopg2

from auth.tokens import TokenIssuer
from server import logs
from server.app import Gate
from server.identity import key_ring, token_issuer
from server.serving import listening
from server.settings import Settings, load
from server.sockets import trusting

ROOT = Path(__file__).parent.parent
ALL_SCOPES = ("readings:write", "readings:read", "devices:write", "devices:read", "admin")
# So long a test waits for something that is bound to happen.
PATIENCE = 20.0


class Caller:
    """Requests to a gate with a token that may do everything, unless told otherwise."""

    def __init__(
        self, url: str, settings: Settings, session: aiohttp.ClientSession, issuer: TokenIssuer
    ) -> None:
        self.url = url
        self.settings = settings
        self.session = session
        self._issuer = issuer
        self.port = int(url.rpartition(":")[2])
        self._all = self.token()

    def token(
        self,
        scopes: Sequence[str] = ALL_SCOPES,
        devices: Sequence[str] = (">",),
        subject: str = "tester",
        ttl: int = 600,
    ) -> str:
        """A token of the gate."""
        return self._issuer.issue(subject, scopes, devices, ttl)[0]

    async def call(
        self,
        method: str,
        path: str,
        content: object = None,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
    ) -> "Reply":
        """A whole exchange; `token`: "" sends none."""
        sent = dict(headers or {})
        bearer = self._all if token is None else token
        if bearer:
            sent.setdefault("Authorization", f"Bearer {bearer}")
        async with asyncio.timeout(PATIENCE):
            async with self.session.request(
                method, self.url + path, json=content, data=data, headers=sent, allow_redirects=False
            ) as response:
                return Reply(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> "Reply":
        """GET."""
        return await self.call("GET", path, **options)

    async def post(self, path: str, content: object = None, **options: Any) -> "Reply":
        """POST."""
        return await self.call("POST", path, content, **options)

    async def write(self, device: str, *readings: object, **options: Any) -> "Reply":
        """Write readings of one device."""
        return await self.post(f"/v1/devices/{device}/readings", list(readings), **options)


class Reply:
    """An answer that has been read."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<{self.status} {dict(self.headers)} {self.body[:2000]!r}>"


def open_files() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))


def samples(text: bytes) -> dict[str, float]:
    """What /metrics says, by name and labels as they stand there."""
    lines = (line.rpartition(" ") for line in text.decode().splitlines() if line[0] != "#")
    return {name: float(value) for name, _, value in lines}


class Running(Caller):
    """A gate in this process."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        session: aiohttp.ClientSession,
        issuer: TokenIssuer,
        gate: Gate,
        log: Path,
    ) -> None:
        super().__init__(url, settings, session, issuer)
        self.gate = gate
        self._log = log

    def logged(self) -> str:
        """What the gate has logged so far."""
        return self._log.read_text()


# What a test does not set itself; conftest adds what the command line asks for. In a DATABASE_URL {} is
# the name of a database that is made for the data directory.
DEFAULTS = {"PORT": "0"}
# The URLs of those that were made.
DATABASES: set[str] = set()


# What clients of those gates need: TLS that trusts them.
TRUST: list[ssl.SSLContext] = []


def client_tls() -> ssl.SSLContext | None:
    """For a client that is no aiohttp session."""
    return TRUST[0] if TRUST else None


async def _client(settings: Settings) -> aiohttp.ClientSession:
    trust = await asyncio.to_thread(trusting, settings)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust))


def database_name(data: Path) -> str:
    """The name of the database that is made for a data directory."""
    return f"gate_{hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:16]}"


def _variables(data: Path, environment: Mapping[str, str]) -> dict[str, str]:
    settings = {"DATA": str(data), **DEFAULTS, **environment}
    if "{}" in settings.get("DATABASE_URL", ""):
        name = database_name(data)
        template, settings["DATABASE_URL"] = settings["DATABASE_URL"], settings["DATABASE_URL"].format(name)
        if settings["DATABASE_URL"] not in DATABASES:
            administrate(template.format("postgres"), f"CREATE DATABASE {name}")
            DATABASES.add(settings["DATABASE_URL"])
    return {f"TIDEGATE_{name}": value for name, value in settings.items()}


def administrate(url: str, statement: str) -> None:
    """Run a statement that stands in no transaction."""
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


def drop_databases() -> None:
    """Remove the databases that gates have used."""
    while DATABASES:
        server, _, name = DATABASES.pop().rpartition("/")
        administrate(f"{server}/postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@asynccontextmanager
async def run_gate(data: Path, **environment: str) -> AsyncIterator[Running]:
    """A gate in this process on a free port; `environment` as in HOST="..." without the prefix."""
    settings = await asyncio.to_thread(lambda: load(_variables(data, environment)))
    log_path = data.with_suffix(".log")
    log_file = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = await asyncio.to_thread(logs.setup, "info", settings.access_log, log_file)
    broken: list[str] = []
    try:
        async with (
            Gate.open(settings, log, lambda: broken.append("the group commit broke")) as gate,
            listening(gate, settings) as url,
            await _client(settings) as session,
        ):
            yield Running(url, settings, session, await _issuer(settings), gate, log_path)
    finally:
        await asyncio.to_thread(log.close)
        os.close(log_file)
    assert not broken
    # What nobody foresaw is answered 500 and logged: a test that provokes it has found a bug.
    assert '"level":"error"' not in log_path.read_text(), log_path.read_text()


async def _issuer(settings: Settings) -> TokenIssuer:
    return await asyncio.to_thread(lambda: token_issuer(settings, key_ring(settings)))


class GateProcess(Caller):
    """A gate in a process of its own."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        session: aiohttp.ClientSession,
        issuer: TokenIssuer,
        process: asyncio.subprocess.Process,
    ) -> None:
        super().__init__(url, settings, session, issuer)
        self.process = process

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to exactly this process."""
        self.process.send_signal(number)

    async def ended(self, within: float = PATIENCE) -> int:
        """Wait for its end; the exit code."""
        async with asyncio.timeout(within):
            return await self.process.wait()


@asynccontextmanager
async def run_process(data: Path, **environment: str) -> AsyncIterator[GateProcess]:
    """A gate as a process on a free port (or the PORT of `environment`), killed at the end if need be."""
    async with run_logged(data, None, environment) as gate:
        yield gate


@asynccontextmanager
async def run_logged(
    data: Path, log: int | None, environment: Mapping[str, str]
) -> AsyncIterator[GateProcess]:
    """The same; `log`: the file descriptor for its log."""
    variables = await asyncio.to_thread(_variables, data, environment)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "server",
        "serve",
        cwd=ROOT,
        env={**kept, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
    )
    try:
        assert process.stdout is not None
        # Several processes on a busy machine take their time.
        async with asyncio.timeout(3 * PATIENCE):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("tidegate listens on "), line
        url = line.removeprefix("tidegate listens on ").partition(",")[0]
        settings = await asyncio.to_thread(load, variables)
        async with await _client(settings) as session:
            yield GateProcess(url, settings, session, await _issuer(settings), process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
