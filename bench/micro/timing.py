"""`python -m bench micro`: process CPU time per request, the least of several measurements."""

import os
import statistics
from collections.abc import Sequence

import uvloop

from bench.environment import SERVER_CORE
from bench.micro.drive import prepare
from bench.micro.gate import in_process
from bench.micro.paths import PATHS, Path


def run(names: Sequence[str], repeats: int) -> int:
    """Measure and print a table."""
    os.sched_setaffinity(0, {SERVER_CORE})
    print(f"process CPU time per request, least of {repeats} measurements (median); microseconds")
    for name in names:
        path = PATHS[name]
        spent = uvloop.run(_measure(path, repeats))
        least, middle = min(spent) * 1e6, statistics.median(spent) * 1e6
        print(f"{name:12} {least:10.2f} ({middle:10.2f})  {path.meaning}", flush=True)
    return 0


async def _measure(path: Path, repeats: int) -> list[float]:
    """CPU seconds per request of each measurement."""
    async with in_process() as gate:
        driver = await prepare(gate, path)
        return [await driver.run(path.count) for _ in range(repeats)]
