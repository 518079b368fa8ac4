"""The newest values in memory: bounded, current, loaded once however many ask."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.cache import LatestCache
from storage.errors import Timeout
from storage.models import Batch, Latest, Reading, Sample
from tests.clock import Clock


class Database:
    """What `load` reads; a load ends when the test says so, with what was there when it began."""

    def __init__(self) -> None:
        self.devices: dict[str, Latest] = {}
        self.head = 0
        self.loads: list[tuple[str, asyncio.Future[None]]] = []
        self.held = False

    async def load(self, device: str) -> Latest:
        found = self.newest(device)
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.loads.append((device, gate))
        if self.held:
            await gate
        return found

    def newest(self, device: str) -> Latest:
        found = self.devices.get(device, Latest(device, 0, {}))
        return Latest(device, found.offset, dict(found.metrics))

    def commit(self, *readings: tuple[str, str, int]) -> Batch:
        first, stored = self.head + 1, []
        for device, metric, ts in readings:
            self.head += 1
            stored.append(Reading(self.head, device, metric, ts, self.head))
            metrics = self.newest(device).metrics
            if metric not in metrics or ts > metrics[metric].ts:
                metrics[metric] = Sample(ts, self.head, self.head)
            self.devices[device] = Latest(device, self.head, metrics)
        return Batch(first, self.head, stored)


def made(database: Database, capacity: int = 10, ttl: float = 60.0) -> tuple[LatestCache, Clock]:
    clock = Clock(0.0)
    return LatestCache(database.load, capacity, ttl, clock), clock


async def started(database: Database, loads: int) -> None:
    while len(database.loads) < loads:
        await asyncio.sleep(0)


async def test_what_was_used_longest_ago_makes_room() -> None:
    cache, _ = made(Database(), capacity=2)
    for device in ("a", "b"):
        await cache.fetch(device)
    assert cache.get("a") is not None
    await cache.fetch("c")
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.get("c") is not None
    assert (len(cache), cache.hits, cache.misses, cache.evictions) == (2, 3, 1, 1)
    # To load again what is there makes no room.
    await cache.fetch("a")
    assert (len(cache), cache.evictions) == (2, 1)


async def test_what_is_older_than_its_time_is_loaded_again() -> None:
    database = Database()
    cache, clock = made(database, ttl=5.0)
    await cache.fetch("a")
    clock.now = 4.9
    assert cache.get("a") is not None
    clock.now = 5.0
    assert cache.get("a") is None
    await cache.fetch("a")
    clock.now = 9.9
    assert cache.get("a") is not None
    assert len(database.loads) == 2


async def test_many_who_ask_share_one_load_and_one_who_gives_up_takes_nothing_from_the_others() -> None:
    database = Database()
    database.held = True
    database.commit(("a", "m", 1))
    cache, _ = made(database)
    asking = [asyncio.create_task(cache.fetch("a")) for _ in range(5)]
    await started(database, 1)
    asking[0].cancel()
    asking[3].cancel()
    await asyncio.sleep(0)
    database.loads[0][1].set_result(None)
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert answers[1] == answers[2] == answers[4] == database.devices["a"]
    assert len(database.loads) == 1
    assert cache.get("a") == database.devices["a"]


async def test_a_load_whose_waiters_are_all_gone_is_kept_and_close_waits_for_it() -> None:
    database = Database()
    database.held = True
    cache, _ = made(database)
    asking = asyncio.create_task(cache.fetch("a"))
    await started(database, 1)
    asking.cancel()
    closing = asyncio.create_task(cache.close())
    await asyncio.sleep(0)
    assert not closing.done()
    database.loads[0][1].set_result(None)
    await closing
    assert cache.get("a") is not None


async def test_a_failed_load_fails_those_who_wait_and_is_tried_again_by_the_next() -> None:
    database = Database()
    database.held = True
    cache, _ = made(database)
    asking = [asyncio.create_task(cache.fetch("a")) for _ in range(3)]
    await started(database, 1)
    database.loads[0][1].set_exception(Timeout("slow"))
    assert [type(e) for e in await asyncio.gather(*asking, return_exceptions=True)] == [Timeout] * 3
    assert cache.get("a") is None
    database.held = False
    assert (await cache.fetch("a")).offset == 0


async def test_commits_during_a_load_are_in_its_answer_and_in_what_is_kept() -> None:
    database = Database()
    database.held = True
    database.commit(("a", "m", 10), ("a", "n", 10))
    cache, _ = made(database)
    asking = asyncio.create_task(cache.fetch("a"))
    await started(database, 1)
    # Newer, older than the newest, of a new metric, and of another device.
    cache.apply(database.commit(("a", "m", 20), ("a", "n", 5), ("a", "o", 1), ("b", "m", 99)))
    database.loads[0][1].set_result(None)
    assert await asking == database.devices["a"] == cache.get("a")
    assert database.devices["a"].offset == 5


@pytest.mark.parametrize("forget", [lambda cache: cache.forget("a"), lambda cache: cache.clear()])
async def test_what_was_loaded_while_the_device_was_deleted_is_not_kept(
    forget: Callable[[LatestCache], None],
) -> None:
    database = Database()
    database.held = True
    database.commit(("a", "m", 1))
    cache, _ = made(database)
    before = asyncio.create_task(cache.fetch("a"))
    await started(database, 1)
    database.devices.clear()
    forget(cache)
    after = asyncio.create_task(cache.fetch("a"))
    await started(database, 2)
    cache.apply(database.commit(("a", "n", 2)))
    database.loads[1][1].set_result(None)
    assert (await after).metrics.keys() == {"n"}
    database.loads[0][1].set_result(None)
    assert (await before).metrics.keys() == {"m"}
    kept = cache.get("a")
    assert kept is not None
    assert kept.metrics.keys() == {"n"}
    assert not cache._loads
    forget(cache)
    assert cache.get("a") is None


async def test_a_commit_of_a_device_that_is_not_kept_is_no_reason_to_keep_it() -> None:
    database = Database()
    cache, _ = made(database, capacity=1)
    await cache.fetch("a")
    await cache.fetch("b")
    cache.apply(database.commit(("a", "m", 1)))
    assert len(cache) == 1
    assert (await cache.fetch("a")) == database.devices["a"]


async def test_an_answer_does_not_change_under_who_waited_for_it() -> None:
    database = Database()
    database.commit(("a", "m", 1))
    cache, _ = made(database)
    answer = await cache.fetch("a")
    cache.apply(database.commit(("a", "m", 2), ("a", "n", 1)))
    assert answer == Latest("a", 1, {"m": Sample(1, 1, 1)})
    assert cache.get("a") == database.devices["a"]


commits = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("mn"), st.integers(0, 9)), min_size=1, max_size=4
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), commits),
        st.tuples(st.sampled_from(["fetch", "get", "delete"]), st.sampled_from("abc")),
        st.tuples(st.just("finish"), st.integers(0, 3)),
        st.tuples(st.just("later"), st.integers(1, 4)),
        st.just(("clear", None)),
    ),
    max_size=40,
)


class Story:
    """A cache over a database whose loads end late."""

    def __init__(self) -> None:
        self.database = Database()
        self.database.held = True
        self.cache, self._clock = made(self.database, capacity=2, ttl=6.0)
        self._asking: list[asyncio.Task[Latest]] = []

    async def commit(self, readings: list[tuple[str, str, int]]) -> None:
        newest = {
            (d, m, s.ts) for d, latest in self.database.devices.items() for m, s in latest.metrics.items()
        }
        # The log does not store an identity twice.
        self.cache.apply(self.database.commit(*[r for r in readings if r not in newest]))

    async def fetch(self, device: str) -> None:
        loads = len(self.database.loads) + (device not in self.cache._loads)
        self._asking.append(asyncio.create_task(self.cache.fetch(device)))
        # A load reads the database as of its beginning.
        await asyncio.sleep(0)
        await started(self.database, loads)

    async def get(self, device: str) -> None:
        known = self.cache.get(device)
        assert known is None or known == self.database.newest(device)

    async def delete(self, device: str) -> None:
        self.database.devices[device] = Latest(device, 0, {})
        self.cache.forget(device)

    async def finish(self, which: int) -> None:
        gates = [gate for _, gate in self.database.loads if not gate.done()]
        for gate in gates[which : which + 1]:
            gate.set_result(None)
        for _ in range(4):
            await asyncio.sleep(0)

    async def later(self, seconds: int) -> None:
        self._clock.now += seconds

    async def clear(self, _: None) -> None:
        self.cache.clear()

    async def end(self) -> None:
        for _, gate in self.database.loads:
            if not gate.done():
                gate.set_result(None)
        await asyncio.gather(*self._asking)
        await self.cache.close()
        for device, entry in self.cache._entries.items():
            known = self.database.newest(device)
            assert entry.latest == known


@given(steps)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_what_is_kept_is_what_the_database_holds(story: list[tuple[str, Any]]) -> None:
    async def play() -> None:
        told = Story()
        for what, which in story:
            await getattr(told, what)(which)
            assert len(told.cache) <= 2
        await told.end()

    asyncio.run(play())
