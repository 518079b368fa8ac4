"""The life of a connection in both lanes: keep-alive, pending answers, shutdown, changes of lane."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.handlers.wire import held_commit
from tests.raw import Answer, Raw, request, until
from tests.running import PATIENCE, Running, run_gate
from tests.server.lanes import Client, both_lanes

DEVICE = "demo.a"
PATH = f"/v1/devices/{DEVICE}/readings"
LATEST = f"/v1/devices/{DEVICE}/latest"
KEEPALIVE = 0.4
# What reading from a connection raises that was closed or reset.
ENDED = (asyncio.IncompleteReadError, ConnectionError)
LANES = pytest.mark.parametrize("lane", ["1", "0"], ids=["fast", "common"])


def reading(ts: int) -> bytes:
    return b'{"metric": "t", "value": 1, "ts": %d}' % ts


def get(token: str, *lines: str, target: str = LATEST) -> bytes:
    return request("GET", target, token=token, headers=lines)


def post(token: str, ts: int, *lines: str) -> bytes:
    return request("POST", PATH, reading(ts), token=token, headers=lines)


def chunked(token: str, ts: int) -> bytes:
    head = request("POST", PATH, token=token, headers=("Transfer-Encoding: chunked",))
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(reading(ts)), reading(ts))


async def stored(gate: Running) -> list[int]:
    """The times of what is stored, in the order of the log."""
    page = (await gate.get("/v1/readings?since=earliest&limit=1000&time=ms")).json
    assert page["end"]
    return [item["ts"] for item in page["items"]]


@pytest.fixture(params=["1", "0"], ids=["fast", "common"])
async def gate(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """A gate of each lane in turn."""
    async with run_gate(tmp_path / "data", FAST_LANE=request.param) as running:
        await running.write(DEVICE, {"metric": "t", "value": 1, "ts": 1})
        yield running


@pytest.fixture
def brief(gate: Running) -> Running:
    """It has little patience for idle connections that are made from now on.

    A test that stands still for KEEPALIVE between two requests loses its connection by right.
    """
    gate.gate.server._kwargs["keepalive_timeout"] = KEEPALIVE
    return gate


# -- keep-alive --------------------------------------------------------------------------------


KINDS = ("known", "new", "write", "coroutine", "refused", "body in pieces")


async def test_a_busy_connection_outlives_its_keepalive_timeout_three_times_and_an_idle_one_ends(
    brief: Running,
) -> None:
    """Every answer moves the deadline: it is never due while less than the timeout has passed."""
    await asyncio.gather(*(keep_busy(brief, kind) for kind in KINDS))


async def keep_busy(gate: Running, kind: str) -> None:
    """A connection with one kind of requests, for three and a half timeouts; then an idle one."""
    async with asyncio.timeout(2 * PATIENCE):
        while not await kept_busy(gate, kind):
            pass


async def kept_busy(gate: Running, kind: str) -> bool:
    """Whether the requests came in time, so that the connection had to stay."""
    loop, token = asyncio.get_running_loop(), gate.token()
    async with await Raw.open(gate.port) as connection:
        # Not later than the gate's last answer, from which on its deadline runs.
        begun = asked = loop.time()
        number = 0
        while asked < begun + 3.5 * KEEPALIVE:
            number += 1
            before, asked = asked, loop.time()
            data = {
                "known": get(token),
                "new": get(token, f"X-Request-ID: {number}"),
                "write": post(token, number),
                "coroutine": get(token, target="/v1/devices"),
                "refused": get(""),
                "body in pieces": post(token, number),
            }[kind]
            try:
                if kind == "body in pieces":
                    await connection.send(data[:-5])
                    data = data[-5:]
                status = (await connection.ask(data)).status
            except ENDED:
                assert loop.time() - before >= KEEPALIVE, kind
                return False
            assert status == (401 if kind == "refused" else 200), kind
            await asyncio.sleep(KEEPALIVE / 2)
        assert await connection.ended() == b""
        # Sooner than by any other deadline.
        assert KEEPALIVE - 0.05 < loop.time() - asked < gate.settings.header_timeout, kind
    return True


async def pending(gate: Running, data: bytes, arrived: Callable[[], bool]) -> Raw:
    """A connection that has served before, with requests whose answer is pending when they have `arrived`."""
    loop = asyncio.get_running_loop()
    while True:
        begun = loop.time()
        connection = await Raw.open(gate.port)
        reader = connection.reader
        with contextlib.suppress(*ENDED):
            for _ in range(2):
                await connection.ask(get(gate.token()))
            await connection.send(data)
            await until(lambda: arrived() or reader.at_eof() or reader.exception())  # noqa: B023
        if arrived():
            return connection
        assert loop.time() - begun >= KEEPALIVE
        connection.leave()


async def test_a_commit_that_takes_longer_than_the_keepalive_timeout_is_answered(brief: Running) -> None:
    """A pending answer suspends the deadline, which begins anew with the answer."""
    loop, token, commit = asyncio.get_running_loop(), brief.token(), brief.gate.commit
    connections: list[Raw] = []

    async with held_commit(brief) as held:

        def arrived() -> bool:
            """The first is held, the others wait for it."""
            number = len(connections)
            return commit.figures.queued_readings == number if number else held.arrived.is_set()

        for number in range(10):
            data = post(token, 100 + number) + get(token) * (number % 3)
            connections.append(await pending(brief, data, arrived))
        # Time itself is what is tested.
        await asyncio.sleep(3 * KEEPALIVE)
        assert brief.gate.server.open == 11
        released = loop.time()
        held.go.set()
        for number, connection in enumerate(connections):
            for _ in range(1 + number % 3):
                assert (await connection.answer()).status == 200
            try:
                assert (await connection.ask(get(token))).status == 200
            except ENDED:
                assert loop.time() - released >= KEEPALIVE
        for connection in connections:
            assert await connection.ended() == b""
            connection.leave()
    assert sorted(await stored(brief)) == [1, *range(100, 110)]


async def test_what_comes_while_an_answer_is_pending_waits_for_its_turn(gate: Running) -> None:
    """In pieces of its own, of which each could be answered at once."""
    token = gate.token()
    client = Client(gate)
    await client.send(get(token), get(token), get(token))
    before = len(client.transport.written)
    async with held_commit(gate) as held:
        client.protocol.data_received(post(token, 100, "X-Request-ID: a"))
        async with asyncio.timeout(PATIENCE):
            await held.arrived.wait()
        for data in (get(token), get(token, "X-Request-ID: b"), post(token, 101, "X-Request-ID: c")):
            client.protocol.data_received(data)
            for _ in range(5):
                await asyncio.sleep(0)
        assert len(client.transport.written) == before
    await client.settled()
    ids = re.findall(rb"X-Request-ID: (\S+)", client.transport.written[before:])
    assert [ids[0], *ids[2:]] == [b"a", b"b", b"c"]
    assert len(ids) == 4
    client.close()
    assert await stored(gate) == [1, 100, 101]


async def test_a_slow_coroutine_suspends_the_deadline_too(
    brief: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, go = asyncio.Event(), asyncio.Event()
    range_of = brief.gate.engine.range

    async def late(*arguments: object, **options: object) -> object:
        arrived.set()
        await go.wait()
        return await range_of(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(brief.gate.engine, "range", late)
    data = get(brief.token(), target=PATH) + get(brief.token())
    async with await pending(brief, data, arrived.is_set) as connection:
        await asyncio.sleep(3 * KEEPALIVE)
        go.set()
        assert len((await connection.answer()).json["items"]) == 1
        assert (await connection.answer()).status == 200
        assert await connection.ended() == b""


@pytest.mark.parametrize("body", [b"not json", b'{"metric": "t", "value": 1, "ts": 9}', b"{}", b"[]", b" "])
async def test_a_connection_that_is_idle_after_a_body_is_left_alone(gate: Running, body: bytes) -> None:
    """Whether it was accepted or not: nothing is missing, so nothing is too late."""
    token = gate.token()
    async with await Raw.open(gate.port) as connection:
        for data in (request("POST", PATH, body, token=token), request("GET", LATEST, body, token=token)):
            for _ in range(4):
                assert (await connection.ask(data)).status in (200, 400, 422)
                gate.gate.server.sweep()
        assert (await connection.ask(get(token))).status == 200


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_client_that_leaves_in_the_moment_that_its_request_comes_breaks_nothing(
    gate: Running, version: str
) -> None:
    """What breaks is logged as an error, which the gate of a test must not have."""
    client = Client(gate)
    await client.settled()
    data = request("POST", PATH, reading(50), token=gate.token(), version=version)
    client.protocol.data_received(data)
    client.protocol.connection_lost(None)
    await until(lambda: gate.gate.server.open == 1)
    await gate.gate.commit.drain()
    assert await stored(gate) in ([1], [1, 50])


# -- shutdown ----------------------------------------------------------------------------------

CONNECTIONS = 60


@LANES
@pytest.mark.parametrize("behind", ["nothing", "reads", "writes", "half a request"])
async def test_pending_answers_arrive_at_the_end_and_nothing_of_them_is_lost(
    tmp_path: Path, lane: str, behind: str
) -> None:
    """Promise 10. What stands behind the last answer was not begun: `Connection: close` says so."""
    async with run_gate(tmp_path / "data", FAST_LANE=lane) as gate, held_commit(gate) as held:
        token = gate.token()
        connections = [await Raw.open(gate.port) for _ in range(CONNECTIONS)]
        for number, connection in enumerate(connections):
            for _ in range(2):
                await connection.ask(get(token))
            burst = get(token, "X-Request-ID: first") + post(token, 1000 + number, "X-Request-ID: last")
            match behind:
                case "reads":
                    burst += get(token) * 3
                case "writes":
                    burst += post(token, 5000 + number) + post(token, 6000 + number)
                case "half a request":
                    burst += post(token, 5000 + number)[:-10]
            await connection.send(burst)
            first = await connection.answer()
            assert (first.status, first.headers["x-request-id"]) == (404, "first")
            assert not first.closing
        async with asyncio.timeout(PATIENCE):
            await held.arrived.wait()
            # All of them are read: the writes wait for the one that is held.
            await until(lambda: gate.gate.commit.figures.queued_readings == CONNECTIONS - 1)
        draining = asyncio.create_task(gate.gate.server.drain(8))
        await until(lambda: gate.gate.server.lane.closing)
        assert gate.gate.server.open == CONNECTIONS
        held.go.set()
        for connection in connections:
            answer = await connection.answer()
            assert (answer.status, answer.headers["x-request-id"]) == (200, "last")
            assert answer.json["accepted"] == 1
            assert answer.closing
            assert await connection.ended() == b""
            connection.leave()
        async with asyncio.timeout(PATIENCE):
            await draining
    async with run_gate(tmp_path / "data") as gate:
        assert sorted(await stored(gate)) == list(range(1000, 1000 + CONNECTIONS))


@LANES
@pytest.mark.parametrize("warm", [0, 3])
async def test_a_request_that_is_whole_only_at_the_end_is_the_last_one_of_its_connection(
    tmp_path: Path, lane: str, warm: int
) -> None:
    """Nothing may follow an answer that says close, and nothing that was stored may go without answer."""
    async with run_gate(tmp_path / "data", FAST_LANE=lane) as gate:
        token = gate.token()
        connections = [await Raw.open(gate.port) for _ in range(20)]
        for number, connection in enumerate(connections):
            for turn in range(warm):
                await connection.ask(post(token, 100 * turn + number))
            await connection.send(post(token, 1000 + number)[:-5])
        # Read by the gate: it has answered somebody who came later.
        assert (await gate.get("/livez")).status == 200
        draining = asyncio.create_task(gate.gate.server.drain(8))
        await until(lambda: gate.gate.server.lane.closing)
        for number, connection in enumerate(connections):
            rest = post(token, 1000 + number)[-5:]
            await connection.send(rest + get(token) + post(token, 5000 + number) + get(token))
        for connection in connections:
            answer = await connection.answer()
            assert answer.json["accepted"] == 1
            assert answer.closing
            assert await connection.ended() == b""
            connection.leave()
        async with asyncio.timeout(PATIENCE):
            await draining
    async with run_gate(tmp_path / "data") as gate:
        written = {100 * turn + number for turn in range(warm) for number in range(20)}
        assert set(await stored(gate)) == written | set(range(1000, 1020))


async def test_at_the_end_only_the_first_of_several_known_requests_is_answered(tmp_path: Path) -> None:
    """It was begun before the end; nothing may follow an answer that says `Connection: close`."""
    async with run_gate(tmp_path / "data", FAST_LANE="1") as gate:
        token = gate.token()
        await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1})
        known = request("GET", LATEST, b" " * 30, token=token)
        async with await Raw.open(gate.port) as connection:
            for _ in range(3):
                assert (await connection.ask(known)).status == 200
            await connection.send(known[:-20])
            assert (await gate.get("/livez")).status == 200
            draining = asyncio.create_task(gate.gate.server.drain(8))
            await until(lambda: gate.gate.server.lane.closing)
            await connection.send(known[-20:] + known * 3)
            answer = await connection.answer()
            assert (answer.status, answer.closing) == (200, True)
            assert await connection.ended() == b""
        async with asyncio.timeout(PATIENCE):
            await draining


# -- many requests, and changes of lane --------------------------------------------------------


@pytest.mark.parametrize("count", [31, 32, 33, 64, 65, 200])
@pytest.mark.parametrize("kind", ["known", "new", "mixed"])
async def test_a_connection_has_more_than_32_requests_alone_and_in_one_burst(
    gate: Running, count: int, kind: str
) -> None:
    """aiohttp keeps 32 in its queue: one that is forgotten there would stop its parser."""
    token = gate.token()

    def one(number: int) -> bytes:
        line = "X-Request-ID: same" if kind == "known" else f"X-Request-ID: n{number}"
        if kind == "mixed" and number % 3 == 0:
            return post(token, 100, line)
        if kind == "mixed" and number % 7 == 0:
            return get(token, line, target="/v1/devices")
        return get(token, line)

    ids = ["same" if kind == "known" else f"n{number}" for number in range(count)]
    async with await Raw.open(gate.port) as connection:
        answers: list[Answer] = [await connection.ask(one(number)) for number in range(count)]
        connection.writer.write(b"".join(map(one, range(count))))
        answers += [await connection.answer() for _ in range(count)]
        assert {answer.status for answer in answers} == {200}
        assert [answer.headers["x-request-id"] for answer in answers] == ids * 2


async def test_chunks_after_plain_requests_and_back_again(gate: Running) -> None:
    token = gate.token()
    async with await Raw.open(gate.port) as connection:
        for turn in range(40):
            for _ in range(3):
                assert (await connection.ask(get(token))).status == 200
            assert (await connection.ask(chunked(token, 100 + turn))).json["accepted"] == 1
            assert (await connection.ask(post(token, 500 + turn))).json["accepted"] == 1
        glued = get(token) + chunked(token, 900) + get(token) + chunked(token, 901) + post(token, 902)
        connection.writer.write(glued)
        for _ in range(5):
            assert (await connection.answer()).status == 200
    turns = [ts for turn in range(40) for ts in (100 + turn, 500 + turn)]
    assert await stored(gate) == [1, *turns, 900, 901, 902]


def upgrade(token: str, target: str, *lines: str) -> bytes:
    """The handshake of RFC 6455 section 1.2."""
    return get(
        token,
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *lines,
        target=target,
    )


@pytest.mark.parametrize("plain", [0, 1, 3, 40])
async def test_an_upgrade_after_plain_requests_is_answered_as_the_common_lane_answers_it(
    tmp_path: Path, plain: int
) -> None:
    """Whatever it says: today there is no WebSocket. Where it is declined the next request is answered."""
    async with both_lanes(tmp_path) as gates:
        for target, token in (
            (LATEST, gates[0].token()),
            ("/livez", ""),
            ("/v1/stream", gates[0].token()),
            ("/v1/stream", ""),
        ):
            said = []
            for gate in gates:
                async with await Raw.open(gate.port) as connection:
                    for _ in range(plain):
                        assert (await connection.ask(get(gates[0].token()))).status == 404
                    answer = await connection.ask(upgrade(token, target))
                    for name in ("date", "x-request-id"):
                        answer.headers.pop(name, None)
                    body = json.loads(answer.body) if answer.body else {}
                    body.pop("instance", None)
                    answer.headers.pop("content-length", None)
                    said.append((answer.status, answer.headers, body))
                    if answer.status != 101 and not answer.closing:
                        assert (await connection.ask(get("", target="/livez"))).status == 200
            assert said[0] == said[1], target


async def test_what_comes_behind_an_upgrade_that_is_declined_is_answered_in_order(gate: Running) -> None:
    token = gate.token()
    async with await Raw.open(gate.port) as connection:
        for _ in range(3):
            await connection.ask(get(token))
        connection.writer.write(
            get(token, "X-Request-ID: a")
            + upgrade(token, LATEST, "X-Request-ID: b")
            + get(token, "X-Request-ID: c")
            + post(token, 100, "X-Request-ID: d")
            + upgrade(token, "/livez", "X-Request-ID: e")
            + get(token, "X-Request-ID: f")
        )
        ids = [(await connection.answer()).headers["x-request-id"] for _ in range(6)]
        assert ids == list("abcdef")
    assert await stored(gate) == [1, 100]


async def test_a_client_that_sends_on_while_its_answer_is_pending_is_not_read_without_end(
    gate: Running,
) -> None:
    """Promise 9: what is kept for a connection is bounded, and all of it is answered in the end."""
    token = gate.token()
    async with held_commit(gate) as held, await Raw.open(gate.port, limit=1 << 24) as connection:
        for _ in range(3):
            await connection.ask(get(token))
        connection.writer.write(post(token, 100))
        async with asyncio.timeout(PATIENCE):
            await held.arrived.wait()
        count = 40_000
        burst = get(token) * count
        assert len(burst) > 16 << 20
        connection.writer.write(burst)
        sent = 0

        async def stalled() -> bool:
            """Whether nothing went for a while."""
            nonlocal sent
            before, sent = sent, len(burst) - connection.writer.transport.get_write_buffer_size()
            return sent == before

        async with asyncio.timeout(PATIENCE):
            while not await stalled():
                await asyncio.sleep(0.1)
        # The kernel's buffers and what the gate keeps.
        assert sent < 12 << 20
        held.go.set()
        for _ in range(count + 1):
            assert (await connection.answer()).status == 200
