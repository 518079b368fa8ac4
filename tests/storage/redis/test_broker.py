"""Messages between processes: they arrive in order, or are lost and it shows; nobody waits for Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from storage.broker import CacheCleared, Committed, DeviceForgotten, Message, Revoked
from storage.models import Batch, Reading, Revocation
from storage.redis import broker as module
from storage.redis.broker import RedisBroker
from storage.redis.client import RedisClient
from storage.redis.url import parse_url
from tests.running import PATIENCE
from tests.servers.redis import RedisCluster, redis, redis_cluster, redis_sentinel
from tests.storage.redis.conftest import until
from tests.watching import own_time, percentile_99, watch_lag

CHANNEL = b"tidegate-test:messages"


class Node:
    """A process: its broker, and what it heard."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.client: RedisClient
        self.broker: RedisBroker

    @property
    def offsets(self) -> list[int]:
        """Of the readings that it heard of, in that order."""
        return [
            reading.offset
            for message in self.heard
            if isinstance(message, Committed)
            for reading in message.batch.readings
        ]


@asynccontextmanager
async def nodes(url: str, count: int = 2, channel: bytes = CHANNEL) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        made = [Node() for _ in range(count)]
        for node in made:
            node.client = await RedisClient.open(parse_url(url), "tidegate-test")
            stack.push_async_callback(node.client.close)
            node.broker = await RedisBroker.open(node.client, channel, node.heard.append)
            stack.push_async_callback(node.broker.close)
        yield made


def commit(first: int, count: int = 1, size: int = 0) -> Committed:
    """A batch; `size`: characters of each value."""
    readings = [
        Reading(
            offset, "acme.plant7.boiler3", "temperature", 1_700_000_000_000_000 + offset, "x" * size or 1.5
        )
        for offset in range(first, first + count)
    ]
    return Committed("epoch", Batch(first, first + count - 1, readings))


# -- arriving -------------------------------------------------------------------------------------


async def test_every_message_reaches_all_others_as_it_was_and_not_its_sender(redis_url: str) -> None:
    batch = Batch(
        7,
        10,
        [
            Reading(7, "a", "m", 1, True),
            Reading(8, "a", "m", 2, 2**53),
            Reading(9, "b", "m", 3, 1.0),
            Reading(10, "b", "m", 4, "läuft"),
        ],
    )
    said: list[Message] = [
        Committed("epoch", batch),
        Revoked(Revocation("subject", "boiler", 5, 6)),
        DeviceForgotten("acme.boiler", 12),
        CacheCleared(),
    ]
    async with nodes(redis_url, 3) as (one, two, three):
        for message in said:
            one.broker.publish(message)
            await asyncio.sleep(0)
        await until(lambda: len(two.heard) == len(three.heard) == 4)
        assert two.heard == said
        assert [type(r.value) for r in two.heard[0].batch.readings] == [bool, int, float, str]  # type: ignore[union-attr]
        two.broker.publish(CacheCleared())
        await until(lambda: one.heard)
        assert (one.heard, len(two.heard)) == ([CacheCleared()], 4)
        assert (one.broker.figures.sent, one.broker.figures.received) == (4, 1)
        assert two.broker.figures.received == 4
        assert all(node.broker.healthy for node in (one, two, three))


async def test_gates_with_other_names_do_not_hear_each_other(redis_url: str) -> None:
    async with nodes(redis_url) as (one, two), nodes(redis_url, 1, b"other:messages") as (stranger,):
        one.broker.publish(commit(1))
        await until(lambda: two.heard)
        assert stranger.heard == []


async def test_commits_arrive_in_order_and_many_go_together(redis_url: str) -> None:
    async with nodes(redis_url) as (one, two):
        for offset in range(1, 5001):
            one.broker.publish(commit(offset))
            if offset % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(two.heard) == 5000)
        assert two.offsets == list(range(1, 5001))
        stats = await one.client.call(CHANNEL, b"INFO", b"commandstats")
        calls = next(line for line in stats.decode().splitlines() if "cmdstat_publish:" in line)
        assert int(calls.partition("calls=")[2].partition(",")[0]) < 500


