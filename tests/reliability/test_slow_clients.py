"""F1: a thousand clients that never finish what they began are gone soon, and the others do not notice."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.raw import Raw, request, until
from tests.running import PATIENCE, Running, open_files, run_gate
from tests.watching import own_time

CLIENTS = 1000
PATH = "/v1/devices/d/readings"


def beginnings(token: str) -> dict[str, bytes]:
    """What slow clients send, and then no more."""
    body = request("POST", PATH, token=token, headers=("Content-Length: 1000",))
    chunk = request("POST", PATH, token=token, headers=("Transfer-Encoding: chunked",))
    return {
        "nothing": b"",
        "half a head": b"POST /v1/devices/d/readings HTTP/1.1\r\nHost: a\r\nX-A: ",
        "half a body": body + b'[{"metric": "m",',
        "half a chunk": chunk + b"ff\r\n[",
        "half a second request": request("GET", "/livez") + b"GET /livez HT",
    }


@contextlib.asynccontextmanager
async def good_client(gate: Running) -> AsyncIterator[list[float]]:
    """Writes all the time; gives the seconds that each answer took, less those that the machine took."""
    took: list[float] = []

    async def write() -> None:
        while True:
            begun = own_time()
            answer = await gate.write("good", {"metric": "m", "value": 1})
            assert answer.status == 200
            took.append(own_time() - begun)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(write())
    try:
        yield took
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def besiege(gate: Running, begun: bytes, within: float) -> None:
    loop = asyncio.get_running_loop()
    await gate.write("good", {"metric": "m", "value": 1})
    files, tasks = open_files(), len(asyncio.all_tasks())
    async with good_client(gate) as took:
        start, accepted = loop.time(), gate.gate.server.accepted
        slow: list[Raw] = []
        for _ in range(CLIENTS // 100):
            some = await asyncio.gather(*(Raw.open(gate.port) for _ in range(100)))
            for client in some:
                client.writer.write(begun)
            slow += some
        # On a busy machine the first are gone before the last have come.
        await until(lambda: gate.gate.server.accepted >= accepted + CLIENTS)
        await until(lambda: gate.gate.server.open <= 1, within=within)
        assert loop.time() - start < within
        for client in slow:
            await client.ended()
            client.leave()
        took.sort()
        assert len(took) > 10
        assert took[len(took) // 2] < 0.5
        assert took[-1] < 3
    await until(lambda: open_files() <= files)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


@pytest.mark.parametrize("kind", ["nothing", "half a head", "half a body", "half a second request"])
async def test_a_thousand_slow_clients_are_gone_and_good_ones_are_answered(tmp_path: Path, kind: str) -> None:
    async with run_gate(tmp_path / "data", HEADER_TIMEOUT="1s", BODY_TIMEOUT="1s") as gate:
        await besiege(gate, beginnings(gate.token())[kind], within=PATIENCE)


async def test_with_the_default_deadlines_they_are_gone_within_15_seconds(gate: Running, long: bool) -> None:
    kinds = beginnings(gate.token())
    for kind in kinds if long else ():
        await besiege(gate, kinds[kind], within=15)
