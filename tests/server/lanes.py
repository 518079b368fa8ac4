"""Both lanes side by side: the same bytes, cut at the same places, with the fast lane and without."""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from server.protocol import GateProtocol
from tests.running import PATIENCE, Running, run_gate, samples

SECRET = "a secret that both gates share, of enough bytes"
_VARYING = re.compile(rb"^(Date|X-Request-ID): [^\r]*\r\n", re.MULTILINE)
# The request id stands in a problem, so their lengths differ.
_LENGTH = re.compile(rb"(?<=problem\+json\r\n)Content-Length: [0-9]+\r\n")
_INSTANCE = re.compile(rb'"instance":"[^"]*"')

# Figures of the head memo, as /metrics shows them.
HITS = 'tidegate_cache_hits_total{cache="head"}'
MISSES = 'tidegate_cache_misses_total{cache="head"}'
EVICTIONS = 'tidegate_cache_evictions_total{cache="head"}'
ENTRIES = 'tidegate_cache_entries{cache="head"}'
BYTES = 'tidegate_cache_bytes{cache="head"}'


async def figure(gate: Running, name: str) -> float:
    """A figure of /metrics, read without a request that would change it."""
    text, _ = await asyncio.to_thread(gate.gate.metrics.render, "")
    return samples(text)[name]


class Clock:
    """The time of gates: the real one, and an offset in seconds that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = 0
        self._real = time.time_ns
        monkeypatch.setattr(time, "time_ns", self.nanoseconds)

    def nanoseconds(self) -> int:
        return self._real() + self.offset * 1_000_000_000

    def seconds(self) -> float:
        return time.time() + self.offset

    def follow(self, gate: Running) -> None:
        """Let the tokens of a gate live by this clock."""
        gate.gate.verifier._clock = self.seconds


@asynccontextmanager
async def clocked_gate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Running, Clock]]:
    """A gate with the fast lane, and its time."""
    # Before the gate starts: then it takes its clock.
    clock = Clock(monkeypatch)
    async with run_gate(folder / "data", FAST_LANE="1") as gate:
        clock.follow(gate)
        yield gate, clock


class FakeTransport(asyncio.Transport):
    """Keeps what is written; the test decides where the bytes that arrive are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = asyncio.Event()
        self.protocol: GateProtocol | None = None

    def write(self, data: Any) -> None:
        if not self.ended.is_set():
            self.written += bytes(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 4711) if name == "peername" else default

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.ended.is_set()

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        if not self.ended.is_set():
            self.ended.set()
            assert self.protocol is not None
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close


class Client:
    """A connection whose bytes arrive exactly as they are given."""

    def __init__(self, gate: Running, *, operations: bool = False) -> None:
        self.transport = FakeTransport()
        server = gate.gate.operations if operations else gate.gate.server
        self.protocol = cast("GateProtocol", server())
        self.transport.protocol = self.protocol
        self.protocol.connection_made(self.transport)

    async def send(self, *pieces: bytes) -> None:
        """Each piece is one read of the socket, and the gate has time between them."""
        for piece in pieces:
            if self.transport.ended.is_set():
                return
            self.protocol.data_received(piece)
            await self.settled()

    async def settled(self) -> None:
        """Wait until the gate has answered all that it can."""
        async with asyncio.timeout(PATIENCE):
            quiet = 0
            written = -1
            while quiet < 3 and not self.transport.ended.is_set():
                await asyncio.sleep(0)
                busy = _is_busy(self.protocol) or len(self.transport.written) != written
                written = len(self.transport.written)
                quiet = 0 if busy else quiet + 1

    async def answers(self, *pieces: bytes) -> list[bytes]:
        """What comes back, made comparable, and whether the connection was ended."""
        before = len(self.transport.written)
        await self.send(*pieces)
        return [
            comparable(self.transport.written[before:]),
            b"ended" if self.transport.ended.is_set() else b"open",
        ]

    def close(self) -> None:
        self.transport.close()


def statuses(client: Client) -> list[int]:
    """Of all answers so far."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", client.transport.written)]


async def ask(gate: Running, *pieces: bytes) -> list[int]:
    """What a new connection is answered."""
    client = Client(gate)
    await client.send(*pieces)
    client.close()
    return statuses(client)


def _is_busy(protocol: GateProtocol) -> bool:
    """Whether the gate has something to do for this connection, other than to wait for its bytes."""
    if getattr(protocol, "_pending", False):
        return True
    if protocol._idle:
        return False
    request = protocol._current_request
    return request is None or request.content.is_eof() or request.content.exception() is not None


def comparable(answer: bytes) -> bytes:
    """An answer without what differs from request to request."""
    return _INSTANCE.sub(b'"instance":""', _LENGTH.sub(b"", _VARYING.sub(b"", answer)))


@asynccontextmanager
async def both_lanes(tmp_path: Path, **environment: str) -> AsyncIterator[tuple[Running, Running]]:
    """A gate with the fast lane and one without, on equal data (so their epoch is the same)."""
    fast, common = tmp_path / "fast", tmp_path / "common"
    async with run_gate(fast, JWT_SECRET=SECRET):
        pass
    await asyncio.to_thread(shutil.copytree, fast, common)
    async with (
        run_gate(fast, JWT_SECRET=SECRET, FAST_LANE="1", **environment) as one,
        run_gate(common, JWT_SECRET=SECRET, FAST_LANE="0", **environment) as other,
    ):
        for gate in (one, other):
            gate.gate.server._kwargs["lingering_time"] = 0.02
        yield one, other


async def same_answers(gates: tuple[Running, Running], connections: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Send to both, one connection after the other; they must agree. What the fast lane said."""
    said: list[bytes] = []
    for pieces in connections:
        clients = [Client(gate) for gate in gates]
        one, other = [await client.answers(*pieces) for client in clients]
        for client in clients:
            client.close()
        assert one == other, f"fast: {one}\ncommon: {other}\nsent: {pieces}"
        said += one
    return said
