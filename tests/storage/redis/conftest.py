"""What the tests of Redis share: clients, waiting for a condition."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from storage.redis.client import RedisClient
from storage.redis.url import parse_url
from tests.running import PATIENCE

Connect = Callable[..., Awaitable[RedisClient]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients, closed at the end: connected ones, or as they are after so much patience."""
    async with AsyncExitStack() as stack:

        async def make(url: str, patience: float | None = None) -> RedisClient:
            client = await RedisClient.open(parse_url(url), "tidegate-test", patience or PATIENCE)
            stack.push_async_callback(client.close)
            if patience is None:
                await until(lambda: client.healthy, "connected")
            return client

        yield make


@pytest.fixture
def never_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is not given up, however long it is silent: for what is promised only while it is there."""
    monkeypatch.setattr("storage.redis.connection.LOOK", PATIENCE)
    monkeypatch.setattr("auth.shared_limits.LOOKS_MAX", 1_000_000)


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until something is true."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while not condition():
        assert loop.time() < end, f"never came true: {what}"
        await asyncio.sleep(0.005)
