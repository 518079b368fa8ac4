"""Time without that of others: what the machine takes away while a test measures is not the gate's fault."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

_THREAD = Path("/proc/thread-self")
_SYSTEM = Path("/proc/stat")
_TICK = 1 / os.sysconf("SC_CLK_TCK")


def own_time(*processes: int) -> float:
    """A monotonic clock, less the seconds in which threads were ready to run while others had the cores.

    Those of this thread, and of all that these processes have, and those in which a hypervisor had taken a
    core away: what it shows between two looks is the least that it would have taken on an idle machine.
    """
    threads = [_THREAD, *(each for pid in processes for each in Path(f"/proc/{pid}/task").iterdir())]
    return time.monotonic() - sum(map(_starved, threads)) - _stolen()


def _starved(thread: Path) -> float:
    try:
        return int((thread / "schedstat").read_text().split()[1]) / 1e9
    except OSError:
        # It has ended.
        return 0.0


def _stolen() -> float:
    # "cpu  user nice system idle iowait irq softirq steal ...", of all cores (proc_stat(5)).
    with _SYSTEM.open() as figures:
        return int(figures.readline().split()[8]) * _TICK


def percentile_99(samples: list[float]) -> float:
    """What 99 of 100 samples do not exceed."""
    return sorted(samples)[int(len(samples) * 0.99)]


class Lag:
    """How late the event loop was by its own fault, in seconds."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    @property
    def p99(self) -> float:
        """The 99th percentile."""
        return percentile_99(self.samples)


@asynccontextmanager
async def watch_lag() -> AsyncIterator[Lag]:
    """Measure the lag while the block runs."""
    lag = Lag()
    every = 0.005

    async def sample() -> None:
        while True:
            started = own_time()
            await asyncio.sleep(every)
            lag.samples.append(own_time() - started - every)

    task = asyncio.create_task(sample())
    try:
        yield lag
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def in_time(play: Callable[[], Awaitable[float]], seconds: float) -> None:
    """What is played takes no longer: in the best of three, for a starved server only takes longer."""
    took: list[float] = []
    while not took or took[-1] >= seconds:
        assert len(took) < 3, took
        took.append(await play())
