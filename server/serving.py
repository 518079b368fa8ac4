"""One process that serves: sockets, signals, and what it says when it starts."""

import asyncio
import gc
import logging
import resource
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TextIO

from server import identity, logs, sockets
from server.admin import URL_FILE
from server.app import Gate
from server.notify import Notifier
from server.protocol import GateServer
from server.settings import Settings, Supervisor
from server.sockets import BACKLOG, Sockets

_log = logging.getLogger("tidegate.serving")

# Seconds from SIGTERM to the end, whatever happens (promise 10).
EXIT_WITHIN = 9.8
# Requests make and drop many small objects and few cycles: looking for those less often costs less.
GC_THRESHOLD = (50_000, 20, 50)
DEMO_SECONDS = 3600
# File descriptors beside those of connections: database, logs, sockets of our own.
FILES_BESIDE = 100
# Seconds that a client may take to agree to the end of its TLS connection.
TLS_END = 3.0


class GateBroke(Exception):
    """A part of the gate ended that must not; the log says why."""


class Life:
    """How a process ends: `stop` is set by SIGTERM, by SIGINT, and by `fail`."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._broken = False
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.end)
        # Until there is something to read again it does nothing, least of all end the process.
        self._loop.add_signal_handler(signal.SIGHUP, int)

    def on_reload(self, reload: Callable[[], None]) -> None:
        """Call `reload` at SIGHUP."""
        self._loop.add_signal_handler(signal.SIGHUP, reload)

    def end(self) -> None:
        """Begin to end."""
        if not self.stop.is_set():
            # The loop may be stuck by then; the kernel is not.
            signal.setitimer(signal.ITIMER_REAL, EXIT_WITHIN)
            self.stop.set()

    def fail(self) -> None:
        """The same, because a part broke."""
        self._broken = True
        self.end()

    def over(self) -> None:
        """It has ended; GateBroke if not because it was asked to."""
        if self._broken:
            raise GateBroke("a part of the gate ended; the log says why")
        signal.setitimer(signal.ITIMER_REAL, 0)


async def serve(settings: Settings, supervisor: Supervisor, out: TextIO) -> None:
    """Run the gate until SIGTERM or SIGINT; says on `out` where it listens and how to try it.

    StorageError, SettingsError and OSError if it cannot start, GateBroke if it ends for another reason
    than a signal.
    """
    life, notifier = Life(), Notifier(supervisor)
    log = await asyncio.to_thread(logs.setup, settings.log_level, settings.access_log)
    try:
        allow_files(settings)
        async with Gate.open(settings, log, life.fail) as gate, listening(gate, settings, life) as url:
            announced = await announce(settings, url, out)
            settle()
            notifier.ready(f"serving on {url}")
            watch = asyncio.create_task(notifier.watch())
            await life.stop.wait()
            watch.cancel()
            notifier.stopping()
            _log.info("closing")
            await asyncio.to_thread(announced.unlink, missing_ok=True)
    finally:
        await asyncio.to_thread(log.close)
    life.over()


def allow_files(settings: Settings) -> None:
    """Raise the limit of open files as far as that is allowed; many systems start with 1,024."""
    wanted = settings.max_connections + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        _log.warning("fewer files may be open than connections", extra={"allowed": most, "wanted": wanted})


def settle() -> None:
    """What was made so far stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)


@asynccontextmanager
async def listening(gate: Gate, settings: Settings, life: Life | None = None) -> AsyncIterator[str]:
    """Accept connections on the addresses of the settings; gives the URL of the first."""
    (main,) = await asyncio.to_thread(sockets.bind, settings.host, settings.port)
    apart: Sockets = []
    if settings.metrics_port:
        (apart,) = await asyncio.to_thread(sockets.bind, settings.host, settings.metrics_port)
    async with accepting(gate, settings, main, apart, life):
        yield sockets.url(settings, main[0])


@asynccontextmanager
async def accepting(
    gate: Gate, settings: Settings, main: Sockets, apart: Sockets, life: Life | None
) -> AsyncIterator[None]:
    """Accept connections on sockets, which are closed at the end; `apart`: those for operations alone."""
    async with AsyncExitStack() as stack:
        for sock in (*main, *apart):
            stack.callback(sock.close)
        loop = asyncio.get_running_loop()
        context = await asyncio.to_thread(sockets.tls, settings)
        for protocols, places in ((gate.server, main), (gate.operations, apart)):
            for sock in places:
                stack.callback((await _accept(protocols, settings, sock, context)).close)

        def reload() -> None:
            gate.reload.set()
            loop.run_in_executor(None, sockets.renew, settings, context)

        if life is not None:
            life.on_reload(reload)
        yield


async def _accept(
    protocols: GateServer, settings: Settings, sock: socket.socket, context: ssl.SSLContext | None
) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    if context is None:
        return await loop.create_server(protocols, sock=sock, backlog=BACKLOG)
    return await loop.create_server(
        protocols,
        sock=sock,
        backlog=BACKLOG,
        ssl=context,
        ssl_handshake_timeout=settings.header_timeout,
        ssl_shutdown_timeout=TLS_END,
    )


async def announce(settings: Settings, url: str, out: TextIO) -> Path:
    """Tell where the gate listens: people on `out`, the command line by a file, which is returned."""
    file = await asyncio.to_thread(_leave_word, settings, url)
    out.write(await asyncio.to_thread(_welcome, settings, url))
    out.flush()
    return file


def _leave_word(settings: Settings, url: str) -> Path:
    path = settings.data / URL_FILE
    try:
        # With PostgreSQL and a key from elsewhere there was no need of the directory so far.
        settings.data.mkdir(0o700, parents=True, exist_ok=True)
        path.write_text(url + "\n", "ascii")
    except OSError as error:
        # A file system to read only is no reason not to serve.
        _log.warning("the command line will not find the gate", extra={"error": str(error)})
    return path


def _welcome(settings: Settings, url: str) -> str:
    """Where it listens and, if nobody but this machine gets there, how to try it."""
    place = "PostgreSQL" if settings.database_url else settings.data.resolve()
    lines = [f"tidegate listens on {url}, its data is in {place}"]
    seconds = min(DEMO_SECONDS, settings.token_ttl_max)
    if sockets.is_private(settings.host):
        token = identity.mint(settings, "demo", ["readings:write", "readings:read"], ["demo.>"], seconds)
        # The link may end up in somebody's history: it reads, it does not write.
        look = identity.mint(settings, "demo", ["readings:read", "devices:read"], ["demo.>"], seconds)
        curl = "curl --insecure" if settings.tls_cert else "curl"
        lines += [
            "",
            f"Try it (the tokens are for the devices demo.>, for {seconds // 60} minutes):",
            "",
            f"In a browser: {url}/#token={look}",
            "",
            f"{curl} -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' \\",
            f'     -d \'{{"metric": "temperature", "value": 21.5}}\' {url}/v1/devices/demo.kitchen/readings',
            "",
            f"{curl} -H 'Authorization: Bearer {token}' {url}/v1/devices/demo.kitchen/latest",
        ]
    return "\n".join(lines) + "\n"
