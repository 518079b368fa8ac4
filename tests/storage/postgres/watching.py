"""What tests of the pool look at: the server's sessions, the event loop's lag, statements under faults."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from storage.errors import StorageError
from storage.postgres.pool import Pool
from tests.running import PATIENCE
from tests.servers.postgres import PostgresServer

SCHEDULED = Path("/proc/thread-self/schedstat")


async def until(condition: Callable[[], Awaitable[bool]], within: float = PATIENCE) -> float:
    """Wait for `condition`; the seconds it took."""
    started = time.monotonic()
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.01)
    return time.monotonic() - started


async def sessions(server: PostgresServer, name: str) -> list[tuple[int, str, str]]:
    """Pid, state and statement of the server's sessions called `name`."""
    rows = await server.query(
        "SELECT pid, state, query FROM pg_stat_activity WHERE application_name = %s", (name,)
    )
    return [(pid, state, query) for pid, state, query in rows]


async def none_runs(server: PostgresServer, name: str) -> bool:
    """Whether no session called `name` is at work."""
    return all(state != "active" for _, state, _ in await sessions(server, name))


class Lag:
    """How late the event loop was by its own fault, in seconds."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    @property
    def p99(self) -> float:
        """The 99th percentile."""
        ordered = sorted(self.samples)
        return ordered[int(len(ordered) * 0.99)]


@asynccontextmanager
async def watch_lag() -> AsyncIterator[Lag]:
    """Measure the lag while the block runs."""
    lag = Lag()
    every = 0.005

    async def sample() -> None:
        while True:
            started, starved = time.monotonic(), _starved()
            await asyncio.sleep(every)
            late = time.monotonic() - started - every
            lag.samples.append(late - (_starved() - starved))

    task = asyncio.create_task(sample())
    try:
        yield lag
    finally:
        task.cancel()
        await asyncio.wait((task,))


def _starved() -> float:
    """Seconds that this thread was ready to run, but other processes had the cores."""
    return int(SCHEDULED.read_text().split()[1]) / 1e9


class Load:
    """Callers that ask one after the other, and what became of it: (started, seconds, the error's type)."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, type[StorageError] | None]] = []

    def errors(self) -> set[type[StorageError] | None]:
        """The kinds of ends there were; None is a good one."""
        return {error for _, _, error in self.seen}

    @property
    def slowest(self) -> float:
        """The longest that anybody waited."""
        return max(seconds for _, seconds, _ in self.seen)

    def good_since(self, when: float) -> float | None:
        """Seconds from `when` (monotonic) to the end of the first good one that started after it."""
        ends = [
            started + seconds - when
            for started, seconds, error in self.seen
            if error is None and started >= when
        ]
        return min(ends, default=None)


@asynccontextmanager
async def load(pool: Pool, callers: int, sql: str = "SELECT 1") -> AsyncIterator[Load]:
    """Callers on `pool` while the block runs. An error that is no StorageError ends the test."""
    found = Load()

    async def call() -> None:
        while True:
            started = time.monotonic()
            error: type[StorageError] | None = None
            try:
                await pool.fetch(sql)
            except StorageError as raised:
                error = type(raised)
            found.seen.append((started, time.monotonic() - started, error))
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(call()) for _ in range(callers)]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        done, _ = await asyncio.wait(tasks)
        for task in done:
            if not task.cancelled():
                task.result()
