"""Any bytes, cut at any places: a well-formed answer below 500, or a close; the next connection is served."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.raw import Raw, request
from tests.running import Running, run_gate

BODY = b'{"metric": "m", "value": 1}'
SEEDS = (
    request("GET", "/livez"),
    request("POST", "/v1/devices/d/readings", BODY, token="TOKEN"),
    request("POST", "/v1/readings", token="TOKEN", headers=("Transfer-Encoding: chunked",))
    + b"5\r\n[{}, \r\n3;a=b\r\n{}]\r\n0\r\nT: x\r\n\r\n",
    request(
        "GET", "/v1/readings?match=d&metric=m&since=earliest", token="TOKEN", headers=("Accept: text/csv",)
    ),
    request("HEAD", "/v1/devices/%64/latest", token="TOKEN", headers=("Connection: close",)),
    request("PUT", "/v1/devices/d", b'{"name": "x"}', token="TOKEN", headers=("Expect: 100-continue",)),
    request("GET", "/v1/stream", token="TOKEN", headers=("Connection: upgrade", "Upgrade: websocket")),
    request("POST", "/v1/token", b"grant_type=client_credentials", version="1.0"),
    request("OPTIONS", "*", headers=("Origin: http://a", "Access-Control-Request-Method: GET")),
)
# What a mutation puts in.
SPLICES = (
    b"\r\n", b"\r", b"\n", b"\0", b"\xff\xfe", b" ", b":", b"%", b"%ff", b"?", b"#",
    b"Content-Length: 5\r\n",
    b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n", b"HTTP/2.0",
    b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Content-Type: application/msgpack\r\n", b"Accept: \xff\r\n", b"Idempotency-Key: \xff\r\n", b"\r\n\r\n",
    b"X-Request-ID: \xe9\r\n", b"If-None-Match: \xff\r\n", b"Prefer: handling=\xff\r\n", b"a" * 9000,
    b"0\r\n\r\n",
)  # fmt: skip


@st.composite
def streams(draw: st.DrawFn, seeds: tuple[bytes, ...] = SEEDS) -> bytes:
    """Some of these requests, damaged here and there; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    data = b"".join(draw(st.lists(st.sampled_from(seeds), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0:
                data = data[:place] + draw(st.sampled_from(SPLICES)) + data[place:]
            case 1:
                data = data[:place] + data[place + draw(st.integers(1, 20)) :]
            case 2:
                data = data[:place] + draw(st.binary(min_size=1, max_size=4)) + data[place + 1 :]
            case _:
                data = data[:place]
    return data


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Running]:
    """A gate with little patience: what is not whole ends soon."""
    times = {"HEADER_TIMEOUT": "1s", "BODY_TIMEOUT": "1s", "KEEPALIVE_TIMEOUT": "1s"}
    async with run_gate(tmp_path / "data", MAX_BODY="64KiB", **times) as gate:
        yield gate


async def talk(gate: Running, data: bytes, cuts: list[int]) -> None:
    """Send the bytes in pieces, then nothing more, and read what comes as HTTP until the end."""
    token = gate.token().encode()
    data = data.replace(b"TOKEN", token)
    async with await Raw.open(gate.port) as connection:
        places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
        try:
            for first, last in pairwise(places):
                await connection.send(data[first:last])
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        received = await connection.ended(10)
    while received:
        assert received.startswith(b"HTTP/1.1 "), (data, received[:300])
        head, end, rest = received.partition(b"\r\n\r\n")
        if not end:
            return  # cut off by a reset
        status = int(head[9:12])
        assert status < 500 or status in (501, 505), (data, received[:500])
        if status == 100:
            received = rest
            continue
        lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if b"Transfer-Encoding" in lines or b"HEAD" in data or status in (204, 304):
            return
        length = int(lines[b"Content-Length"])
        assert len(rest) >= length, (data, received[:500])
        received = rest[length:]


async def test_any_bytes_get_an_answer_below_500_or_a_close(target: Running, long: bool) -> None:
    loop = asyncio.get_running_loop()
    many = st.lists(
        st.tuples(streams(), st.lists(st.integers(0, 1500), max_size=4)), min_size=60, max_size=60
    )

    async def all_at_once(examples: list[tuple[bytes, list[int]]]) -> None:
        await asyncio.gather(*(talk(target, data, cuts) for data, cuts in examples))

    # Shrinking would take a minute for each step: what failed is in the message.
    @settings(
        max_examples=40 if long else 4,
        phases=(Phase.generate,),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(many)
    def run(examples: list[tuple[bytes, list[int]]]) -> None:
        asyncio.run_coroutine_threadsafe(all_at_once(examples), loop).result(60)

    await asyncio.to_thread(run)
    assert (await target.get("/livez")).status == 200
    assert target.gate.server.open == 1
    assert '"level":"error"' not in target.logged()
