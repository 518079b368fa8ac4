"""Limits that hold over all workers without Redis: the parent keeps the account."""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

from tests.raw import Raw, request
from tests.server.crowd import Crowd, run_crowd

LIMIT, WORKERS = 600, 4
BURST = LIMIT // 10
# See auth/shared_limits.py: what each of them may admit before the others know.
LEASES = WORKERS * -(-2 * BURST // WORKERS)


async def admitted(crowd: Crowd, requests: int) -> tuple[int, float]:
    """How many of the requests were admitted, over many connections, and in how many seconds."""
    statuses: Counter[int] = Counter()
    token = crowd.gate.token()
    begun = asyncio.get_running_loop().time()

    async def client() -> None:
        while statuses.total() < requests:
            async with await Raw.open(crowd.port) as connection:
                for _ in range(5):
                    answer = await connection.ask(request("GET", "/v1/devices", token=token))
                    statuses[answer.status] += 1

    await asyncio.gather(*(client() for _ in range(8)))
    assert set(statuses) == {200, 429}
    return statuses[200], asyncio.get_running_loop().time() - begun


async def extra(crowd: Crowd) -> float:
    """What may be admitted besides because the parent was silent for a while: none on a quiet machine."""
    lost = (await crowd.figures())["tidegate_limits_lost_total"]
    return 2 * lost * (BURST + LEASES + WORKERS)


async def test_a_limit_holds_over_all_workers_also_when_they_are_replaced(
    tmp_path: Path, postgres_url: str
) -> None:
    async with run_crowd(tmp_path, postgres_url, WORKERS, RATE_LIMIT=str(LIMIT)) as crowd:
        count, seconds = await admitted(crowd, 1000)
        most = BURST + LEASES + WORKERS + LIMIT / 60 * seconds
        more = await extra(crowd)
        assert BURST <= count <= most + more, (count, most, more)
        # Each for itself they would have admitted their bursts.
        assert WORKERS * (BURST + LIMIT / 60 * seconds) > most
        killed = crowd.pids()[0]
        os.kill(killed, signal.SIGKILL)
        begun = asyncio.get_running_loop().time()
        await crowd.replaced([killed], WORKERS)
        # The new one knows what was spent before it was there: only time brings more.
        count, _ = await admitted(crowd, 200)
        waited = asyncio.get_running_loop().time() - begun
        most = BURST + LEASES + WORKERS + LIMIT / 60 * waited + await extra(crowd)
        assert count <= most, (count, most, waited)
