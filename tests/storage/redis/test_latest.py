"""The second level in Redis."""

import asyncio
import statistics
from pathlib import Path

import pytest

from storage.models import Sample
from storage.redis import latest as module
from storage.redis.latest import RedisLatest
from storage.second_level import Kept
from tests.running import PATIENCE
from tests.servers.redis import RedisCluster, redis
from tests.storage.redis.conftest import Connect, until
from tests.watching import own_time

KEPT = Kept(
    "epoch",
    3,
    20,
    17,
    {"on": Sample(1, True, 4), "count": Sample(2, 2**53, 5), "x": Sample(3, 1.0, 17), "t": Sample(4, "ä", 6)},
)


async def got(store: RedisLatest, device: str) -> Kept | None:
    """What it finds, told once."""
    told: list[Kept | None] = []
    store.get(device, told.append)
    await until(lambda: told)
    await asyncio.sleep(0)
    (found,) = told
    return found


async def until_kept(store: RedisLatest, device: str) -> None:
    """Ask until it is found: Redis is there, but may be late."""
    async with asyncio.timeout(PATIENCE):
        while await got(store, device) != KEPT:
            await asyncio.sleep(0.01)


@pytest.fixture
def in_time(never_lost: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer comes too late."""
    monkeypatch.setattr(module, "DEADLINE", PATIENCE)


@pytest.mark.usefixtures("in_time")
async def test_what_is_put_is_got_as_it_was_until_it_is_forgotten(
    connect: Connect, redis_url: str, redis_cluster_server: RedisCluster
) -> None:
    await redis_cluster_server.clear()
    for url in (redis_url, redis_cluster_server.url):
        one, two = [RedisLatest(await connect(url), "t", 60) for _ in range(2)]
        assert await got(one, "acme.boiler") is None
        for number in range(20):
            one.put(f"acme.boiler{number}", KEPT)
            # On another connection it might come too soon.
            assert await got(one, f"acme.boiler{number}") == KEPT
            found = await got(two, f"acme.boiler{number}")
            assert found == KEPT
            assert found is not None
            assert [type(sample.value) for sample in found.metrics.values()] == [bool, int, float, str]
            two.forget(f"acme.boiler{number}")
            assert await got(two, f"acme.boiler{number}") is None


@pytest.mark.usefixtures("in_time")
async def test_values_end_with_their_time_and_large_ones_are_not_kept(
    connect: Connect, redis_url: str
) -> None:
    client = await connect(redis_url)
    store = RedisLatest(client, "t", 60)
    store.put("a", KEPT)
    assert 55 < await client.call(b"k", b"TTL", b"t:latest:a") <= 60
    many = {str(number): Sample(1, "x" * 1000, 1) for number in range(module.SIZE_MAX // 1000 + 1)}
    store.put("b", Kept("epoch", 0, 1, 1, many))
    assert await got(store, "b") is None


@pytest.mark.usefixtures("in_time")
async def test_what_cannot_be_read_is_not_there(connect: Connect, redis_url: str) -> None:
    client = await connect(redis_url)
    store = RedisLatest(client, "t", 60)
    for data in (b"", b"\xc1", b"\x90", b"\x95\x01\x02\x03\x04\x05"):
        await client.call(b"k", b"SET", b"t:latest:a", data)
        assert await got(store, "a") is None
    await client.call(b"k", b"DEL", b"t:latest:a")
    await client.call(b"k", b"RPUSH", b"t:latest:a", b"x")
    assert await got(store, "a") is None


async def test_a_redis_that_is_frozen_or_gone_keeps_nobody_waiting(tmp_path: Path, connect: Connect) -> None:
    async with redis(tmp_path) as server:
        client = await connect(server.url)
        store = RedisLatest(client, "t", 60)
        store.put("a", KEPT)
        await until_kept(store, "a")
        server.freeze()
        try:
            late, silent = [], 0
            for _ in range(30):
                connection = client.connection(b"t:latest:a")
                known, started = store.late, own_time()
                # Not lost yet, but known to be silent.
                unasked = connection is not None and not connection.answers
                assert await got(store, "a") is None
                silent += unasked
                if store.late > known:
                    assert not unasked
                    late.append(own_time() - started)
            assert statistics.median(late) < 0.25
            assert silent > 0
        finally:
            server.thaw()
        await until(lambda: client.healthy)
        await until_kept(store, "a")
        await server.kill()
        await until(lambda: not client.healthy)
        store.put("a", KEPT)
        store.forget("a")
        assert await got(store, "a") is None
