"""What followers cost that only wait."""

import asyncio
from pathlib import Path

import aiohttp

from tests.handlers.sockets import connect
from tests.running import run_process


async def test_an_idle_follower_costs_little_memory(tmp_path: Path) -> None:
    """25 KB is promised; what it takes is about a quarter of that."""
    async with run_process(tmp_path / "data") as gate:
        for _ in range(100):
            async with connect(gate) as socket:
                await socket.follow(1, "a")
        before = await asyncio.to_thread(_resident, gate.process.pid)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as gate.session:
            opened = [connect(gate) for _ in range(600)]
            sockets = [await one.__aenter__() for one in opened]
            for socket in sockets:
                await socket.follow(1, "a")
            after = await asyncio.to_thread(_resident, gate.process.pid)
            for one in opened:
                await one.__aexit__(None, None, None)
    assert (after - before) / 600 < 25.0, f"{(after - before) / 600} KB"


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
