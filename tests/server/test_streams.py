"""Streams as the process has them: their connections, and how they end when it does."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from server.protocol import GateProtocol
from tests.handlers.sockets import connect
from tests.handlers.test_sse import listen, reading
from tests.handlers.test_websocket import HANDSHAKE, client_frame
from tests.handlers.wire import held_commit
from tests.raw import Raw, request, until
from tests.running import PATIENCE, Caller, run_gate, run_process


async def socket(gate: Caller, token: str) -> Raw:
    """A WebSocket that follows everything, byte by byte."""
    raw = await Raw.open(gate.port, limit=1 << 16)
    await raw.send(request("GET", "/v1/stream", token=token, headers=HANDSHAKE))
    await raw.reader.readuntil(b"\r\n\r\n")
    await raw.send(client_frame(1, b'{"type":"subscribe","id":1,"match":[">"]}'))
    await raw.reader.readuntil(b'"type":"live"')
    await raw.reader.readuntil(b"}")
    return raw


async def events(gate: Caller, token: str) -> Raw:
    """The same over server-sent events."""
    raw = await Raw.open(gate.port, limit=1 << 16)
    await raw.send(request("GET", "/v1/events", token=token))
    await raw.reader.readuntil(b"event: recovery")
    await raw.reader.readuntil(b"\n\n")
    return raw


async def test_sigterm_with_a_thousand_streams_says_good_bye_to_each(tmp_path: Path) -> None:
    """Promise 10: each gets a position to resume from, and the process is gone within 10 s."""
    async with run_process(tmp_path / "data") as gate:
        token = gate.token()
        raws: list[Raw] = []
        for _ in range(20):
            raws += await asyncio.gather(*(socket(gate, token) for _ in range(25)))
            raws += await asyncio.gather(*(events(gate, token) for _ in range(25)))
        position = (await gate.write("a", reading(1))).json["position"]
        started = time.monotonic()
        gate.signal(signal.SIGTERM)
        ends = await asyncio.gather(*(_last_words(raw) for raw in raws))
        assert await gate.ended() == 0
        assert time.monotonic() - started < 10
        for index, end in enumerate(ends):
            # Blocks of 25 sockets, then 25 event streams.
            if index // 25 % 2 == 0:
                assert end.endswith(b"\x03\xe9" + position.encode()), end[-100:]
            else:
                assert end.endswith(f'data: {{"position":"{position}"}}\n\n'.encode()), end[-100:]
        for raw in raws:
            raw.leave()


async def _last_words(raw: Raw) -> bytes:
    said = b""
    async with asyncio.timeout(PATIENCE):
        while piece := await raw.reader.read(65536):
            said += piece
            close = said.rfind(b"\x88")
            if close >= 0 and len(said) == close + 2 + said[close + 1]:
                # The answer that RFC 6455 wants.
                await raw.send(client_frame(8, b"\x03\xe9"))
    return said


async def test_clients_that_do_not_answer_hold_up_no_end(tmp_path: Path) -> None:
    async with run_process(tmp_path / "data") as gate:
        token = gate.token()
        raws = [await socket(gate, token) for _ in range(20)]
        gate.signal(signal.SIGTERM)
        started = time.monotonic()
        assert await gate.ended() == 0
        assert time.monotonic() - started < 10
        for raw in raws:
            raw.leave()


async def test_what_was_written_on_a_socket_is_acknowledged_before_the_end(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data") as gate, connect(gate) as ws:
        await ws.follow(1, "a")
        async with held_commit(gate) as held:
            await ws.say(type="write", id=9, readings=[{"device": "a", **reading(1)}])
            await held.arrived.wait()
            drain = asyncio.create_task(gate.gate.drain())
            await until(lambda: gate.gate.server.lane.closing)
            held.go.set()
            live, ack = await ws.hear(), await ws.hear()
            assert (live["type"], ack["type"]) == ("reading", "ack")
            ended = await ws.end()
            assert (ended.code, ended.reason) == (1001, ack["position"])
            await drain


async def test_a_follower_resumes_over_a_restart_and_misses_nothing(tmp_path: Path) -> None:
    position = ""
    heard: list[Any] = []
    for start in range(0, 300, 100):
        async with run_process(tmp_path / "data") as gate, connect(gate) as ws:
            options = {"since": position} if position else {}
            first = await ws.follow(1, "a", **options)
            assert first[0]["recovered"] is (True if position else None)
            for message in first[1:]:
                heard += [item["value"] for item in message.get("items", [])]
            await gate.write("a", *(reading(n) for n in range(start, start + 100)))
            for _ in range(50):
                message = await ws.hear()
                heard.append(message["value"])
                position = message["position"]
            gate.process.kill()
            await gate.ended()
    async with run_process(tmp_path / "data") as gate, connect(gate) as ws:
        for message in await ws.follow(1, "a", since=position):
            heard += [item["value"] for item in message.get("items", [])]
    assert heard == list(range(300))


@pytest.mark.parametrize("fast_lane", ["0", "1"])
async def test_aiohttp_forgets_a_connection_that_a_stream_has(tmp_path: Path, fast_lane: str) -> None:
    async with run_gate(tmp_path / "data", FAST_LANE=fast_lane) as gate:
        server = gate.gate.server
        async with await socket(gate, gate.token()) as one, await events(gate, gate.token()) as other:
            await until(lambda: server.open == 2)
            assert not server._connections
            await gate.write("a", reading("x"))
            await one.reader.readuntil(b'"x"')
            await other.reader.readuntil(b'"x"')
            tasks = {str(task.get_coro()) for task in asyncio.all_tasks()}
            # That of the connection which has written.
            assert sum("RequestHandler.start" in name for name in tasks) <= 1
        await until(lambda: server.open <= 1)


async def test_streams_count_as_connections(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", MAX_CONNECTIONS="2") as gate:
        async with (
            await events(gate, gate.token()),
            await events(gate, gate.token()),
            await Raw.open(gate.port) as third,
        ):
            assert (await third.answer()).status == 503
        await until(lambda: gate.gate.server.open == 0)


async def test_a_stream_begins_behind_other_requests_of_its_connection(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data") as gate, await Raw.open(gate.port) as raw:
        token = gate.token()
        for _ in range(3):
            assert (await raw.ask(request("GET", "/v1/latest", token=token))).status == 200
        await raw.send(
            request("GET", "/livez") + request("GET", "/v1/events?match=a", token=token) + b"GET /livez"
        )
        assert (await raw.answer()).status == 200
        await raw.reader.readuntil(b"event: recovery")
        await gate.write("a", reading("here"))
        await raw.reader.readuntil(b"here")


async def test_the_same_stream_head_again_and_again(tmp_path: Path) -> None:
    """A head that the memo could know opens a stream each time, with a verdict of its own."""
    async with run_gate(tmp_path / "data") as gate:
        token = gate.token()
        head = request("GET", "/v1/events?match=a", token=token)
        for _ in range(4):
            async with await Raw.open(gate.port) as raw:
                await raw.send(head)
                position = (await gate.write("a", reading(1))).json["position"]
                await raw.reader.readuntil(position.encode())


async def test_a_head_that_comes_in_pieces_opens_a_stream(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data") as gate, await Raw.open(gate.port) as raw:
        for byte in request("GET", "/v1/events?match=a", token=gate.token()):
            await raw.send(bytes((byte,)))
        await raw.reader.readuntil(b"event: recovery")


async def test_a_client_that_is_gone_when_its_stream_begins_leaves_nothing(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data") as gate:
        for path, headers in (("/v1/events", ()), ("/v1/stream", HANDSHAKE)):
            for _ in range(30):
                raw = await Raw.open(gate.port)
                raw.writer.write(request("GET", path, token=gate.token(), headers=headers))
                raw.leave()
        await until(lambda: gate.gate.server.open == 0 and len(gate.gate.live.streams) == 0)


async def test_a_stream_that_begins_while_the_gate_closes_ends_with_a_verdict(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data") as gate:
        gate.gate.live.streams.closing = True
        async with listen(gate) as stream:
            assert (await stream.verdict()).data["recovered"] is None
            assert [event.name for event in await stream.ended()] == ["position"]
        # Who has not said yet from where it goes on must not take the head for it.
        async with connect(gate) as ws:
            ended = await ws.end()
            assert (ended.code, ended.reason) == (1001, "")


def test_what_a_hand_over_relies_on_is_still_there() -> None:
    """Names of aiohttp that are not its public ones."""
    names = {"_task_handler", "_current_request", "_waiter", "_message_tail", "transport"}
    slots = {name for kind in GateProtocol.__mro__ for name in getattr(kind, "__slots__", ())}
    assert names <= slots
