"""The head memo keeps its rules (DESIGN.md): what it may know, and what it must ask anew at every use."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server import app
from tests.handlers.wire import create_client, log_in, send_form
from tests.raw import Raw, request, until
from tests.running import Running, run_gate
from tests.server.lanes import (
    BYTES,
    ENTRIES,
    EVICTIONS,
    HITS,
    Client,
    Clock,
    ask,
    both_lanes,
    clocked_gate,
    figure,
    same_answers,
    statuses,
)

Gates = tuple[Running, Running]

DEVICE = "demo.a"
PATH = f"/v1/devices/{DEVICE}/readings"
LATEST = f"/v1/devices/{DEVICE}/latest"
READING = b'{"metric": "t", "value": 1, "ts": 1000}'


@pytest.fixture
async def fast(tmp_path: Path) -> AsyncIterator[Running]:
    async with run_gate(tmp_path / "data", FAST_LANE="1") as gate:
        await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        yield gate


def get(token: str, *lines: str, target: str = LATEST) -> bytes:
    return request("GET", target, token=token, headers=lines)


def post(token: str, body: bytes, *lines: str) -> bytes:
    return request("POST", PATH, body, token=token, headers=lines)


def half_of(token: str) -> bytes:
    """A head up to the middle of a header, without Host: what follows may be a whole head by itself."""
    return get(token).replace(b"Host: gate\r\n", b"")[:-2] + b"X-Rest: "


async def known(gate: Running, head: bytes) -> Client:
    """A connection on which a request has become known."""
    client = Client(gate)
    before = await figure(gate, HITS)
    await client.send(head, head, head)
    assert await figure(gate, HITS) == before + 1
    return client


# -- boundary ----------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [0, 1, 3])
async def test_a_token_cut_inside_a_header_is_never_remembered_as_the_head_that_follows(
    fast: Running, warm: int
) -> None:
    """The second half, alone on another connection, must get 401."""
    # It is a whole head by itself, without a token.
    tail = get("")
    first = half_of(fast.token())
    client = Client(fast)
    await client.send(*[get(fast.token())] * warm)
    for _ in range(4):
        await client.send(first, tail)
    assert set(statuses(client)) == {200}
    assert len(statuses(client)) == warm + 4
    assert await ask(fast, tail, tail, tail) == [401, 401, 401]
    # Nor was what came in two pieces remembered under the first of them.
    assert await ask(fast, first, tail) == [200]


async def test_wherever_a_head_is_cut_its_second_half_means_what_it_means_alone(fast: Running) -> None:
    tail = get("")
    whole = half_of(fast.token()) + tail
    for place in range(1, len(whole)):
        client = Client(fast)
        for _ in range(3):
            await client.send(whole[:place], whole[place:])
        assert set(statuses(client)) == {200}, place
        client.close()
    assert await ask(fast, tail, tail) == [401, 401]


FORM = b"POST /v1/token HTTP/1.1\r\nHost: gate\r\n"


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /livez HTTP/1.1\r\nX-Rest: ",
        b"GET /livez HTTP/1.1\r\nX-Rest: a\r",
        FORM + b"Content-Length: %d\r\n\r\n",
        FORM + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n",
        FORM + b"Transfer-Encoding: chunked\r\n\r\n",
        b"GET /livez HTTP/1.1\r",
        b"G",
    ],
    ids=["a header", "a line end", "a body", "a chunk", "a chunk size", "a request line", "a method"],
)
async def test_a_known_head_is_not_looked_up_inside_of_another_request(fast: Running, begun: bytes) -> None:
    """What looks like one is then a value, a body, a chunk, or nothing proper."""
    head = get(fast.token())
    (await known(fast, head)).close()
    if b"%" in begun:
        begun %= len(head)
    hits = await figure(fast, HITS)
    in_one_piece, in_two = Client(fast), Client(fast)
    await in_one_piece.send(begun + head + b"\r\n0\r\n\r\n")
    await in_two.send(begun, head, b"\r\n0\r\n\r\n")
    assert await figure(fast, HITS) == hits
    assert statuses(in_two) == statuses(in_one_piece)
    assert b'"metrics"' not in in_two.transport.written
    in_one_piece.close()
    in_two.close()


# -- only what may be remembered ---------------------------------------------------------------


async def test_a_head_is_remembered_at_its_second_sight_on_one_connection(fast: Running) -> None:
    head = get(fast.token())
    for _ in range(5):
        assert await ask(fast, head) == [200]
    assert await figure(fast, ENTRIES) == 0
    client = await known(fast, head)
    assert await figure(fast, ENTRIES) == 1
    assert statuses(client) == [200, 200, 200]


async def test_heads_that_differ_each_time_never_enter(fast: Running) -> None:
    token = fast.token()
    client = Client(fast)
    await client.send(*[get(token, f"X-Request-ID: {number}") for number in range(50)])
    assert statuses(client) == [200] * 50
    assert await figure(fast, ENTRIES) == 0


def forgotten(token: str, reader: str) -> dict[str, bytes]:
    """Requests that must be parsed and checked anew each time."""
    size = f"Content-Length: {len(READING)}"
    packed = gzip.compress(READING, mtime=0)
    bare = request("POST", PATH, token=token)[:-2]
    pad = "X-Pad: " + "x" * (2049 - len(get(token, "X-Pad: ")))
    return {
        "HTTP/1.0": request("GET", LATEST, token=token, version="1.0", headers=("Connection: keep-alive",)),
        "Connection: close": get(token, "Connection: close"),
        "Expect": post(token, READING, "Expect: 100-continue"),
        "Upgrade": get(token, "Connection: upgrade", "Upgrade: websocket"),
        "Upgrade without Connection": get(token, "Upgrade: websocket"),
        "Content-Encoding": post(token, packed, "Content-Encoding: gzip"),
        "Content-Encoding: identity": post(token, READING, "Content-Encoding: identity"),
        "Transfer-Encoding": bare
        + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(READING), READING),
        "a leading zero": bare + b"Content-Length: 0%d\r\n\r\n" % len(READING) + READING,
        "nine digits": bare + b"Content-Length: %09d\r\n\r\n" % len(READING) + READING,
        "two lengths": bare + f"{size}\r\n{size}\r\n\r\n".encode() + READING,
        "a head of more than 2 KiB": get(token, pad),
        "an empty line before it": b"\r\n" + get(token),
        "no token": get(""),
        "a refused token": get(token[:-4] + "AAAA"),
        "a token of something else": get("eyJhbGciOiJub25lIn0.e30."),
        "a scope that is missing": request("DELETE", f"/v1/devices/{DEVICE}", token=reader),
        "no such path": get(token, target="/v1/nowhere"),
        "no such method": request("PATCH", LATEST, token=token),
        "OPTIONS": request("OPTIONS", LATEST, token=token),
        "an answer in a form that there is not": get(token, "Accept: image/png"),
        "a body in a form that nobody knows": post(token, READING, "Content-Type: image/png"),
        "a query that cannot be read": get(token, target=LATEST + "?a=%ff"),
    }


@pytest.mark.parametrize("kind", forgotten("", ""))
async def test_what_may_not_be_remembered_is_not(fast: Running, kind: str) -> None:
    reader = fast.token(("readings:read",))
    data = forgotten(fast.token(), reader)[kind]
    answers = set()
    for _ in range(2):
        client = Client(fast)
        await client.send(data, data, data, data)
        answers |= set(statuses(client))
        client.close()
    assert answers
    assert await figure(fast, ENTRIES) == 0
    assert await figure(fast, HITS) == 0


async def test_a_head_of_2_kib_is_remembered(fast: Running) -> None:
    token = fast.token()
    pad = "X-Pad: " + "x" * (2048 - len(get(token, "X-Pad: ")))
    assert len(get(token, pad)) == 2048
    await known(fast, get(token, pad))


# -- nothing of the connection -----------------------------------------------------------------


@asynccontextmanager
async def connected(gate: Running, peer: str) -> AsyncIterator[Raw]:
    """A connection from this address."""
    raw = Raw(*await asyncio.open_connection("127.0.0.1", gate.port, local_addr=(peer, 0)))
    async with raw:
        yield raw


@pytest.mark.parametrize("first", ["127.0.0.1", "127.0.0.3"])
async def test_the_address_is_that_of_each_connection_under_one_head(tmp_path: Path, first: str) -> None:
    """127.0.0.3 is a trusted proxy: whoever else sends the same head is not believed."""
    options = {"FAST_LANE": "1", "ACCESS_LOG": "1", "TRUSTED_PROXIES": "127.0.0.3/32"}
    async with run_gate(tmp_path / "data", **options) as gate:
        head = get(gate.token(), "X-Forwarded-For: 9.9.9.9", "X-Request-ID: looked-at")
        async with connected(gate, first) as connection:
            for _ in range(3):
                await connection.ask(head)
        assert await figure(gate, ENTRIES) == 1
        for peer in ("127.0.0.2", "127.0.0.3", "127.0.0.1"):
            async with connected(gate, peer) as connection:
                for _ in range(2):
                    assert (await connection.ask(head)).headers["x-request-id"] == "looked-at"
        assert await figure(gate, HITS) == 7
        await until(lambda: gate.logged().count("looked-at") == 9)
        lines = [json.loads(line) for line in gate.logged().splitlines()]
    addresses = [line["address"] for line in lines if line.get("request_id") == "looked-at"]
    seen = {"127.0.0.1": "127.0.0.1", "127.0.0.2": "127.0.0.2", "127.0.0.3": "9.9.9.9"}
    assert addresses == [seen[first]] * 3 + [
        seen[peer] for peer in ("127.0.0.2", "127.0.0.3", "127.0.0.1") for _ in range(2)
    ]


async def test_a_limit_per_address_counts_each_address_apart_under_one_head(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", FAST_LANE="1", LOGIN_LIMIT="5") as gate:
        form = b"grant_type=client_credentials&client_id=a&client_secret=b"
        head = request(
            "POST", "/v1/token", form, headers=("Content-Type: application/x-www-form-urlencoded",)
        )
        async with connected(gate, "127.0.0.1") as connection:
            assert [(await connection.ask(head)).status for _ in range(7)] == [401] * 5 + [429] * 2
        assert await figure(gate, HITS) > 0
        async with connected(gate, "127.0.0.2") as connection:
            assert (await connection.ask(head)).status == 401


async def test_a_limit_per_address_counts_the_clients_behind_a_proxy_apart_under_one_head(
    tmp_path: Path,
) -> None:
    options = {"FAST_LANE": "1", "LOGIN_LIMIT": "3", "TRUSTED_PROXIES": "127.0.0.3/32"}
    async with run_gate(tmp_path / "data", **options) as gate:
        lines = ("Content-Type: application/x-www-form-urlencoded", "X-Forwarded-For: 9.9.9.9")
        form = b"grant_type=client_credentials&client_id=a&client_secret=b"
        head = request("POST", "/v1/token", form, headers=lines)
        for peer in ("127.0.0.1", "127.0.0.3"):
            async with connected(gate, peer) as connection:
                said = [(await connection.ask(head)).status for _ in range(5)]
                assert said == [401] * 3 + [429] * 2, peer
        assert await figure(gate, HITS) == 8


# -- what is asked at every use ----------------------------------------------------------------


async def test_an_expired_token_is_refused_under_a_known_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with clocked_gate(tmp_path, monkeypatch) as (gate, clock):
        await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        head = get(gate.token(ttl=100))
        client = await known(gate, head)
        clock.offset += 50
        await client.send(head)
        clock.offset += 60
        await client.send(head)
        assert statuses(client)[3:] == [200, 401]
        assert await ask(gate, head, head) == [401, 401]


async def test_a_token_expires_in_the_middle_of_a_pipeline_of_known_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes behind a pending answer is looked at when its turn comes, with the time of then."""
    async with clocked_gate(tmp_path, monkeypatch) as (gate, clock):
        await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        head = get(gate.token(ttl=100))
        client = await known(gate, head)
        # A coroutine's answer is pending when the time is over.
        client.protocol.data_received(get(gate.token(), target="/v1/readings") + head)
        clock.offset += 200
        await client.settled()
        assert statuses(client)[3:] == [200, 401]


