"""One process that serves: sockets, signals, and what it says when it starts."""

import asyncio
import gc
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TextIO

from server import identity, logs
from server.admin import URL_FILE
from server.app import Gate
from server.protocol import GateServer
from server.settings import Settings

_log = logging.getLogger("tidegate.serving")

BACKLOG = 4096
# Seconds from SIGTERM to the end, whatever happens (promise 10).
EXIT_WITHIN = 9.8
# Requests make and drop many small objects and few cycles: looking for those less often costs less.
GC_THRESHOLD = (50_000, 20, 50)
DEMO_SECONDS = 3600
# File descriptors beside those of connections: database, logs, sockets of our own.
FILES_BESIDE = 100


class GateBroke(Exception):
    """A part of the gate ended that must not; the log says why."""


async def serve(settings: Settings, out: TextIO) -> None:
    """Run the gate until SIGTERM or SIGINT; says on `out` where it listens and how to try it.

    StorageError and OSError if it cannot start, GateBroke if it ends for another reason than a signal.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    broken: list[bool] = []

    def end() -> None:
        if not stop.is_set():
            # The loop may be stuck by then; the kernel is not.
            signal.setitimer(signal.ITIMER_REAL, EXIT_WITHIN)
            stop.set()

    def fail() -> None:
        broken.append(True)
        end()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    # Until there are keys to read again it does nothing, least of all end the process.
    loop.add_signal_handler(signal.SIGHUP, int)
    log = await asyncio.to_thread(logs.setup, settings.log_level, settings.access_log)
    try:
        _allow_files(settings.max_connections + FILES_BESIDE)
        async with Gate.open(settings, log, fail) as gate, listening(gate, settings) as url:
            loop.add_signal_handler(signal.SIGHUP, gate.reload.set)
            announced = await asyncio.to_thread(_announce, settings, url)
            out.write(await asyncio.to_thread(_welcome, settings, url))
            out.flush()
            # What was made so far stays: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLD)
            await stop.wait()
            _log.info("closing")
            await asyncio.to_thread(announced.unlink, missing_ok=True)
    finally:
        await asyncio.to_thread(log.close)
    if broken:
        raise GateBroke("a part of the gate ended; the log says why")
    signal.setitimer(signal.ITIMER_REAL, 0)


def _allow_files(wanted: int) -> None:
    """Raise the limit of open files as far as that is allowed; many systems start with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        _log.warning("fewer files may be open than connections", extra={"allowed": most, "wanted": wanted})


@asynccontextmanager
async def listening(gate: Gate, settings: Settings) -> AsyncIterator[str]:
    """Accept connections on the addresses of the settings; gives the URL of the first."""
    with ExitStack() as stack:
        sockets = await asyncio.to_thread(_bind, settings.host, settings.port)
        await _accept(gate.server, sockets, stack)
        if settings.metrics_port:
            apart = await asyncio.to_thread(_bind, settings.host, settings.metrics_port)
            await _accept(gate.operations, apart, stack)
        yield _url(sockets[0])


async def _accept(protocols: GateServer, sockets: list[socket.socket], stack: ExitStack) -> None:
    loop = asyncio.get_running_loop()
    for sock in sockets:
        stack.callback(sock.close)
    for sock in sockets:
        stack.callback((await loop.create_server(protocols, sock=sock, backlog=BACKLOG)).close)


def _bind(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host; OSError says which cannot be had, and why."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # All addresses of a name share the port that the first of them got.
            sock.bind((address[0], port, *address[2:]))
            port = sock.getsockname()[1]
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return sockets


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(settings: Settings, url: str) -> Path:
    """Leave word for the command line where the gate listens."""
    path = settings.data / URL_FILE
    path.write_text(url + "\n", "ascii")
    return path


def _welcome(settings: Settings, url: str) -> str:
    """Where it listens and, if nobody but this machine gets there, how to try it."""
    lines = [f"tidegate listens on {url}, its data is in {settings.data.resolve()}"]
    seconds = min(DEMO_SECONDS, settings.token_ttl_max)
    if _is_private(settings.host):
        token = identity.mint(settings, "demo", ["readings:write", "readings:read"], ["demo.>"], seconds)
        # The link may end up in somebody's history: it reads, it does not write.
        look = identity.mint(settings, "demo", ["readings:read", "devices:read"], ["demo.>"], seconds)
        lines += [
            "",
            f"Try it (the tokens are for the devices demo.>, for {seconds // 60} minutes):",
            "",
            f"In a browser: {url}/#token={look}",
            "",
            f"curl -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' \\",
            f'     -d \'{{"metric": "temperature", "value": 21.5}}\' {url}/v1/devices/demo.kitchen/readings',
            "",
            f"curl -H 'Authorization: Bearer {token}' {url}/v1/devices/demo.kitchen/latest",
        ]
    return "\n".join(lines) + "\n"


def _is_private(host: str) -> bool:
    """Whether only this machine gets to the host's addresses."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