async def test_a_large_batch_arrives_in_pieces_that_join(redis_url: str) -> None:
    async with nodes(redis_url) as (one, two):
        sent = commit(1, 5000, size=1000)
        one.broker.publish(sent)
        await until(lambda: len(two.offsets) == 5000)
        batches = [message.batch for message in two.heard if isinstance(message, Committed)]
        assert len(batches) >= 5_000_000 // module.MESSAGE_MAX
        end = 0
        for batch in batches:
            assert batch.first == end + 1
            assert (batch.first, batch.last) == (batch.readings[0].offset, batch.readings[-1].offset)
            end = batch.last
        assert end == 5000


async def test_what_cannot_be_read_is_missed_and_harms_nothing(redis_url: str) -> None:
    async with nodes(redis_url) as (one, two):
        for payload in (b"", b"x", b"12345678", b"12345678\xc1", b"12345678\x91\x91\xa3new"):
            await one.client.call(CHANNEL, b"PUBLISH", CHANNEL, payload)
        one.broker.publish(commit(1))
        await until(lambda: two.offsets == [1])
        assert set(map(type, two.heard)) == {CacheCleared, Committed}


async def test_who_breaks_over_a_message_hears_the_next(redis_url: str) -> None:
    heard: list[Message] = []

    def receive(message: Message) -> None:
        heard.append(message)
        raise RuntimeError("a bug")

    client = await RedisClient.open(parse_url(redis_url), "tidegate-test")
    try:
        broker = await RedisBroker.open(client, CHANNEL, receive)
        async with nodes(redis_url, 1) as (other,):
            other.broker.publish(commit(1))
            other.broker.publish(commit(2))
            await until(lambda: len(heard) == 2)
        await broker.close()
    finally:
        await client.close()


async def test_what_was_said_at_the_end_still_arrives(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (stays,):
        async with nodes(redis_url, 1) as (leaves,):
            leaves.broker.publish(commit(1, 100))
        await until(lambda: len(stays.offsets) == 100)


# -- faults ---------------------------------------------------------------------------------------


async def test_while_redis_is_killed_nothing_waits_and_what_is_lost_is_a_gap(tmp_path: Path) -> None:
    async with redis(tmp_path) as server, nodes(server.url) as (one, two):
        one.broker.publish(commit(1))
        await until(lambda: two.offsets == [1])
        await server.kill()
        await until(lambda: not one.broker.healthy and not two.broker.healthy)
        for offset in range(2, 5002):
            one.broker.publish(commit(offset))
        # These are kept: nobody else says them again.
        one.broker.publish(DeviceForgotten("a", 1))
        await asyncio.sleep(0)
        assert one.broker.figures.dropped == 5000
        await server.start()
        await until(lambda: one.broker.healthy and two.broker.healthy)
        one.broker.publish(commit(5002))
        await until(lambda: two.offsets == [1, 5002])
        # Who was away says so before he goes on: caches may be wrong.
        assert CacheCleared() in two.heard
        assert two.broker.figures.reconnects == 1


async def test_a_frozen_redis_costs_neither_memory_nor_time(tmp_path: Path) -> None:
    async with redis(tmp_path) as server, nodes(server.url) as (one, two):
        loop = asyncio.get_running_loop()
        server.freeze()
        try:
            async with asyncio.timeout(PATIENCE), watch_lag() as lag:
                end, offset = loop.time() + 4, 0
                took = []
                while loop.time() < end or one.broker.healthy or not one.broker.figures.dropped:
                    offset += 1
                    message = commit(offset, 100, size=1000)
                    started = own_time()
                    one.broker.publish(message)
                    took.append(own_time() - started)
                    held = one.broker._queued + sum(map(len, one.broker._kept))
                    assert held <= module.QUEUE_MAX + 2 * module.MESSAGE_MAX
                    await asyncio.sleep(0.005)
            assert percentile_99(took) < 0.01
            assert lag.p99 < 0.05
        finally:
            server.thaw()
        await until(lambda: one.broker.healthy and two.broker.healthy)
        one.broker.publish(commit(10**6))
        await until(lambda: two.offsets and two.offsets[-1] == 10**6)


async def test_a_listener_that_redis_throws_out_listens_again_and_knows_of_the_gap(tmp_path: Path) -> None:
    async with redis(tmp_path) as server, nodes(server.url) as (one, two):
        await server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: CacheCleared() in one.heard and CacheCleared() in two.heard)
        one.broker.publish(commit(1))
        await until(lambda: two.offsets == [1])


