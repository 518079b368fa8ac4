"""Two gates on one PostgreSQL and one Redis: each sees what the other commits, with Redis and without."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median

import pytest

from storage.redis import latest
from tests.running import PATIENCE, Running, run_gate
from tests.server.test_shared import SECRET, metric, until
from tests.servers.redis import redis

LATEST = "/v1/devices/acme.boiler/latest"
# Seconds that half of what one commits takes at most to the other: as long as a message. Without messages
# the database is looked at every second only.
USUAL = 0.25


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
        figures = two.gate._shared.broker.figures
        misses, cleared = two.gate.cache.misses, figures.reconnects
        took: list[float] = []
        for value in range(1, 20):
            await write(one, value)
            took.append(await shows(two, value))
            await write(two, -value)
            assert (await two.get(LATEST)).json["metrics"]["t"]["value"] == -value
            took.append(await shows(one, -value))
        assert median(took) < USUAL, took
        # Where a message may have been missed, nothing in memory is relied on.
        assert two.gate.cache.misses - misses <= figures.reconnects - cleared


async def test_what_one_has_loaded_the_other_takes_out_of_redis(
    tmp_path: Path, postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latest, "DEADLINE", PATIENCE)
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
            await shows(two, value)
        await server.start()
        await until(lambda: one.gate._shared.told and two.gate._shared.told)
        for value in range(6, 10):
            await write(one, value)
            await shows(two, value)
        took: list[float] = []
        for value in range(10, 40):
            await write(one, value)
            took.append(await shows(two, value))
        assert median(took) < USUAL, took


async def test_a_frozen_redis_slows_nobody(tmp_path: Path, postgres_url: str) -> None:
    async with redis(tmp_path) as server, nodes(tmp_path, postgres_url, server.url) as (one, two):
        loop, value = asyncio.get_running_loop(), 0
        # The longest round while Redis was frozen. The best of three counts: the machine only adds time.
        slowest: list[float] = []
        for _ in range(3):
            await until(lambda: one.gate._shared.told and two.gate._shared.told)
            took: list[float] = []
            server.freeze()
            try:
                # Until both have noticed.
                while len(took) < 10 or one.gate._shared.told or two.gate._shared.told:
                    value += 1
                    started = loop.time()
                    await write(one, value)
                    assert (await one.get(LATEST)).json["metrics"]["t"]["value"] == value
                    await write(two, value, f"acme.d{value}")
                    assert (await one.get(f"/v1/devices/acme.d{value}/latest")).status == 200
                    took.append(loop.time() - started)
                await shows(two, value)
            finally:
                server.thaw()
            slowest.append(max(took))
        assert min(slowest) < 1, slowest


async def test_ranges_and_the_log_show_on_every_node_what_was_answered_on_another(
    tmp_path: Path, postgres_url: str
) -> None:
    """Also before this node has heard of it: a position of another node is neither gone nor ahead."""
    async with nodes(tmp_path, postgres_url, "") as (one, two):
        for value in range(20):
            written = await one.write("acme.boiler", {"metric": "t", "ts": 1000 + value, "value": value})
            position = written.json["position"]
            newest = await two.get("/v1/devices/acme.boiler/readings?order=desc&limit=1")
            assert [item["value"] for item in newest.json["items"]] == [value]
            exported = await two.get(
                "/v1/devices/acme.boiler/readings", headers={"Accept": "application/x-ndjson"}
            )
            assert len(exported.body.splitlines()) == value + 1
            log = await two.get(f"/v1/readings?since={position}")
            assert (log.status, log.json["items"], log.json["end"]) == (200, [], True)
            log = await two.get("/v1/readings?since=earliest&limit=1000")
            assert (len(log.json["items"]), log.json["next"]) == (value + 1, position)
