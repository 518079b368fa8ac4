"""The fast lane says what the common lane says, and its memo keeps its rules."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.running import Running
from tests.server.lanes import Client, both_lanes, same_answers

Gates = tuple[Running, Running]


@pytest.fixture
async def gates(tmp_path: Path) -> AsyncIterator[Gates]:
    async with both_lanes(tmp_path) as both:
        for gate in both:
            await gate.write("demo.a", {"metric": "t", "value": 1, "ts": 1000})
        yield both


def request(
    method: str,
    path: str,
    token: str = "",
    body: bytes | None = None,
    *lines: str,
    version: str = "HTTP/1.1",
    length: str | None = None,
) -> bytes:
    head = [f"{method} {path} {version}", "Host: x", *lines]
    if token:
        head.append(f"Authorization: Bearer {token}")
    if body is not None:
        head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*head, "", ""]).encode() + (body or b"")


def write(token: str, ts: int, value: object = 1, *lines: str) -> bytes:
    body = json.dumps({"metric": "t", "value": value, "ts": ts}).encode()
    return request("POST", "/v1/devices/demo.a/readings", token, body, *lines)


def kinds_of_requests(token: str) -> list[bytes]:
    """One of each kind that the lanes must treat alike."""
    latest = "/v1/devices/demo.a/latest"
    reading = b'{"metric": "t", "value": 1, "ts": 1000}'
    post = "/v1/devices/demo.a/readings"
    return [
        request("GET", latest, token),
        request("HEAD", latest, token),
        request("GET", latest),
        request("GET", latest, token[:-2] + "xx"),
        request("GET", latest, token, None, "Accept: application/msgpack"),
        request("GET", latest, token, None, 'If-None-Match: W/"x", *'),
        request("GET", latest, token, None, "Accept: image/png"),
        request("GET", latest + "?time=us", token),
        request("GET", latest, token, None, "Connection: close"),
        request("GET", latest, token, version="HTTP/1.0"),
        request("GET", latest, token, None, "Connection: keep-alive", version="HTTP/1.0"),
        request("GET", latest, token, version="HTTP/2.0"),
        request("GET", "/v1/devices/demo.unknown/latest", token),
        request("GET", "/v1/readings?limit=2", token),
        request("GET", "/v1/readings", token, None, "Accept: text/csv"),
        request("HEAD", "/v1/readings", token, None, "Accept: application/x-ndjson"),
        request("GET", "http://x" + latest, token),
        request("OPTIONS", latest, token),
        request("OPTIONS", "*"),
        request("PATCH", latest, token),
        request("GET", "/nothing", token),
        request("GET", "/livez"),
        request("GET", "/livez", "", b"a body that nobody wants"),
        request("POST", post, token, reading),
        request("POST", post, token, b'{"metric": "t", "value": 2, "ts": 1000}'),
        request("POST", post, token, b"not json"),
        request("POST", post, token, b""),
        request("POST", post, token),
        request("POST", post, token, reading, "Prefer: handling=strict"),
        request("POST", post, token, reading, "Content-Type: text/plain"),
        request("POST", post, token, reading, "Expect: 100-continue"),
        request("POST", post, token, reading, "Expect: something"),
        request("POST", post, token, gzip.compress(reading, mtime=0), "Content-Encoding: gzip"),
        request("POST", post, token, reading, "Transfer-Encoding: chunked"),
        request("POST", post, token, reading, length="+40"),
        request("POST", post, token, reading, length="0040"),
        request("POST", post, token, reading, length="40, 40"),
        request("POST", post, token, reading, length="99999999999999999999"),
        request("POST", post, token, reading, "Content-Length: 3"),
        request("POST", post, token, None, "Transfer-Encoding: chunked")
        + b"28\r\n"
        + reading[:40]
        + b"\r\n0\r\n\r\n",
        request("POST", post, token, None, "Transfer-Encoding: chunked") + b"zz\r\n",
        request("GET", latest, token, None, "Upgrade: websocket", "Connection: upgrade"),
        request("GET", latest, token, None, " folded: yes"),
        request("GET", latest, token, None, "Bad Header: x"),
        request("GET", latest, token, None, "X-Long: " + "x" * 9000),
        request("GET", "/" + "x" * 9000, token),
        request("GET", latest, token, None, *[f"X-{n}: 1" for n in range(140)]),
        request("GET", latest, token).replace(b"\r\n", b"\n"),
        request("GET", latest, token).replace(b"Host: x\r\n", b""),
        request("GET", latest, token).replace(b"Host: x\r\n", b"Host: x\r\nHost: y\r\n"),
        b"\r\n\r\n" + request("GET", latest, token),
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        request("CONNECT", "x:1"),
    ]


async def test_every_kind_of_request_gets_the_same_answer_alone_twice_and_in_a_pipeline(gates: Gates) -> None:
    token = gates[0].token()
    good = request("GET", "/v1/devices/demo.a/latest", token)
    for kind in kinds_of_requests(token):
        await same_answers(
            gates, [[kind], [kind, kind, kind], [good, good, kind, good], [good + good + kind + good]]
        )


async def test_a_request_cut_anywhere_gets_the_same_answer(gates: Gates) -> None:
    token = gates[0].token()
    one = write(token, 2000)
    for place in range(1, len(one), 7):
        await same_answers(gates, [[one, one, one[:place], one[place:], one]])


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
async def test_any_stream_cut_at_any_places_gets_the_same_answers(gates: Gates, data: st.DataObject) -> None:
    token = gates[0].token()
    kinds = kinds_of_requests(token)
    requests = data.draw(
        st.lists(
            st.one_of(
                st.sampled_from(kinds[:1] + kinds[23:24]),
                st.sampled_from(kinds),
                st.builds(lambda ts: write(token, ts), st.integers(0, 3)),
                st.binary(max_size=30),
            ),
            min_size=1,
            max_size=6,
        )
    )
    stream = b"".join(requests)
    cuts = sorted(set(data.draw(st.lists(st.integers(0, len(stream)), max_size=8))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    await same_answers(gates, [pieces, [stream]])


async def _memo(gate: Running, *requests: bytes) -> Client:
    """A connection on which these were sent, each in one piece."""
    client = Client(gate)
    await client.send(*requests)
    return client


@pytest.fixture
def fast(gates: Gates) -> Running:
    return gates[0]


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answers)]


async def test_a_head_is_remembered_at_its_second_sight_on_one_connection(fast: Running) -> None:
    get = request("GET", "/v1/devices/demo.a/latest", fast.token())
    memo = fast.gate.memo
    for _ in range(3):
        await _memo(fast, get)
    assert len(memo) == 0
    client = await _memo(fast, get, get)
    assert len(memo) == 1
    hits = memo.hits
    await client.send(get)
    assert memo.hits == hits + 1
    assert statuses(client.transport.written) == [200, 200, 200]


async def test_a_token_cut_inside_a_header_is_never_remembered_as_the_head_that_follows(
    fast: Running,
) -> None:
    """Rule "Boundary": the second half, alone on another connection, must get 401."""
    # The second half is a whole head by itself, without a token.
    tail = request("GET", "/v1/devices/demo.a/latest")
    first = tail.replace(b"Host: x", f"Authorization: Bearer {fast.token()}".encode())[:-2] + b"X-Rest: "
    client = Client(fast)
    for _ in range(4):
        await client.send(first, tail)
    assert set(statuses(client.transport.written)) == {200}
    other = await _memo(fast, tail)
    assert statuses(other.transport.written) == [401]


async def test_a_revoked_token_is_refused_under_a_known_head(fast: Running) -> None:
    made = await fast.post("/v1/clients", {"id": "c", "scopes": ["readings:read"], "devices": [">"]})
    form = f"grant_type=client_credentials&client_id=c&client_secret={made.json['secret']}".encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    token = (await fast.post("/v1/token", data=form, headers=headers, token="")).json["access_token"]
    get = request("GET", "/v1/devices/demo.a/latest", token)
    client = await _memo(fast, get, get, get)
    await fast.call("DELETE", "/v1/clients/c")
    await client.send(get)
    assert statuses(client.transport.written) == [200, 200, 200, 401]


async def test_an_expired_token_is_refused_under_a_known_head(fast: Running) -> None:
    get = request("GET", "/v1/devices/demo.a/latest", fast.token(ttl=2))
    client = await _memo(fast, get, get, get)
    async with asyncio.timeout(10):
        while statuses(client.transport.written)[-1] == 200:
            await client.send(get)
    assert statuses(client.transport.written)[-1] == 401


async def test_bodies_are_read_anew_under_a_known_head(fast: Running) -> None:
    token = fast.token()
    bodies = [write(token, 5000 + n) for n in range(5)]
    client = await _memo(fast, *bodies)
    assert fast.gate.memo.hits > 0
    assert statuses(client.transport.written) == [200] * 5
    page = (await fast.get("/v1/devices/demo.a/readings?from=5000&to=5005&time=ms")).json["items"]
    assert [item["ts"] for item in page] == [5000, 5001, 5002, 5003, 5004]


async def test_answers_of_a_pipeline_keep_their_order(fast: Running) -> None:
    token = fast.token()
    ids = [f"X-Request-ID: r{n}" for n in range(40)]
    get = "/v1/devices/demo.a/latest"
    stream = b"".join(
        write(token, 6000 + n, 1, line) if n % 3 else request("GET", get, token, None, line)
        for n, line in enumerate(ids)
    )
    client = await _memo(fast, stream)
    lines = [line for line in client.transport.written.split(b"\r\n") if line.startswith(b"X-Request-ID: ")]
    assert lines == [line.encode() for line in ids]


async def test_the_memo_is_bounded_in_entries_and_bytes(fast: Running) -> None:
    memo = fast.gate.memo
    memo._entries = 10
    token = fast.token()
    for n in range(50):
        get = request("GET", "/v1/devices/demo.a/latest", token, None, f"X-N: {n}")
        await _memo(fast, get, get)
    assert len(memo) == 10
    assert memo.evictions == 40
    assert memo.bytes == sum(map(len, memo._known))
