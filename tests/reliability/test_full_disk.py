"""F27: the disk is full. 507 and nothing stored, reads go on, and writes too when there is space again."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.running import GateProcess, run_process

pytestmark = pytest.mark.system

SIZE = "8m"


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Path]:
    """A directory with little space. It needs root."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    await asyncio.to_thread(subprocess.run, mount, check=True)
    try:
        yield place
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(place)], check=True)


async def stored(gate: GateProcess) -> dict[int, str]:
    answer = await gate.get("/v1/readings?since=earliest&time=ms", headers={"Accept": "text/csv"})
    assert answer.status == 200
    rows = [line.split(",") for line in answer.body.decode().splitlines()[1:]]
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    return {int(row[3]): row[4] for row in rows}


async def test_a_full_disk_is_told_and_nothing_is_lost_when_there_is_space_again(small: Path) -> None:
    ballast = small / "ballast"
    await asyncio.to_thread(ballast.write_bytes, b"x" * 3_000_000)
    acked: dict[int, str] = {}
    refused: set[int] = set()
    async with run_process(small / "data") as gate:

        async def write(ts: int) -> int:
            answer = await gate.write("d", {"metric": "m", "ts": ts, "value": f"{ts}-" + "x" * 900})
            if answer.status == 200:
                acked[ts] = f"{ts}-" + "x" * 900
            else:
                refused.add(ts)
                assert answer.status == 507, answer
                assert answer.json["code"] == "storage_full"
                assert "retry-after" in answer.headers
            return answer.status

        ts = 0
        while len(refused) < 200:
            assert ts < 20_000, "the disk never became full"
            await asyncio.gather(*(write(ts + n) for n in range(50)))
            ts += 50
        assert acked
        # Full: reads go on, the process lives, nothing that was refused is there.
        assert (await gate.get("/livez")).status == 200
        assert (await gate.get("/v1/devices/d/latest")).status == 200
        assert await stored(gate) == acked

        await asyncio.to_thread(ballast.unlink)
        statuses = await asyncio.gather(*(write(ts + n) for n in range(50)))
        assert set(statuses) == {200}
        again = sorted(refused)[:50]
        assert set(await asyncio.gather(*map(write, again))) == {200}
        assert (await gate.get("/readyz")).status == 200
        assert await stored(gate) == acked
        gate.process.kill()
        await gate.ended()
    async with run_process(small / "data") as gate:
        assert await stored(gate) == acked
