"""Limits over all processes, on a real Redis."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from auth.rate_limit import LimitExceeded, Policy
from auth.shared_limits import Settlement, SharedLimiter
from storage.counters import Spent
from storage.errors import StorageError, Unavailable
from storage.redis.client import RedisClient
from storage.redis.counters import KEYS, RedisCounters
from storage.redis.url import parse_url
from tests.servers.redis import RedisCluster, redis, redis_cluster
from tests.storage.redis.conftest import Connect, until
from tests.watching import watch_lag


class Bucket:
    """What a bucket holds: it drains from one settlement to the next, and when Redis settles is not known."""

    def __init__(self) -> None:
        self._least = self._most = 0.0
        self._asked = self._answered = time.monotonic()

    async def settle(self, counters: RedisCounters, seconds: float, *others: Spent) -> list[float]:
        """Spend; its fill must be what is left and this. The fills of the others."""
        asked = time.monotonic()
        fill, *rest = await counters.settle([Spent("requests", "a", seconds), *others])
        answered = time.monotonic()
        self._least = max(0.0, self._least - (answered - self._asked)) + seconds
        self._most = max(0.0, self._most - (asked - self._answered)) + seconds
        self._asked, self._answered = asked, answered
        assert self._least - 0.001 <= fill <= self._most + 0.001
        return rest


async def test_fills_add_up_and_drain_by_the_clock_of_redis(connect: Connect, redis_url: str) -> None:
    one, two = [RedisCounters(await connect(redis_url), "t") for _ in range(2)]
    bucket = Bucket()
    await bucket.settle(one, 2.5)
    others = await bucket.settle(two, 1.0, Spent("points", "a", 7.0), Spent("requests", "b", 0.0))
    assert others == pytest.approx([7.0, 0.0], abs=0.001)
    await asyncio.sleep(0.2)
    await bucket.settle(two, 0.0)


async def test_a_debt_ends_where_it_should(connect: Connect, redis_url: str) -> None:
    counters = RedisCounters(await connect(redis_url), "t")
    for _ in range(3):
        (fill,) = await counters.settle([Spent("logins", "a", 50.0, 70.0)])
        assert fill <= 70.0
    assert fill == pytest.approx(70.0, abs=0.01)


async def test_an_empty_bucket_leaves_nothing_behind(connect: Connect, redis_url: str) -> None:
    client = await connect(redis_url)
    counters = RedisCounters(client, "t")
    started = time.monotonic()
    await counters.settle([Spent("requests", "a", 0.05)])
    ttl = await client.call(b"k", b"PTTL", b"t:limit:requests:a")
    # -1: it has no end; -2: it is gone.
    assert ttl != -1
    assert ttl <= 1100
    assert ttl > 500 or time.monotonic() - started > 0.5


async def test_very_small_units_are_not_lost(connect: Connect, redis_url: str) -> None:
    counters, bucket = RedisCounters(await connect(redis_url), "t"), Bucket()
    interval = 60 / 1_000_000_000
    for _ in range(100):
        await bucket.settle(counters, 1e8 * interval)


async def test_many_keys_and_strange_ones_are_settled_each(connect: Connect, redis_url: str) -> None:
    counters = RedisCounters(await connect(redis_url), "t")
    spent = [
        Spent("requests", f"key {number} {{x}} ü \udc80", float(number)) for number in range(3 * KEYS + 1)
    ]
    assert await counters.settle(spent) == pytest.approx([one.seconds for one in spent], abs=0.001)


async def test_a_redis_that_has_lost_its_scripts_is_told_them_again(connect: Connect, redis_url: str) -> None:
    client = await connect(redis_url)
    counters, bucket = RedisCounters(client, "t"), Bucket()
    for _ in range(2):
        await bucket.settle(counters, 1.0)
        await counters.settle([])
        await client.call(b"k", b"SCRIPT", b"FLUSH")
    await bucket.settle(counters, 1.0)


async def test_processes_are_counted_while_they_beat(connect: Connect, redis_url: str) -> None:
    client = await connect(redis_url)
    counters = [RedisCounters(await connect(redis_url), "t") for _ in range(3)]
    for _ in range(2):
        for one in counters:
            await one.settle([])
    assert [one.processes for one in counters] == [3, 3, 3]
    await counters[0].close()
    await counters[1].settle([])
    assert counters[1].processes == 2
    # Those who went without a word are forgotten after a while.
    await client.call(b"k", b"ZADD", b"t:processes", 1, b"old")
    await counters[1].settle([])
    assert counters[1].processes == 2


async def test_in_a_cluster_keys_of_all_nodes_are_settled(
    connect: Connect, redis_cluster_server: RedisCluster
) -> None:
    counters = RedisCounters(await connect(redis_cluster_server.url), "t")
    await redis_cluster_server.clear()
    # None of them is empty, and gone, before they are counted.
    spent = [Spent("requests", str(number), 60.0 + number) for number in range(500)]
    assert await counters.settle(spent) == pytest.approx([one.seconds for one in spent], abs=0.001)
    await counters.settle([])
    sizes = [await node.command("DBSIZE") for node in redis_cluster_server.nodes]
    assert sum(sizes) == 501
    assert min(sizes) > 50


# -- four processes -------------------------------------------------------------------------------


class Processes:
    """Limiters of processes that share one Redis, each settled by a task of its own."""

    def __init__(self, limiters: list[SharedLimiter], settlements: list[Settlement]) -> None:
        self.limiters = limiters
        self.settlements = settlements
        self.admitted: list[float] = []

    def take(self, which: int, key: str = "a") -> bool:
        try:
            self.limiters[which].take(key)
        except LimitExceeded:
            return False
        self.admitted.append(time.monotonic())
        return True

    def most(self, window: float, since: float = 0.0) -> int:
        """What the fullest window admitted."""
        times = [when for when in self.admitted if when >= since]
        return max(sum(start <= when <= start + window for when in times) for start in times)

    async def settled(self, which: int, known: int) -> int:
        """Wait until one has settled more than is known; how much."""
        await until(lambda: self.settlements[which].settled > known)
        return self.settlements[which].settled

    async def healthy(self, *, healthy: bool) -> None:
        await until(lambda: all(one.healthy is healthy for one in self.settlements), f"healthy {healthy}")


@asynccontextmanager
async def processes(url: str, policy: Policy, count: int = 4) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        limiters, settlements = [], []
        for _ in range(count):
            client = await RedisClient.open(parse_url(url), "tidegate-test")
            stack.push_async_callback(client.close)
            settlement = Settlement(RedisCounters(client, "t"))
            limiters.append(settlement.limiter(policy))
            settlements.append(settlement)
            task = asyncio.create_task(settlement.run())
            stack.push_async_callback(asyncio.wait, (task,))
            stack.callback(task.cancel)
        await until(lambda: all(one.healthy for one in settlements))
        await until(lambda: all(one.processes == count for one in settlements))
        yield Processes(limiters, settlements)


def slack(policy: Policy, count: int) -> int:
    """As the docstring of auth.shared_limits states it."""
    return policy.burst + count * math.ceil(2 * policy.burst / count)


async def hammer(found: Processes, seconds: float, seed: int) -> None:
    """Call all processes as fast as the loop turns, at random."""
    chance = random.Random(seed)
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        for _ in range(chance.randrange(20)):
            found.take(chance.randrange(len(found.limiters)))
        await asyncio.sleep(chance.choice((0, 0.001, 0.01)))


@pytest.mark.usefixtures("never_lost")
async def test_a_limit_of_100_over_4_processes_holds_with_the_stated_slack(
    redis_url: str, long: bool
) -> None:
    # A window of a few seconds shows the same in less time.
    policy = Policy("requests", 100, window=60 if long else 4, burst=10)
    seed = random.randrange(2**32)
    async with processes(redis_url, policy) as found:
        await hammer(found, policy.window * 2.5, seed)
    assert found.most(policy.window) <= policy.limit + slack(policy, 4), f"seed {seed}"
    # While Redis is silent a lease is all there is.
    assert len(found.admitted) >= policy.limit * 1.5, f"seed {seed}"


@pytest.mark.usefixtures("never_lost")
async def test_a_client_of_one_process_has_the_whole_limit(redis_url: str) -> None:
    policy = Policy("requests", 600, window=6)
    async with processes(redis_url, policy) as found:
        loop = asyncio.get_running_loop()
        # So many are settled before they are a whole lease, however slow Redis is.
        third = math.ceil(2 * policy.burst / 4) // 3
        end, refused, settled = loop.time() + 4, 0, 0
        while loop.time() < end:
            for _ in range(third):
                refused += not found.take(2)
                # A little less than the rate.
                await asyncio.sleep(policy.interval * 1.1)
            settled = await found.settled(2, settled)
        assert refused == 0
        await until(lambda: not found.limiters[2]._spent)
        await asyncio.sleep(policy.depth)
        # A burst, one request after the other.
        burst, settled = 0, found.settlements[2].settled
        while burst < policy.burst:
            for _ in range(third):
                assert found.take(2), burst
                burst += 1
                await asyncio.sleep(0.002)
            settled = await found.settled(2, settled)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_with_redis_away_each_admits_its_share_and_all_together_again_when_it_is_back(
    tmp_path: Path, fault: str
) -> None:
    policy = Policy("requests", 100, window=3, burst=10)
    seed = random.randrange(2**32)
    async with redis(tmp_path) as server, processes(server.url, policy) as found:
        await hammer(found, 1, seed)
        if fault == "kill":
            await server.kill()
        else:
            server.freeze()
        async with watch_lag() as lag:
            hammering = asyncio.create_task(hammer(found, 8, seed))
            await found.healthy(healthy=False)
            parted = time.monotonic()
            await hammering
        assert lag.p99 < 0.05
        # Everybody has his share, and no more.
        alone = found.most(2, since=parted)
        assert alone == pytest.approx(policy.limit * 2 / 3, abs=12), f"seed {seed}"
        if fault == "kill":
            await server.start()
        else:
            server.thaw()
        await asyncio.gather(hammer(found, 3, seed), found.healthy(healthy=True))
        await hammer(found, 3, seed)
    # Twice each time: it went, and it came back.
    once_more = policy.burst + 4 * (math.ceil(2 * policy.burst / 4) + 1)
    turns = 2 * max(one.lost for one in found.settlements)
    assert found.most(policy.window) <= policy.limit + slack(policy, 4) + turns * once_more, f"seed {seed}"


async def test_a_part_of_a_cluster_is_not_enough_to_share_limits(tmp_path: Path) -> None:
    policy = Policy("requests", 600)
    async with redis_cluster(tmp_path) as cluster, processes(cluster.url, policy, 2) as found:
        await cluster.nodes[2].kill()
        await found.healthy(healthy=False)
        assert found.take(0)
        await cluster.nodes[2].start()
        await cluster.settled()
        await found.healthy(healthy=True)


async def test_what_cannot_be_settled_says_so(tmp_path: Path, connect: Connect) -> None:
    async with redis(tmp_path) as server:
        counters = RedisCounters(await connect(server.url), "t")
        await counters.settle([])
        await server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unavailable):
            await counters.settle([Spent("requests", "a", 1.0)])
        await server.kill()
        with pytest.raises(StorageError):
            await counters.settle([Spent("requests", "a", 1.0)])
        await counters.close()
