"""Python clients that nobody here wrote follow the gate over a shutdown and a crash and miss nothing."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import websockets
from httpx_sse import aconnect_sse
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from tests.raw import until
from tests.reliability.following import Place, Trace, connect
from tests.reliability.gates import Gates
from tests.reliability.record import Wish, differences, stored
from tests.running import PATIENCE, Running

PACKED = Subprotocol("tidegate.msgpack")
# How a client follows once, until its connection is over.
Follow = Callable[[Place, Trace], Awaitable[None]]


class Speaker:
    """A connection of `websockets` in either coding."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._packed = socket.subprotocol == PACKED

    async def say(self, **message: object) -> None:
        """Send a message."""
        await self.socket.send(msgspec.msgpack.encode(message) if self._packed else json.dumps(message))

    async def hear(self) -> dict[str, Any]:
        """The next message."""
        async with asyncio.timeout(PATIENCE):
            return self.decoded(await self.socket.recv())

    def decoded(self, data: str | bytes) -> dict[str, Any]:
        """A message; the kind of frame is that of the coding."""
        assert isinstance(data, bytes) is self._packed
        found: dict[str, Any] = msgspec.msgpack.decode(data) if isinstance(data, bytes) else json.loads(data)
        return found


def speaking(port: int, token: str, *, packed: bool) -> websockets.connect:
    """A connection of `websockets`, which offers compression as it always does."""
    return websockets.connect(
        f"ws://127.0.0.1:{port}/v1/stream?time=us",
        additional_headers={"Authorization": f"Bearer {token}"},
        subprotocols=[PACKED] if packed else None,
    )


async def by_websockets(place: Place, trace: Trace, *, packed: bool) -> None:
    async with speaking(place.port, place.token, packed=packed) as socket:
        trace.connected()
        speaker = Speaker(socket)
        await speaker.say(type="subscribe", id=1, match=trace.wish.match, since=trace.asks)
        try:
            async for data in socket:
                trace.take(speaker.decoded(data))
        except websockets.ConnectionClosedError:
            pass
        trace.codes.append(socket.close_code or 0)
        trace.position = socket.close_reason or trace.position


async def by_picows(place: Place, trace: Trace, *, packed: bool) -> None:
    connection = await connect(place, "msgpack" if packed else "json", trace)
    await connection.closed


async def by_httpx_sse(place: Place, trace: Trace) -> None:
    url = f"http://127.0.0.1:{place.port}/v1/events"
    headers = {"Authorization": f"Bearer {place.token}", "Last-Event-ID": trace.asks}
    params = [("time", "us"), *(("match", pattern) for pattern in trace.wish.match)]
    async with (
        httpx.AsyncClient(timeout=None) as client,
        aconnect_sse(client, "GET", url, params=params, headers=headers) as source,
    ):
        trace.connected()
        try:
            async for event in source.aiter_sse():
                content = json.loads(event.data)
                assert event.id == content["position"]
                if event.event == "recovery":
                    assert event.retry is not None
                    assert 1500 <= event.retry <= 2500
                kinds = {"recovery": "subscribed", "reading": "reading", "position": "position"}
                trace.take({"type": kinds[event.event], **content})
        except httpx.RemoteProtocolError:
            pass


async def keep_following(follow: Follow, place: Place, trace: Trace) -> None:
    """Come back until it is over."""
    while not place.over:
        # As long as a gate may take to start.
        async with asyncio.timeout(3 * PATIENCE):
            await place.up.wait()
        with contextlib.suppress(OSError, httpx.TransportError, websockets.InvalidHandshake):
            await follow(place, trace)
        await asyncio.sleep(0.02)


CLIENTS: dict[str, Follow] = {
    "websockets, JSON": lambda place, trace: by_websockets(place, trace, packed=False),
    "websockets, MessagePack": lambda place, trace: by_websockets(place, trace, packed=True),
    "picows, JSON": lambda place, trace: by_picows(place, trace, packed=False),
    "picows, MessagePack": lambda place, trace: by_picows(place, trace, packed=True),
    "httpx-sse": by_httpx_sse,
}


