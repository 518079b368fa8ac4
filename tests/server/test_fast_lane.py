"""The fast lane says what the common lane says. (More of it: test_lane_*.py.)"""

import gc
import gzip
import json
from collections.abc import AsyncIterator, Callable
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


async def test_answers_of_a_pipeline_keep_their_order(gates: Gates) -> None:
    fast, token = gates[0], gates[0].token()
    ids = [f"X-Request-ID: r{n}" for n in range(40)]
    get = "/v1/devices/demo.a/latest"
    stream = b"".join(
        write(token, 6000 + n, 1, line) if n % 3 else request("GET", get, token, None, line)
        for n, line in enumerate(ids)
    )
    client = Client(fast)
    await client.send(stream)
    lines = [line for line in client.transport.written.split(b"\r\n") if line.startswith(b"X-Request-ID: ")]
    assert lines == [line.encode() for line in ids]


async def test_requests_leave_nothing_for_the_garbage_collector(gates: Gates) -> None:
    """A cycle per request was once the tail of the latency: tens of thousands were freed at a time."""
    fast = gates[0]
    token = fast.token()
    kinds: list[Callable[[int], bytes]] = [
        lambda _: request("GET", "/v1/devices/demo.a/latest", token),
        lambda n: request("GET", "/v1/devices/demo.a/latest", token, None, f"X-Request-ID: {n}"),
        lambda n: write(token, 10_000 + n),
        lambda n: write(token, 20_000 + n, 1, f"X-Request-ID: {n}"),
        lambda n: write(token, 10_000 + n, "a conflict"),
        lambda _: request("GET", "/v1/devices/demo.a/readings?limit=2", token),
    ]
    for kind in kinds:
        client = Client(fast)
        for n in range(10):
            await client.send(kind(n))
        gc.collect()
        gc.disable()
        try:
            for n in range(10, 110):
                await client.send(kind(n))
            # What the test and the loop leave behind themselves is less than one object per request.
            assert gc.collect() < 50
        finally:
            gc.enable()
        client.close()