async def revocable(gate: Running) -> tuple[str, str]:
    """The id of a new client and a token of it."""
    client = await create_client(gate)
    return client["id"], (await log_in(gate, client)).json["access_token"]


async def test_the_token_of_a_removed_client_is_refused_under_a_known_head(fast: Running) -> None:
    id, token = await revocable(fast)
    client, other = await known(fast, get(token)), Client(fast)
    await other.send(*[get(token)] * 3)
    await fast.call("DELETE", f"/v1/clients/{id}")
    await client.send(get(token))
    await other.send(get(token))
    assert statuses(client)[3:] == statuses(other)[3:] == [401]


async def test_a_revoked_token_is_refused_under_a_known_head_and_others_are_not(fast: Running) -> None:
    client = await create_client(fast)
    tokens = [(await log_in(fast, client)).json["access_token"] for _ in range(2)]
    one, two = [await known(fast, get(token)) for token in tokens]
    form = {"client_id": client["id"], "client_secret": client["secret"], "token": tokens[0]}
    assert (await send_form(fast, "/v1/token/revoke", form)).status == 200
    await one.send(get(tokens[0]))
    await two.send(get(tokens[1]))
    assert statuses(one)[3:] == [401]
    assert statuses(two)[3:] == [200]
    # Looked at once more, then known again.
    hits = await figure(fast, HITS)
    await two.send(*[get(tokens[1])] * 3)
    assert await figure(fast, HITS) >= hits + 2
    assert statuses(two)[4:] == [200] * 3


