"""Two gates on one PostgreSQL and one Redis: each sees what the other commits, with Redis and without."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.running import PATIENCE, Running, run_gate
from tests.server.test_shared import SECRET, metric, until
from tests.servers.redis import redis

LATEST = "/v1/devices/acme.boiler/latest"


@asynccontextmanager
async def nodes(tmp_path: Path, database: str, url: str, **environment: str) -> AsyncIterator[list[Running]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                run_gate(
                    tmp_path / f"data{number}",
                    DATABASE_URL=database,
                    REDIS_URL=url,
                    JWT_SECRET=SECRET,
                    **environment,
                )
            )
            for number in range(2)
        ]


async def write(gate: Running, value: int, device: str = "acme.boiler") -> None:
    assert (await gate.write(device, {"metric": "t", "value": value})).status == 200


async def shows(gate: Running, value: int) -> float:
    """Seconds until the newest value is this one."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.timeout(PATIENCE):
        while (await gate.get(LATEST)).json["metrics"]["t"]["value"] != value:
            await asyncio.sleep(0.002)
    return loop.time() - started


async def test_what_one_commits_the_other_shows_at_once_out_of_its_own_memory(
    tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    async with nodes(tmp_path, postgres_url, redis_url) as (one, two):
        await write(one, 0)
        await shows(two, 0)
        misses = two.gate.cache.misses
        for value in range(1, 20):
            await write(one, value)
            # As long as a message takes; the database is looked at every second only.
            assert await shows(two, value) < 0.5
            await write(two, -value)
            assert (await two.get(LATEST)).json["metrics"]["t"]["value"] == -value
            assert await shows(one, -value) < 0.5
        assert two.gate.cache.misses == misses


async def test_what_one_has_loaded_the_other_takes_out_of_redis(
    tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    async with nodes(tmp_path, postgres_url, redis_url) as (one, two):
        for number in range(20):
            await write(one, number, f"acme.d{number}")
        await until(lambda: two.gate.engine.state().head >= 0 and two.gate.live.hub.head == 20)
        for number in range(20):
            path = f"/v1/devices/acme.d{number}/latest"
            expected = await one.get(path)
            found = await two.get(path)
            assert (found.status, found.json) == (200, expected.json)
        assert two.gate.second is not None
        assert two.gate.second.hits == 20
        assert await metric(two, "tidegate_cache_shared_hits_total") == 20


async def test_without_redis_the_other_shows_it_within_seconds_and_with_it_at_once_again(
    tmp_path: Path, postgres_url: str
) -> None:
    async with redis(tmp_path) as server, nodes(tmp_path, postgres_url, server.url) as (one, two):
        await write(one, 1)
        await shows(two, 1)
        await server.kill()
        for value in range(2, 6):
            await write(one, value)
            assert await shows(two, value) < 3
        await server.start()
        await until(lambda: one.gate._shared.told and two.gate._shared.told)
        for value in range(6, 10):
            await write(one, value)
            await shows(two, value)
        for value in range(10, 13):
            await write(one, value)
            assert await shows(two, value) < 0.5


async def test_a_frozen_redis_slows_nobody(tmp_path: Path, postgres_url: str) -> None:
    async with redis(tmp_path) as server, nodes(tmp_path, postgres_url, server.url) as (one, two):
        await write(one, 0)
        await shows(two, 0)
        server.freeze()
        try:
            loop = asyncio.get_running_loop()
            for value in range(1, 40):
                started = loop.time()
                await write(one, value)
                assert (await one.get(LATEST)).json["metrics"]["t"]["value"] == value
                await write(two, value, f"acme.d{value}")
                assert (await one.get(f"/v1/devices/acme.d{value}/latest")).status == 200
                assert loop.time() - started < 1
            assert await shows(two, 39) < 5
        finally:
            server.thaw()
