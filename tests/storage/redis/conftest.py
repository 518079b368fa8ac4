"""What the tests of Redis share: clients, waiting for a condition, the lag of the loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from storage.redis.client import RedisClient
from storage.redis.url import parse_url

# So long something may take that is bound to happen.
PATIENCE = 20.0

Connect = Callable[..., Awaitable[RedisClient]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients, closed at the end."""
    async with AsyncExitStack() as stack:

        async def make(url: str, patience: float = 5.0) -> RedisClient:
            client = await RedisClient.open(parse_url(url), "tidegate-test", patience)
            stack.push_async_callback(client.close)
            return client

        yield make


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until something is true."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while not condition():
        assert loop.time() < end, f"never came true: {what}"
        await asyncio.sleep(0.005)


class Lag:
    """How late the loop was, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    @property
    def p99(self) -> float:
        """What 99 of 100 looks did not exceed."""
        return sorted(self.times)[int(len(self.times) * 0.99)]


@asynccontextmanager
async def watched(every: float = 0.005) -> AsyncIterator[Lag]:
    """Measures the lag of the loop meanwhile."""
    loop, lag = asyncio.get_running_loop(), Lag()

    async def look() -> None:
        while True:
            due = loop.time() + every
            await asyncio.sleep(every)
            lag.times.append(max(0.0, loop.time() - due))

    task = asyncio.create_task(look())
    try:
        yield lag
    finally:
        task.cancel()
        await asyncio.wait((task,))