async def test_a_token_of_a_key_that_is_no_more_is_refused_under_a_known_head(fast: Running) -> None:
    head = get(fast.token())
    client = await known(fast, head)
    (fast.settings.data / "jwt.secret").unlink()
    fast.gate.reload.set()
    await until(lambda: "the keys were reloaded" in fast.logged())
    await client.send(head)
    assert statuses(client)[3:] == [401]


async def test_keys_that_are_read_again_and_the_same_refuse_nobody(fast: Running) -> None:
    head = get(fast.token())
    client = await known(fast, head)
    fast.gate.reload.set()
    await until(lambda: "the keys were reloaded" in fast.logged())
    await client.send(head, head, head)
    assert statuses(client) == [200] * 6


def left(client: Client) -> list[int]:
    """What the answers say that is left of the limit."""
    return [int(found) for found in re.findall(rb'RateLimit: "[a-z]+";r=(\d+);', client.transport.written)]


async def test_limits_count_and_refuse_under_a_known_head(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", FAST_LANE="1", RATE_LIMIT="60") as gate:
        await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        head = get(gate.token(subject="busy"))
        client = Client(gate)
        await client.send(*[head] * 9)
        assert statuses(client) == [200] * 6 + [429] * 3
        left = [
            int(found) for found in re.findall(rb'RateLimit: "requests";r=(\d+);', client.transport.written)
        ]
        assert left == [5, 4, 3, 2, 1, 0, 0, 0, 0]
        assert client.transport.written.count(b"Retry-After: 1\r\n") == 3
        assert await figure(gate, HITS) == 7
        # Another account under another head is not concerned.
        assert await ask(gate, *[get(gate.token(subject="idle"))] * 3) == [200] * 3
        # Time gives it back: nothing of the refusal was remembered.
        async with asyncio.timeout(5):
            while statuses(client)[-1] == 429:
                await asyncio.sleep(0.05)
                await client.send(head)


async def test_the_limit_of_readings_holds_under_a_known_head(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", FAST_LANE="1", POINT_LIMIT="60") as gate:
        token = gate.token()
        writes = [post(token, b'{"metric": "t", "value": 1, "ts": %d}' % ts) for ts in range(1000, 1009)]
        client = Client(gate)
        await client.send(*writes)
        assert statuses(client) == [200] * 6 + [429] * 3
        left = [
            int(found) for found in re.findall(rb'RateLimit: "points";r=(\d+);', client.transport.written)
        ]
        assert left == [5, 4, 3, 2, 1, 0, 0, 0, 0]
        items = (await gate.get(PATH + "?time=ms")).json["items"]
        assert [item["ts"] for item in items] == list(range(1000, 1006))


async def test_bodies_are_read_and_judged_anew_under_a_known_head(fast: Running) -> None:
    token = fast.token()
    good = [b'{"metric": "t", "value": 1, "ts": %d}' % ts for ts in range(5000, 5005)]
    bodies: dict[bytes, int] = dict.fromkeys(good, 200)
    bodies |= {
        b"x" * 39: 400,
        b'{"metric": "t", "value": 2, "ts": 5000}': 422,
        b'{"metric": "t", "value": 1, "tt": 5000}': 422,
        b'{"metric": "t", "value": 1, "ts": 5005}': 200,
        b'{"metric": "t", "value": NaN,"ts": 500}': 422,
        b'{"metric": "t", "value": 3, "ts": 5006}': 200,
        b" " * 39: 400,
    }
    assert {len(body) for body in bodies} == {39}
    client = Client(fast)
    await client.send(*[post(token, body) for body in bodies])
    assert await figure(fast, ENTRIES) == 1
    assert await figure(fast, HITS) == len(bodies) - 2
    assert statuses(client) == list(bodies.values())
    items = (await fast.get(PATH + "?from=5000&to=6000&time=ms")).json["items"]
    assert {item["ts"]: item["value"] for item in items} == {
        5000: 1, 5001: 1, 5002: 1, 5003: 1, 5004: 1, 5005: 1, 5006: 3,
    }  # fmt: skip


async def test_the_body_under_a_known_head_has_the_length_that_the_head_announces(fast: Running) -> None:
    token = fast.token()
    write = post(token, READING)
    client = await known(fast, write)
    for place in range(1, len(write), 9):
        before = len(statuses(client))
        await client.send(write[:place])
        assert len(statuses(client)) == before, place
        await client.send(write[place:])
        assert statuses(client)[before:] == [200], place
    # What is longer is the next request.
    before = len(statuses(client))
    await client.send(write + get(token))
    assert statuses(client)[before:] == [200, 200]
    await client.send(write + b"x")
    await client.send(b"yz\r\n\r\n")
    assert statuses(client)[before + 2 :] == [200, 400]
    assert client.transport.ended.is_set()


# -- never answers, never failures, never ids --------------------------------------------------


async def test_answers_are_made_anew_under_a_known_head(fast: Running) -> None:
    token = fast.token()
    client = await known(fast, get(token, target="/v1/devices/demo.new/latest"))
    assert statuses(client) == [404] * 3
    for value in range(3):
        await fast.write("demo.new", {"metric": "t", "value": value, "ts": 1000 + value})
        await client.send(get(token, target="/v1/devices/demo.new/latest"))
        answer = client.transport.written.rpartition(b"\r\n\r\n")[2]
        assert json.loads(answer)["metrics"]["t"]["value"] == value
    assert statuses(client)[3:] == [200] * 3
    assert (await fast.call("DELETE", "/v1/devices/demo.new?readings=true")).status == 204
    await client.send(get(token, target="/v1/devices/demo.new/latest"))
    assert statuses(client)[-1] == 404


async def test_a_condition_is_judged_anew_under_a_known_head(fast: Running) -> None:
    token = fast.token()
    tag = (await fast.get(LATEST)).headers["ETag"]
    head = get(token, f"If-None-Match: {tag}")
    client = await known(fast, head)
    assert statuses(client) == [304] * 3
    await fast.write(DEVICE, {"metric": "t", "value": 2, "ts": 2000})
    await client.send(head)
    assert statuses(client)[-1] == 200


async def test_failures_are_not_remembered(fast: Running) -> None:
    token = fast.token()
    client = await known(fast, post(token, READING))
    fast.gate.commit.stuck = True
    await client.send(post(token, READING), post(token, READING))
    fast.gate.commit.stuck = False
    await client.send(post(token, READING))
    assert statuses(client)[3:] == [503, 503, 200]


async def test_under_a_known_head_each_request_has_an_id_of_its_own_or_the_one_it_came_with(
    fast: Running,
) -> None:
    def ids(client: Client) -> list[bytes]:
        return re.findall(rb"\r\nX-Request-ID: ([^\r]*)\r\n", client.transport.written)

    token = fast.token()
    for lines in ((), ("X-Request-ID: not sane, this one",), ("X-Request-ID:",)):
        client = await known(fast, get(token, *lines))
        await client.send(*[get(token, *lines)] * 5)
        assert len(set(ids(client))) == 8, lines
    client = await known(fast, get(token, "X-Request-ID: mine"))
    assert ids(client) == [b"mine"] * 3


# -- bounds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bound", "value"), [("MEMO_HEADS", 10), ("MEMO_BYTES", 6000)])
async def test_the_memo_is_bounded_in_entries_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(app, bound, value)
    async with run_gate(tmp_path / "data", FAST_LANE="1") as gate:
        await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        token = gate.token()
        heads = [get(token, f"X-Request-ID: id-{number:02}") for number in range(50)]
        fitting = value if bound == "MEMO_HEADS" else value // len(heads[0])
        assert fitting in range(5, 45)
        for head in heads:
            assert await ask(gate, head, head, head) == [200] * 3
            assert await figure(gate, ENTRIES) <= fitting
        entries = await figure(gate, ENTRIES)
        assert entries >= fitting - 1
        assert await figure(gate, BYTES) == entries * len(heads[0])
        assert await figure(gate, EVICTIONS) >= 50 - fitting
        # What was forgotten is understood as ever, and nothing is taken for something else.
        client = Client(gate)
        await client.send(*heads * 2)
        found = re.findall(rb"X-Request-ID: (\S+)", client.transport.written)
        assert found == [b"id-%02d" % number for number in range(50)] * 2


async def test_the_counts_of_the_memo_stand_in_metrics(fast: Running) -> None:
    (await known(fast, get(fast.token()))).close()
    text = (await fast.get("/metrics")).body.decode()
    for name in (HITS, ENTRIES, BYTES, EVICTIONS):
        assert re.search(rf"^{re.escape(name)} \d", text, re.MULTILINE), name
    assert f"{HITS} 1.0" in text
    assert f"{ENTRIES} 1.0" in text


# -- everything together -----------------------------------------------------------------------


@pytest.fixture
async def clocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Gates, Clock]]:
    clock = Clock(monkeypatch)
    async with both_lanes(tmp_path) as gates:
        for gate in gates:
            clock.follow(gate)
            await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        yield gates, clock


