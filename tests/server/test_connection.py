"""Connections: how long they live, in which order they are answered, what a client may do to them."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from unittest.mock import Mock

import pytest

from server import protocol
from storage.models import Write
from tests.raw import Raw, request, until
from tests.running import PATIENCE, Running, open_files, run_gate

READING = b'{"metric": "m", "value": 1}'
PATH = "/v1/devices/d/readings"
LIVEZ = request("GET", "/livez")


@asynccontextmanager
async def leaving_nothing(gate: Running) -> AsyncIterator[None]:
    """Connections, files and tasks are back at the start value when it ends."""
    before = gate.gate.server.open, open_files(), len(asyncio.all_tasks())
    yield
    try:
        await until(
            lambda: (
                (gate.gate.server.open, open_files(), len(asyncio.all_tasks())) <= before
                and len(asyncio.all_tasks()) <= before[2]
            )
        )
    except AssertionError:
        after = gate.gate.server.open, open_files(), len(asyncio.all_tasks())
        raise AssertionError(f"{before} became {after}: {asyncio.all_tasks()}") from None


# Much longer than a test waits: what ends then was not ended by this.
TIMEOUTS = {"HEADER_TIMEOUT": "60s", "BODY_TIMEOUT": "60s", "KEEPALIVE_TIMEOUT": "60s"}


@pytest.fixture
async def hasty_head(tmp_path: Path) -> AsyncIterator[Running]:
    """A gate with little patience for heads."""
    async with run_gate(tmp_path / "data", **{**TIMEOUTS, "HEADER_TIMEOUT": "1s"}) as running:
        yield running


@pytest.fixture
async def hasty_body(tmp_path: Path) -> AsyncIterator[Running]:
    """A gate with little patience for bodies, and for those who do not read theirs."""
    async with run_gate(tmp_path / "data", **{**TIMEOUTS, "BODY_TIMEOUT": "1s"}) as running:
        yield running


@pytest.fixture
async def hasty_idle(tmp_path: Path) -> AsyncIterator[Running]:
    """A gate with little patience between two requests."""
    async with run_gate(tmp_path / "data", **{**TIMEOUTS, "KEEPALIVE_TIMEOUT": "3s"}) as running:
        yield running


async def many_readings(gate: Running, count: int) -> None:
    """Store readings with a text of 1 KiB each."""
    for first in range(0, count, 1000):
        items = [
            {"metric": "m", "ts": first + n, "value": "x" * 1000} for n in range(min(1000, count - first))
        ]
        assert (await gate.write("d", *items)).status == 200


# -- keeping alive and closing -----------------------------------------------------------------


async def test_a_connection_serves_one_request_after_the_other(gate: Running) -> None:
    async with await Raw.open(gate.port) as connection:
        for _ in range(3):
            answer = await connection.ask(LIVEZ)
            assert (answer.status, answer.version) == (200, "HTTP/1.1")
            assert "connection" not in answer.headers


async def test_http_1_0_closes_unless_it_asks_to_keep_alive_and_is_told(gate: Running) -> None:
    async with await Raw.open(gate.port) as connection:
        answer = await connection.ask(request("GET", "/livez", version="1.0"))
        assert answer.closing
        assert await connection.ended() == b""
    async with await Raw.open(gate.port) as connection:
        for _ in range(2):
            ask = request("GET", "/livez", version="1.0", headers=("Connection: keep-alive",))
            answer = await connection.ask(ask)
            assert answer.headers["connection"] == "keep-alive"
            assert answer.headers["content-length"] == str(len(answer.body))


async def test_chunks_in_http_1_0_end_the_connection(gate: Running) -> None:
    """RFC 9112 section 6.1: the framing is faulty there."""
    lines = ("Connection: keep-alive", "Transfer-Encoding: chunked")
    async with await Raw.open(gate.port) as connection:
        answer = await connection.ask(
            request("POST", PATH, token=gate.token(), version="1.0", headers=lines) + b"0\r\n\r\n"
        )
        assert answer.closing
        assert await connection.ended() == b""


async def test_connection_close_is_honoured(gate: Running) -> None:
    async with await Raw.open(gate.port) as connection:
        answer = await connection.ask(request("GET", "/livez", headers=("Connection: close",)))
        assert answer.closing
        assert await connection.ended() == b""


async def test_an_idle_connection_is_closed_after_the_keepalive_timeout(hasty_idle: Running) -> None:
    loop = asyncio.get_running_loop()
    async with leaving_nothing(hasty_idle), await Raw.open(hasty_idle.port) as connection:
        begun = loop.time()
        await connection.ask(LIVEZ)
        assert await connection.ended() == b""
        assert loop.time() - begun > 2.5


async def test_connections_over_the_cap_are_turned_away_and_those_within_it_are_served(
    tmp_path: Path,
) -> None:
    async with run_gate(tmp_path / "data", MAX_CONNECTIONS="3") as gate:
        kept = [await Raw.open(gate.port) for _ in range(3)]
        for connection in kept:
            assert (await connection.ask(LIVEZ)).status == 200
        async with await Raw.open(gate.port) as one_more:
            answer = await one_more.answer()
            assert (answer.status, answer.code) == (503, "overloaded")
            assert answer.headers["retry-after"] == "1"
            assert await one_more.ended() == b""
        assert (await kept[0].ask(LIVEZ)).status == 200
        assert gate.gate.server.refused == 1
        for connection in kept:
            connection.leave()
        await until(lambda: gate.gate.server.open == 0)
        assert (await gate.get("/livez")).status == 200


# -- order and pieces --------------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order(gate: Running) -> None:
    ids = [f"id-{number}" for number in range(100)]
    token = gate.token()
    asks = [
        request("POST", PATH, READING, token=token, headers=(f"X-Request-ID: {id}",))
        if number % 2
        else request("GET", "/v1/devices/d/latest", token=token, headers=(f"X-Request-ID: {id}",))
        for number, id in enumerate(ids)
    ]
    async with await Raw.open(gate.port) as connection:
        connection.writer.write(b"".join(asks))
        assert [(await connection.answer()).headers["x-request-id"] for _ in ids] == ids


async def test_a_request_in_segments_of_one_byte_is_understood(gate: Running) -> None:
    async with await Raw.open(gate.port) as connection:
        connection.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for byte in request("POST", PATH, READING, token=gate.token()):
                await connection.send(bytes((byte,)))
                await asyncio.sleep(0)
            assert (await connection.answer()).json["accepted"] == 1


async def test_a_body_behind_a_request_that_reads_none_is_skipped(gate: Running) -> None:
    async with await Raw.open(gate.port) as connection:
        assert (await connection.ask(request("GET", "/livez", b"x" * 5000))).status == 200
        assert (await connection.ask(LIVEZ)).status == 200


# -- Expect: 100-continue ----------------------------------------------------------------------


async def test_100_continue_is_answered_once_the_head_is_accepted(gate: Running) -> None:
    lines = ("Expect: 100-continue", f"Content-Length: {len(READING)}")
    async with await Raw.open(gate.port) as connection:
        answer = await connection.ask(request("POST", PATH, token=gate.token(), headers=lines))
        assert answer.status == 100
        assert (await connection.ask(READING)).status == 200
        assert (await connection.ask(LIVEZ)).status == 200


async def test_a_body_that_is_there_already_is_not_asked_for(gate: Running) -> None:
    async with await Raw.open(gate.port) as connection:
        data = request("POST", PATH, READING, token=gate.token(), headers=("Expect: 100-continue",))
        assert (await connection.ask(data)).status == 200


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("Expect: 100-continue", "Content-Length: 5"), 401),
        (("Expect: 100-continue", "Content-Length: 99999999"), 413),
        (("Expect: 100-continue", "Content-Length: 5", "Content-Type: image/png"), 415),
        (("Expect: something", "Content-Length: 5"), 417),
        (("Transfer-Encoding: gzip, chunked",), 400),
        ((), 411),
    ],
)
async def test_a_refused_head_gets_its_answer_without_a_100(
    gate: Running, lines: tuple[str, ...], status: int
) -> None:
    async with await Raw.open(gate.port) as connection:
        token = "" if status == 401 else gate.token()
        answer = await connection.ask(request("POST", PATH, token=token, headers=lines))
        assert answer.status == status
        assert answer.code
        # Whether the body still comes nobody knows, so nothing may follow it.
        assert answer.closing == (answer.status not in (400, 411))


async def test_http_1_0_is_never_told_to_continue(gate: Running) -> None:
    lines = ("Expect: 100-continue", f"Content-Length: {len(READING)}")
    async with await Raw.open(gate.port) as connection:
        await connection.send(request("POST", PATH, token=gate.token(), version="1.0", headers=lines))
        assert (await connection.ask(READING)).status == 200


# -- sizes -------------------------------------------------------------------------------------


async def test_a_chunked_body_is_bounded_like_any_other(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", MAX_BODY="1KiB") as gate:
        head = request("POST", PATH, token=gate.token(), headers=("Transfer-Encoding: chunked",))
        for size, status in ((1024, 400), (1025, 413)):
            async with await Raw.open(gate.port) as connection:
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
                assert (await connection.ask(head + body)).status == status
        async with await Raw.open(gate.port) as connection:
            await connection.send(head)
            assert (await connection.ask(b"%x\r\n%b\r\n" % (5000, b"x" * 5000))).status == 413


async def test_who_is_not_known_yet_may_send_a_form_and_no_more(gate: Running) -> None:
    async with await Raw.open(gate.port) as connection:
        answer = await connection.ask(request("POST", "/v1/token", headers=("Content-Length: 70000",)))
        assert (answer.status, answer.code) == (413, "too_large")


async def test_bodies_that_arrive_take_bounded_memory_together(tmp_path: Path) -> None:
    """Promise 9: past the bound a body is refused with Retry-After, and the others go on."""
    async with run_gate(tmp_path / "data", QUEUE_BYTES="1MiB") as gate:
        token, lane = gate.token(), gate.gate.server.lane
        head = request("POST", PATH, token=token, headers=("Content-Length: 800000",))
        async with await Raw.open(gate.port) as first, await Raw.open(gate.port) as second:
            await first.send(head + b" " * 700_000)
            await until(lambda: lane.held == 700_000)
            await second.send(head + b" " * 700_000)
            answer = await second.answer()
            assert (answer.status, answer.code) == (503, "overloaded")
            assert "retry-after" in answer.headers
            await first.send(b" " * (100_000 - len(READING)) + READING)
            assert (await first.answer()).status == 200
        await until(lambda: lane.held == 0)


# -- HEAD and streams --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/problems", "/nowhere", "/v1/devices/d/latest"])
async def test_head_says_what_get_would_and_has_no_body(gate: Running, path: str) -> None:
    await gate.write("d", {"metric": "m", "value": 1, "ts": 0})
    async with await Raw.open(gate.port) as connection:
        token, id = gate.token(), ("X-Request-ID: a",)
        whole = await connection.ask(request("GET", path, token=token, headers=id))
        head = await connection.ask(request("HEAD", path, token=token, headers=id), head=True)
        for answer in (whole, head):
            del answer.headers["date"]
        assert (head.status, head.headers) == (whole.status, whole.headers)
        assert int(head.headers["content-length"]) == len(whole.body)
        assert (await connection.ask(LIVEZ)).status == 200


async def test_head_of_an_export_has_no_body_either_and_reads_nothing(gate: Running) -> None:
    await gate.write("d", {"metric": "m", "value": 1})
    async with leaving_nothing(gate), await Raw.open(gate.port) as connection:
        ask = request("HEAD", PATH, token=gate.token(), headers=("Accept: text/csv",))
        answer = await connection.ask(ask, head=True)
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.headers["content-type"].startswith("text/csv")
        assert (await connection.ask(LIVEZ)).status == 200


async def test_an_export_comes_in_chunks_or_until_the_connection_closes(gate: Running) -> None:
    await many_readings(gate, 2500)
    async with await Raw.open(gate.port) as connection:
        ask = request("GET", PATH, token=gate.token(), headers=("Accept: text/csv",))
        modern = await connection.ask(ask)
        assert modern.headers["transfer-encoding"] == "chunked"
        assert modern.body.count(b"\r\n") == 2501
        assert (await connection.ask(LIVEZ)).status == 200
        lines = ("Accept: text/csv", "Connection: keep-alive")
        old = await connection.ask(request("GET", PATH, token=gate.token(), version="1.0", headers=lines))
        assert "transfer-encoding" not in old.headers
        assert old.closing
        assert old.body == modern.body
        assert await connection.ended() == b""


async def test_a_reader_that_does_not_read_is_cut_off_and_others_are_unharmed(hasty_body: Running) -> None:
    gate = hasty_body
    await many_readings(gate, 12_000)
    loop = asyncio.get_running_loop()
    async with leaving_nothing(gate):
        accepted = gate.gate.server.accepted
        slow = [await reluctant(gate.port) for _ in range(5)]
        for sock in slow:
            await loop.sock_sendall(
                sock, request("GET", PATH, token=gate.token(), headers=("Accept: text/csv",))
            )
        await until(lambda: gate.gate.server.accepted == accepted + 5)
        took: list[float] = []
        while gate.gate.server.open > 1 or len(took) < 10:
            begun = loop.time()
            assert (await gate.get("/v1/devices/d/latest")).status == 200
            took.append(loop.time() - begun)
        assert median(took) < 0.5
        for sock in slow:
            sock.close()


async def test_whole_answers_that_nobody_reads_are_cut_off_too(hasty_body: Running) -> None:
    """Pipelined, so that the kernel's buffers fill up with small answers."""
    gate = hasty_body
    await many_readings(gate, 100)
    loop = asyncio.get_running_loop()
    ask = request("GET", PATH + "?limit=100", token=gate.token())
    async with leaving_nothing(gate):
        accepted = gate.gate.server.accepted
        sock = await reluctant(gate.port)
        sending = asyncio.ensure_future(loop.sock_sendall(sock, ask * 2000))
        await until(lambda: gate.gate.server.accepted == accepted + 1)
        await until(lambda: gate.gate.server.open == 1)
        await asyncio.wait((sending,))
        sending.exception()
        sock.close()


