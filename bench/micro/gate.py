"""A whole gate in this process, on a real database, with connections that have no sockets."""

import asyncio
import gc
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from bench.contract import SECRET
from server import logs, settings
from server.app import Gate
from server.protocol import GateProtocol
from server.serving import GC_THRESHOLD

CONNECTIONS = 64
# Seconds that one round of requests may take, under valgrind too.
PATIENCE = 300.0
# High, not off, as for the processes that are measured.
_SETTINGS = {
    "TIDEGATE_JWT_SECRET": SECRET,
    "TIDEGATE_RATE_LIMIT": "1000000000",
    "TIDEGATE_POINT_LIMIT": "1000000000",
    # Nothing expires while valgrind makes everything slow.
    "TIDEGATE_CACHE_TTL": "1h",
    "TIDEGATE_HEADER_TIMEOUT": "1h",
    "TIDEGATE_BODY_TIMEOUT": "1h",
    "TIDEGATE_KEEPALIVE_TIMEOUT": "1h",
}


class Answers:
    """What all connections were sent. `awaited` is done when there are as many as are expected."""

    def __init__(self) -> None:
        self.given: list[bytes] = []
        self._expected = 0
        self._complete = asyncio.Event()

    def add(self, data: bytes) -> None:
        """Keep an answer."""
        self.given.append(data)
        if len(self.given) == self._expected:
            self._complete.set()

    async def until(self, count: int) -> None:
        """Wait until `count` were given since the last `clear`; TimeoutError."""
        self._expected = count
        if len(self.given) < count:
            self._complete.clear()
            async with asyncio.timeout(PATIENCE):
                await self._complete.wait()

    def clear(self) -> None:
        """Forget those that were given."""
        self.given.clear()


class Transport(asyncio.Transport):
    """Takes the answers of a connection."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.closed = False
        self.write = answers.add  # type: ignore[method-assign,assignment]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """An address, and nothing else."""
        return ("127.0.0.1", 4711) if name == "peername" else default

    def get_write_buffer_size(self) -> int:
        """Everything is read at once."""
        return 0

    def is_closing(self) -> bool:
        """Whether the gate has closed it."""
        return self.closed

    def pause_reading(self) -> None:
        """There is nothing to pause: bytes come when the bench gives them."""

    def resume_reading(self) -> None:
        """See pause_reading."""

    def close(self) -> None:
        """Note it: an answer that ends the connection is not what is measured."""
        self.closed = True

    abort = close


class InProcess:
    """Connections to a gate of this process."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.answers = Answers()
        self._protocols = [cast("GateProtocol", gate.server()) for _ in range(CONNECTIONS)]
        self._transports = [Transport(self.answers) for _ in self._protocols]
        for protocol, transport in zip(self._protocols, self._transports, strict=True):
            protocol.connection_made(transport)
        self._receivers = [protocol.data_received for protocol in self._protocols]

    def hang_up(self) -> None:
        """End all connections, as their clients would."""
        for protocol in self._protocols:
            protocol.connection_lost(None)

    async def send(self, requests: Sequence[bytes], connections: int = CONNECTIONS) -> None:
        """Answer all requests: one on each connection at a time, all in one turn of the loop."""
        receivers = self._receivers[:connections]
        answers = self.answers
        for start in range(0, len(requests), connections):
            some = requests[start : start + connections]
            for receive, data in zip(receivers, some, strict=False):
                receive(data)
            await answers.until(start + len(some))

    async def check(self, requests: Sequence[bytes], expected: bytes) -> bytes:
        """Send one by one and forget the answers; gives the last. RuntimeError unless each has `expected`."""
        await self.send(requests, connections=1)
        given = self.take(len(requests), expected)
        return given[-1]

    def take(self, count: int, expected: bytes) -> list[bytes]:
        """The answers since the last time: `count`, each 200 and with `expected` in it, or RuntimeError."""
        given = list(self.answers.given)
        self.answers.clear()
        if any(transport.closed for transport in self._transports):
            raise RuntimeError(f"the gate closed a connection; last it said {given[-1:]!r}")
        if len(given) != count:
            raise RuntimeError(f"expected {count} answers, got {len(given)}")
        for answer in given:
            if not answer.startswith(b"HTTP/1.1 200 OK\r\n") or expected not in answer:
                raise RuntimeError(f"expected 200 with {expected!r}, got {answer[:2000]!r}")
        return given


@asynccontextmanager
async def in_process() -> AsyncIterator[InProcess]:
    """A gate on a fresh directory, its collector set as when it serves."""
    with tempfile.TemporaryDirectory(prefix="tidegate-micro-", dir="/var/tmp") as data:
        loaded = settings.load({**_SETTINGS, "TIDEGATE_DATA": str(Path(data) / "data")})
        log = logs.setup("warning", access_log=False)
        try:
            async with Gate.open(loaded, log, _broke) as gate:
                gc.collect()
                gc.freeze()
                gc.set_threshold(*GC_THRESHOLD)
                connections = InProcess(gate)
                # aiohttp's task of each connection gets to its first wait.
                await asyncio.sleep(0)
                try:
                    yield connections
                finally:
                    connections.hang_up()
        finally:
            log.close()


def _broke() -> None:
    raise RuntimeError("a part of the gate ended; the log says why")