SUBJECTS = map("subject-{}".format, count())
LIVES = (100, 10_000)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
async def test_tokens_that_expire_or_are_revoked_between_two_uses_of_a_head_are_the_same_to_both_lanes(
    clocked: tuple[Gates, Clock], data: st.DataObject
) -> None:
    gates, clock = clocked
    clock.offset = 0
    subject = next(SUBJECTS)
    for gate in gates:
        await create_client(gate, id=subject)
    tokens = {ttl: gates[0].token(subject=subject, ttl=ttl) for ttl in LIVES}
    steps = data.draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("get"), st.sampled_from(LIVES), st.integers(2, 3)),
                st.tuples(st.just("write"), st.sampled_from(LIVES), st.integers(10, 13)),
                st.tuples(st.just("cut"), st.sampled_from(LIVES), st.integers(1, 200)),
                st.tuples(st.sampled_from(("revoke", "later", "later", "reconnect")), st.just(0), st.just(0)),
            ),
            min_size=4,
            max_size=14,
        )
    )
    clients = [Client(gate) for gate in gates]
    for kind, ttl, number in steps:
        pieces: list[bytes] = []
        match kind:
            case "get":
                pieces = [get(tokens[ttl])] * number
            case "write":
                body = b'{"metric": "t", "value": 1, "ts": %d}' % number
                pieces = [post(tokens[ttl], body)] * 2
            case "cut":
                head = get(tokens[ttl])
                pieces = [head[:number], head[number:]] if number < len(head) else [head]
            case "revoke":
                for gate in gates:
                    await gate.call("DELETE", f"/v1/clients/{subject}")
            case "later":
                clock.offset += 200
            case _:
                for client in clients:
                    client.close()
                clients = [Client(gate) for gate in gates]
        one, other = [await client.answers(*pieces) for client in clients]
        assert one == other, f"{kind} {ttl} {number} of {steps}"
    for client in clients:
        client.close()


async def test_what_origins_may_see_is_the_same_in_both_lanes_under_known_heads(tmp_path: Path) -> None:
    async with both_lanes(tmp_path, CORS_ORIGINS="https://a.example") as gates:
        token = gates[0].token()
        for origin in ("https://a.example", "https://b.example", "null"):
            one = get(token, f"Origin: {origin}")
            said = await same_answers(gates, [[one, one, one, one]])
            assert (b"Access-Control-Allow-Origin: https://a.example" in said[0]) == ("a.example" in origin)
