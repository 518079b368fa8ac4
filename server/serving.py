"""One process that serves: sockets, signals, and what it says when it starts."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TextIO

from server import identity, logs
from server.admin import URL_FILE
from server.app import Gate
from server.settings import Settings

_log = logging.getLogger("tidegate.serving")

BACKLOG = 4096
# Seconds from SIGTERM to the end, whatever happens (promise 10).
EXIT_WITHIN = 10
DEMO_SECONDS = 3600


async def serve(settings: Settings, out: TextIO) -> None:
    """Run the gate until SIGTERM or SIGINT; says on `out` where it listens and how to try it."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def end() -> None:
        # The loop may be stuck by then; the kernel is not.
        signal.alarm(EXIT_WITHIN)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    log = await asyncio.to_thread(logs.setup, settings.log_level, settings.access_log)
    try:
        async with Gate.open(settings, log, stop.set) as gate, listening(gate, settings) as url:
            loop.add_signal_handler(signal.SIGHUP, gate.reload.set)
            announced = await asyncio.to_thread(_announce, settings, url)
            out.write(await asyncio.to_thread(_welcome, settings, url))
            out.flush()
            # What was made so far stays: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)
            await stop.wait()
            _log.info("closing")
            await asyncio.to_thread(announced.unlink, missing_ok=True)
    finally:
        await asyncio.to_thread(log.close)
    signal.alarm(0)


@asynccontextmanager
async def listening(gate: Gate, settings: Settings) -> AsyncIterator[str]:
    """Accept connections on the addresses of the settings; gives the URL of the first."""
    loop = asyncio.get_running_loop()
    sockets = _bind(settings.host, settings.port)
    servers = [await loop.create_server(gate.server, sock=sock, backlog=BACKLOG) for sock in sockets]
    if settings.metrics_port:
        servers += [
            await loop.create_server(gate.operations, sock=sock, backlog=BACKLOG)
            for sock in _bind(settings.host, settings.metrics_port)
        ]
    try:
        yield _url(sockets[0])
    finally:
        for server in servers:
            server.close()


def _bind(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host."""
    sockets = []
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # All addresses of a name share the port that the first of them got.
        listening.bind((address[0], port, *address[2:]))
        port = listening.getsockname()[1]
        sockets.append(listening)
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
    """Where it listens and, where only this machine can listen in, how to try it."""
    lines = [f"tidegate listens on {url}, its data is in {settings.data.resolve()}"]
    host = url.removeprefix("http://").rpartition(":")[0].strip("[]")
    if ip_address(host).is_loopback:
        token = identity.mint(
            settings,
            "demo",
            ["readings:write", "readings:read"],
            ["demo.>"],
            min(DEMO_SECONDS, settings.token_ttl_max),
        )
        lines += [
            "",
            "Try it (the token is for the devices demo.>, for an hour):",
            "",
            f"curl -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' \\",
            f'     -d \'{{"metric": "temperature", "value": 21.5}}\' {url}/v1/devices/demo.kitchen/readings',
            "",
            f"curl -H 'Authorization: Bearer {token}' {url}/v1/devices/demo.kitchen/latest",
        ]
    return "\n".join(lines) + "\n"