async def test_messages_kept_while_redis_is_away_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_MAX", 10)
    async with redis(tmp_path) as server, nodes(server.url) as (one, two):
        await server.kill()
        await until(lambda: not one.broker.healthy)
        for number in range(50):
            one.broker.publish(DeviceForgotten(str(number), 1))
        await asyncio.sleep(0)
        assert one.broker.figures.dropped == 40
        await server.start()
        await until(lambda: one.broker.healthy and two.broker.healthy)


async def test_there_may_be_no_redis_at_the_start(tmp_path: Path) -> None:
    async with redis(tmp_path) as server:
        await server.kill()
        started = own_time()
        async with nodes(server.url, 1) as (one,):
            assert own_time() - started < 5
            assert not one.broker.healthy
            one.broker.publish(commit(1))
            await server.start()
            await until(lambda: one.broker.healthy)


# -- clusters and sentinels -----------------------------------------------------------------------


async def test_in_a_cluster_messages_go_over_one_shard(redis_cluster_server: RedisCluster) -> None:
    async with nodes(redis_cluster_server.url) as (one, two):
        one.broker.publish(commit(1, 10))
        await until(lambda: len(two.offsets) == 10)
        shards = [await node.command("PUBSUB", "SHARDCHANNELS") for node in redis_cluster_server.nodes]
        assert sorted(map(len, shards)) == [0, 0, 1]


@asynccontextmanager
async def talking(one: Node, two: Node, every: float = 0.02) -> AsyncIterator[None]:
    """One of them commits all the time."""

    async def talk() -> None:
        offset = 0
        while True:
            offset += 1
            one.broker.publish(commit(offset))
            await asyncio.sleep(every)

    task = asyncio.create_task(talk())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def passes(two: Node) -> None:
    """Messages arrive again."""
    known = len(two.offsets)
    await until(lambda: len(two.offsets) > known + 10)


def owner(cluster: RedisCluster, node: Node) -> int:
    """The index of the primary that has the channel."""
    address = node.client.address(CHANNEL)
    return next(i for i, server in enumerate(cluster.primaries) if ("127.0.0.1", server.port) == address)


@pytest.mark.parametrize("which", ["the shard of the channel", "another"])
async def test_a_cluster_that_loses_a_primary_brings_messages_again(tmp_path: Path, which: str) -> None:
    async with redis_cluster(tmp_path, replicas=1) as cluster, nodes(cluster.url) as (one, two):
        async with talking(one, two):
            await passes(two)
            index = owner(cluster, one)
            if which == "another":
                index = (index + 1) % 3
            await cluster.primaries[index].kill()
            await passes(two)
            await until(lambda: one.broker.healthy and two.broker.healthy)
        assert two.offsets == sorted(set(two.offsets))


async def test_without_replicas_the_channel_is_back_with_its_node(tmp_path: Path) -> None:
    async with redis_cluster(tmp_path) as cluster, nodes(cluster.url) as (one, two):
        async with talking(one, two):
            await passes(two)
            lost = cluster.primaries[owner(cluster, one)]
            await lost.kill()
            await until(lambda: not one.broker.healthy and not two.broker.healthy)
            await lost.start()
            await passes(two)
        assert two.offsets == sorted(set(two.offsets))
        assert CacheCleared() in two.heard


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_a_failover_of_sentinels_brings_messages_again(tmp_path: Path, fault: str) -> None:
    async with redis_sentinel(tmp_path) as service:
        hosts = ",".join(f"{host}:{port}" for host, port in service.addresses)
        async with nodes(f"redis+sentinel://{hosts}/{service.name}") as (one, two), talking(one, two):
            await passes(two)
            old = await service.primary()
            if fault == "kill":
                await old.kill()
            else:
                old.freeze()
            await passes(two)
            old.thaw()
            await passes(two)
            await until(lambda: one.broker.healthy and two.broker.healthy)