async def test_an_answer_that_is_kept_for_a_closed_connection_does_not_hold_it(hasty_body: Running) -> None:
    """The last answer fits into our buffer; the client never reads it."""
    gate = hasty_body
    await many_readings(gate, 12_000)
    loop = asyncio.get_running_loop()
    async with leaving_nothing(gate):
        accepted = gate.gate.server.accepted
        sock = await reluctant(gate.port)
        lines = ("Connection: close",)
        await loop.sock_sendall(sock, request("GET", PATH + "?limit=1000", token=gate.token(), headers=lines))
        await until(lambda: gate.gate.server.accepted == accepted + 1)
        await until(lambda: gate.gate.server.open == 1)
        sock.close()


async def test_a_slow_reader_that_reads_gets_everything(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", BODY_TIMEOUT="3s") as gate:
        await many_readings(gate, 12_000)
        loop = asyncio.get_running_loop()
        sock = await reluctant(gate.port, 65536)
        lines = ("Accept: text/csv", "Connection: close")
        await loop.sock_sendall(sock, request("GET", PATH, token=gate.token(), headers=lines))
        data = bytearray()
        begun = loop.time()
        while piece := await loop.sock_recv(sock, 100_000):
            data += piece
            # At most 2 MB/s: each piece is taken in time, all take twice as long as the deadline. By a
            # schedule, so that a busy machine makes no slower one of it.
            await asyncio.sleep(max(0.0, begun + len(data) / 2_000_000 - loop.time()))
        sock.close()
        assert loop.time() - begun > 6
        assert data.endswith(b"\r\n0\r\n\r\n")


async def reluctant(port: int, buffer: int = 4096) -> socket.socket:
    """A connected socket with small buffers."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


async def test_a_client_that_leaves_in_the_middle_of_an_export_leaves_nothing_behind(gate: Running) -> None:
    await many_readings(gate, 10_000)
    async with leaving_nothing(gate):
        for _ in range(20):
            async with await Raw.open(gate.port) as connection:
                ask = request(
                    "GET", "/v1/readings", token=gate.token(), headers=("Accept: application/x-ndjson",)
                )
                await connection.send(ask)
                await connection.reader.readuntil(b"\r\n\r\n")
    assert "unexpected" not in gate.logged()


# -- clients that leave ------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_in_the_middle_of_a_write_leaves_nothing_behind(
    gate: Running, reset: bool
) -> None:
    """The write is committed or not, whole in either case; what was not whole is not stored."""
    token = gate.token()
    async with leaving_nothing(gate):
        for number in range(60):
            body = b'[{"metric": "m", "ts": %d, "value": 1}, {"metric": "n", "ts": %d, "value": 1}]'
            data = request("POST", PATH, body % (number, number), token=token)
            async with await Raw.open(gate.port) as connection:
                if reset:
                    sock = connection.writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await connection.send(data if number % 3 == 0 else data[: len(data) * (number % 3) // 3])
    await gate.gate.commit.drain()
    items = (await gate.get("/v1/readings?limit=1000")).json["items"]
    times = {item["ts"] for item in items}
    assert len(items) == 2 * len(times)
    assert len(times) <= 20
    assert [item["offset"] for item in items] == list(range(1, len(items) + 1))
    assert (await gate.write("d", {"metric": "after", "value": 1})).status == 200


async def test_a_write_goes_through_though_its_client_left_before_the_commit(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 1 the other way round: nobody was told anything, and it is stored once."""
    engine, held = gate.gate.engine, asyncio.Event()
    appended: list[Write] = []
    append = engine.append

    def later(writes: list[Write]) -> asyncio.Future[object]:
        async def run() -> object:
            await held.wait()
            appended.extend(writes)
            return await append(writes)

        return asyncio.ensure_future(run())

    monkeypatch.setattr(engine, "append", later)
    async with leaving_nothing(gate):
        async with await Raw.open(gate.port) as connection:
            await connection.send(request("POST", PATH, READING, token=gate.token()))
            await until(lambda: gate.gate.server.open == 1 and not gate.gate.commit._idle.is_set())
        held.set()
    assert len(appended) == 1
    await gate.gate.commit.drain()
    assert (await gate.get("/v1/devices/d/latest")).json["metrics"]["m"]["value"] == 1


async def test_a_request_that_comes_right_behind_the_end_is_answered(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that has just connected, or been served, is about to ask; half a head is a request already."""
    monkeypatch.setattr(protocol, "LIVELY", PATIENCE)
    livez = request("GET", "/livez")
    fresh, served, half = [await Raw.open(gate.port) for _ in range(3)]
    await half.send(livez[:-5])
    assert (await served.ask(livez)).status == 200
    draining = asyncio.create_task(gate.gate.server.drain(2 * PATIENCE))
    await until(lambda: gate.gate.server.lane.closing)
    for connection in (fresh, served):
        await connection.send(livez)
    for connection in (fresh, served):
        answer = await connection.answer()
        assert (answer.status, answer.closing) == (200, True)
    monkeypatch.setattr(protocol, "LIVELY", 0.0)
    await asyncio.sleep(4 * protocol.DRAIN_EVERY)
    assert not draining.done()
    assert (await half.ask(livez[-5:])).closing
    for connection in (fresh, served, half):
        assert await connection.ended() == b""
        connection.leave()
    await draining


async def test_a_connection_that_came_just_before_the_end_does_not_hold_it_up(gate: Running) -> None:
    """It has not begun to wait for a request when the idle ones are closed."""
    loop, connection, transport = asyncio.get_running_loop(), gate.gate.server(), Mock()
    transport.get_extra_info.return_value = None
    transport.get_write_buffer_size.return_value = 0
    transport.close.side_effect = lambda: loop.call_soon(connection.connection_lost, None)
    connection.connection_made(transport)
    # Sooner than for want of a head.
    async with asyncio.timeout(gate.settings.header_timeout - 2):
        await gate.gate.server.drain(2 * PATIENCE)
    assert gate.gate.server.open == 0


# -- deadlines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"G", b"GET /livez HTTP/1.1\r\nHost: a\r\n", b"\r\nPOST /"])
async def test_half_a_head_is_answered_408_and_the_connection_ends(hasty_head: Running, begun: bytes) -> None:
    async with leaving_nothing(hasty_head), await Raw.open(hasty_head.port) as connection:
        answer = await connection.ask(begun)
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert answer.closing
        assert await connection.ended() == b""


async def test_a_connection_without_a_byte_ends_with_the_header_timeout(hasty_head: Running) -> None:
    async with leaving_nothing(hasty_head), await Raw.open(hasty_head.port) as connection:
        assert await connection.ended() == b""


async def test_a_dripped_head_has_no_more_time_than_any_other(hasty_head: Running) -> None:
    async with leaving_nothing(hasty_head), await Raw.open(hasty_head.port) as connection:
        dripping = asyncio.create_task(drip(connection, PLAIN_HEAD))
        answer = await connection.answer()
        assert answer.status == 408
        await connection.ended()
        dripping.cancel()


async def test_half_a_head_behind_an_answered_request_has_its_own_deadline(hasty_head: Running) -> None:
    async with leaving_nothing(hasty_head), await Raw.open(hasty_head.port) as connection:
        await connection.ask(LIVEZ)
        answer = await connection.ask(LIVEZ[:20])
        assert answer.status == 408
        assert await connection.ended() == b""


@pytest.mark.parametrize("dripped", [False, True])
async def test_half_of_a_second_pipelined_request_ends_the_connection(
    hasty_head: Running, dripped: bool
) -> None:
    async with leaving_nothing(hasty_head), await Raw.open(hasty_head.port) as connection:
        assert (await connection.ask(LIVEZ + PLAIN_HEAD[:20])).status == 200
        dripping = asyncio.create_task(drip(connection, PLAIN_HEAD[20:] if dripped else b""))
        # No 408: whether the bytes behind the first request begin another one was not measured.
        await connection.ended()
        dripping.cancel()


async def test_a_chunked_request_does_not_shorten_the_life_of_its_connection(hasty_idle: Running) -> None:
    lines = ("Transfer-Encoding: chunked",)
    loop = asyncio.get_running_loop()
    async with await Raw.open(hasty_idle.port) as connection:
        # It would run if a head seemed to have begun behind the chunks.
        hasty_idle.gate.server.header_timeout = 1
        begun = loop.time()
        data = request("POST", PATH, token=hasty_idle.token(), headers=lines)
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(READING), READING)
        assert (await connection.ask(data + body)).status == 200
        assert await connection.ended() == b""
        assert loop.time() - begun > 2.5


async def test_half_a_body_is_answered_408_and_the_connection_ends(hasty_body: Running) -> None:
    lines = ("Content-Length: 100",)
    async with leaving_nothing(hasty_body), await Raw.open(hasty_body.port) as connection:
        answer = await connection.ask(request("POST", PATH, token=hasty_body.token(), headers=lines) + b"[")
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert answer.closing
        assert await connection.ended(protocol.LINGER - 1) == b""


async def test_a_dripped_body_has_no_more_time_than_any_other(hasty_body: Running) -> None:
    lines = ("Content-Length: 100000",)
    async with leaving_nothing(hasty_body), await Raw.open(hasty_body.port) as connection:
        await connection.send(request("POST", PATH, token=hasty_body.token(), headers=lines))
        dripping = asyncio.create_task(drip(connection, b"[" * 1000))
        assert (await connection.answer()).status == 408
        await connection.ended(protocol.LINGER - 1)
        dripping.cancel()


PLAIN_HEAD = b"GET /livez HTTP/1.1\r\nHost: gate\r\n" + b"X: a\r\n" * 100


async def drip(connection: Raw, data: bytes) -> None:
    for byte in data:
        try:
            await connection.send(bytes((byte,)))
        except ConnectionError:
            return
        await asyncio.sleep(0.05)