async def test_python_clients_follow_over_a_shutdown_and_a_crash_and_miss_nothing(
    tmp_path: Path, port: int
) -> None:
    place, values = Place(port), count(1)
    gates = Gates(tmp_path / "data", place)
    traces = {name: Trace(Wish(["a.*", "b.>"]), "earliest") for name in CLIENTS}

    async def write() -> int:
        """Some for the clients, some not; how many they should have by now."""
        batch = [(device, next(values)) for device in ("a.b", "b.c.d", "a.b.c", "a", "b.x")]
        await gates.write([{"device": device, "metric": "m", "ts": n, "value": n} for device, n in batch])
        return 3 * batch[-1][1] // 5

    async def have(total: int) -> None:
        await until(lambda: all(len(trace.record) >= total for trace in traces.values()))

    async with asyncio.TaskGroup() as group:
        async with gates.one() as gate:
            await write()
            for name, follow in CLIENTS.items():
                group.create_task(keep_following(follow, place, traces[name]))
            await have(await write())
            await write()
            gates.end(gate, signal.SIGTERM)
        async with gates.one() as gate:
            await have(await write())
            await write()
            gates.end(gate, signal.SIGKILL)
        async with gates.one() as gate:
            await have(await write())
            place.over = True
            gates.end(gate, signal.SIGTERM)
    log = await asyncio.to_thread(stored, tmp_path / "data")
    for name, trace in traces.items():
        assert differences(trace.record, log, trace.wish, 0) == [], name
        assert trace.resumed == 2, name
        if name.startswith("websockets"):
            assert trace.codes == [1001, 1006, 1001]


@pytest.mark.parametrize("packed", [False, True], ids=["JSON", "MessagePack"])
async def test_websockets_writes_follows_and_pings_on_one_connection(gate: Running, packed: bool) -> None:
    await gate.write("a.b", {"metric": "m", "ts": 1, "value": 0.5})
    async with speaking(gate.port, gate.token(), packed=packed) as socket:
        assert socket.protocol.extensions == []
        speaker = Speaker(socket)
        await speaker.say(type="subscribe", id="all", match=[">"], latest=True)
        found = [await speaker.hear() for _ in range(3)]
        assert [message["type"] for message in found] == ["subscribed", "readings", "live"]
        (newest,) = found[1]["items"]
        assert (newest["device"], newest["value"], newest["latest"]) == ("a.b", 0.5, True)

        for number in range(60):
            reading = {"device": "a.b", "metric": "m", "ts": 10 + number, "value": f"text {number}"}
            await speaker.say(type="write", id=number, readings=[reading])
        heard = [await speaker.hear() for _ in range(120)]
        acks = [message for message in heard if message["type"] == "ack"]
        readings = [message for message in heard if message["type"] == "reading"]
        assert [(ack["id"], ack["accepted"]) for ack in acks] == [(number, 1) for number in range(60)]
        assert [reading["value"] for reading in readings] == [f"text {number}" for number in range(60)]

        async with asyncio.timeout(PATIENCE):
            await (await socket.ping(b"there?"))
        await speaker.say(type="nonsense", id=7)
        refused = await speaker.hear()
        assert (refused["type"], refused["id"], refused["code"]) == ("error", 7, "invalid")
        await speaker.say(type="unsubscribe", id="all")
        assert (await speaker.hear())["type"] == "unsubscribed"
        await socket.close(1000, "enough")
        assert (socket.close_code, socket.close_reason) == (1000, "")
    await until(lambda: len(gate.gate.live.streams) == 0)


async def test_websockets_is_told_by_the_close_code_why_it_must_not_come_back(gate: Running) -> None:
    cases: list[tuple[str, str | bytes, int]] = [
        (gate.token(), "no JSON", 4400),
        (gate.token(), b"\x00", 4400),
        (gate.token(), "x" * 70_000, 1009),
        (gate.token(("devices:read",)), "", 4403),
    ]
    for token, data, code in cases:
        async with speaking(gate.port, token, packed=False) as socket:
            if data:
                await socket.send(data)
            async with asyncio.timeout(PATIENCE):
                # Nothing but, perhaps, what is wrong comes before the end.
                with contextlib.suppress(websockets.ConnectionClosed):
                    while True:
                        assert json.loads(await socket.recv())["type"] == "error"
            assert socket.close_code == code
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with speaking(gate.port, "no token", packed=False):
            pass
    assert refused.value.response.status_code == 401
