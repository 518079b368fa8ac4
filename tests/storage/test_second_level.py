"""The cache that processes share: what it gives is never older than what a process has heard of."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.cache import LatestCache
from storage.log import LogState
from storage.models import Batch, Latest, Reading, Sample
from storage.second_level import Heard, Kept, SecondLevel


class Shelf:
    """A store in memory. `held`: answers wait until the test lets them go."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.held = False
        self.gates: list[asyncio.Future[None]] = []

    def get(self, device: str, found: Callable[[Kept | None], None]) -> None:
        kept = self.kept.get(device)
        if not self.held:
            found(kept)
            return
        gate = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        gate.add_done_callback(lambda _: found(kept))

    def put(self, device: str, kept: Kept) -> None:
        # What is put is written down at once: the first level goes on changing what it has.
        self.kept[device] = Kept(kept.epoch, kept.floor, kept.head, kept.offset, dict(kept.metrics))

    def forget(self, device: str) -> None:
        self.kept.pop(device, None)

    async def wait(self) -> None:
        if self.held:
            gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.gates.append(gate)
            await gate


class Process:
    """A process with its two levels before one database. `loads`: how often it asked that."""

    def __init__(
        self, shelf: Shelf, database: "Database", capacity: int = 1, devices_max: int = 1000
    ) -> None:
        self.shelf = shelf
        self.database = database
        self.state = LogState("epoch", database.head, 0)
        self.loads = 0
        self.second = SecondLevel(shelf, lambda: self.state, devices_max)
        self.cache = LatestCache(self._load, capacity, 60.0, second=self.second)

    async def _load(self, device: str) -> Latest:
        self.loads += 1
        found = self.database.newest(device)
        await self.shelf.wait()
        return found

    def hear(self, batch: Batch) -> None:
        self.state = LogState(self.state.epoch, max(self.state.head, batch.last), self.state.floor)
        self.cache.apply(batch)

    async def latest(self, device: str) -> Latest:
        return self.cache.get(device) or await self.cache.fetch(device)


class Database:
    """The log, and what is newest in it."""

    def __init__(self) -> None:
        self.head = 0
        self.devices: dict[str, Latest] = {}

    def newest(self, device: str) -> Latest:
        found = self.devices.get(device, Latest(device, 0, {}))
        return Latest(device, found.offset, dict(found.metrics))

    def commit(self, device: str, metric: str = "m", ts: int | None = None) -> Batch:
        self.head += 1
        ts = self.head if ts is None else ts
        latest = self.newest(device)
        latest.offset = self.head
        if metric not in latest.metrics or ts > latest.metrics[metric].ts:
            latest.metrics[metric] = Sample(ts, self.head, self.head)
        self.devices[device] = latest
        return Batch(self.head, self.head, [Reading(self.head, device, metric, ts, self.head)])


def house(count: int = 2, **options: int) -> tuple[Shelf, Database, list[Process]]:
    shelf, database = Shelf(), Database()
    return shelf, database, [Process(shelf, database, **options) for _ in range(count)]


def told(batch: Batch, *processes: Process) -> None:
    for process in processes:
        process.hear(batch)


async def test_what_one_process_has_loaded_another_need_not_load() -> None:
    _, database, (one, two) = house()
    told(database.commit("a"), one, two)
    assert await one.latest("a") == await two.latest("a") == database.newest("a")
    assert (one.loads, two.loads) == (1, 0)
    assert (two.second.hits, two.cache.misses) == (1, 1)


async def test_after_a_commit_that_a_process_has_heard_of_the_old_value_is_not_used_but_replaced() -> None:
    _, database, (one, two) = house()
    told(database.commit("a"), one, two)
    await one.latest("a")
    batch = database.commit("a")
    two.hear(batch)
    assert (await two.latest("a")).offset == 2
    assert two.loads == 1
    one.hear(batch)
    one.cache.get("a")
    # As if it had made room for another: what was replaced is good for everybody.
    await one.latest("b")
    assert (await one.latest("a")).offset == 2
    assert one.loads == 2


async def test_a_commit_that_is_heard_of_while_the_value_is_on_its_way_counts() -> None:
    shelf, database, (one, two) = house()
    told(database.commit("a"), one, two)
    await one.latest("a")
    shelf.held = True
    asking = asyncio.create_task(two.latest("a"))
    while not shelf.gates:
        await asyncio.sleep(0)
    two.hear(database.commit("a", "n"))
    shelf.held = False
    shelf.gates[0].set_result(None)
    assert (await asking).metrics.keys() == {"m", "n"}
    assert two.loads == 1


@pytest.mark.parametrize("state", [LogState("other", 9, 0), LogState("epoch", 9, 1)], ids=["epoch", "floor"])
async def test_a_value_of_another_epoch_or_from_before_retention_is_not_used(state: LogState) -> None:
    _, database, (one, two) = house()
    told(database.commit("a"), one, two)
    await one.latest("a")
    two.state = state
    await two.latest("a")
    assert two.loads == 1


async def test_what_was_kept_before_a_device_was_deleted_is_not_used() -> None:
    shelf, database, (one, two) = house()
    told(database.commit("a"), one, two)
    await one.latest("a")
    old = shelf.kept["a"]
    database.devices.clear()
    one.cache.forget("a", one.state.head)
    assert shelf.kept == {}
    # Somebody who had begun before puts it back.
    shelf.kept["a"] = old
    two.cache.forget("a", one.state.head)
    assert (await two.latest("a")).offset == 0
    shelf.kept["a"] = old
    two.cache.clear()
    two.hear(database.commit("a"))
    assert (await two.latest("a")).offset == 2


async def test_after_missed_commits_only_what_is_loaded_since_is_used() -> None:
    _, database, (one, two) = house()
    told(database.commit("a"), one, two)
    await one.latest("a")
    one.hear(database.commit("a"))
    # The second one missed that, and knows only that the log has gone on.
    two.state = LogState("epoch", 2, 0)
    two.cache.clear()
    assert (await two.latest("a")).offset == 2
    assert two.loads == 1


async def test_what_was_loaded_without_having_been_heard_of_is_known_too() -> None:
    shelf, database, (one, _) = house()
    told(database.commit("a"), one)
    await one.latest("a")
    old = shelf.kept["a"]
    # Another process commits, and its message is late.
    database.commit("a")
    await one.latest("b")
    shelf.kept.clear()
    assert (await one.latest("a")).offset == 2
    # Somebody slow puts back what he had loaded before.
    await one.latest("b")
    shelf.kept["a"] = old
    assert (await one.latest("a")).offset == 2


async def test_what_was_taken_out_once_is_known_too() -> None:
    shelf, database, (one, two) = house()
    batch = database.commit("a")
    told(batch, one, two)
    await one.latest("a")
    old = shelf.kept["a"]
    one.hear(database.commit("a"))
    await one.latest("b")
    await one.latest("a")
    # Two has heard of the first commit only, and shows the second.
    assert (await two.latest("a")).offset == 2
    await two.latest("b")
    shelf.kept["a"] = old
    assert (await two.latest("a")).offset == 2


def test_devices_beyond_the_bound_are_forgotten_and_older_values_with_them() -> None:
    heard = Heard(0, 10)
    for offset in range(1, 1001):
        heard.apply(Batch(offset, offset, [Reading(offset, f"d{offset}", "m", 1, 1)]))
        assert len(heard) <= 11
    assert heard.includes("d1000", 1000, 1000)
    assert not heard.includes("d1000", 999, 10_000)
    # It is not known any more who wrote then.
    assert not heard.includes("d1", 1, 900)
    assert heard.includes("d1", 1, 999)


def test_what_is_noted_late_does_not_pass_for_the_newest_when_that_is_forgotten() -> None:
    heard = Heard(0, 2)
    for offset in (10, 11, 12, 13, 14, 15):
        heard.note(f"d{offset}", offset)
        heard.note("late", offset)
    heard.note("late", 3)
    assert not heard.includes("late", 3, 3)
    for offset in (16, 17, 18, 19):
        heard.note(f"d{offset}", offset)
    heard.note("late", 3)
    assert not heard.includes("late", 3, 3)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(0, 2), st.sampled_from("ab"), st.sampled_from("mn")),
        st.tuples(st.sampled_from(["hear", "lose"]), st.integers(0, 2), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("fetch"), st.integers(0, 2), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("finish"), st.integers(0, 5), st.just(0), st.just(0)),
        st.tuples(st.just("skip"), st.integers(0, 2), st.just(0), st.just(0)),
    ),
    max_size=60,
)


class Story:
    """Three processes whose messages come in any order or not at all, and whose questions take long."""

    def __init__(self, devices_max: int) -> None:
        self.shelf, self.database, self.processes = house(3, devices_max=devices_max)
        self.shelf.held = True
        self.due: list[list[Batch]] = [[], [], []]
        # Per process and device: what was heard of, by metric.
        self.heard: dict[tuple[int, str], dict[str, int]] = {}
        self.asking: list[asyncio.Task[None]] = []

    def known(self, which: int, device: str) -> dict[str, int]:
        return self.heard.setdefault((which, device), {})

    async def commit(self, which: int, device: str, metric: str) -> None:
        batch = self.database.commit(device, metric)
        for other, due in enumerate(self.due):
            if other != which:
                due.append(batch)
        self.hears(which, batch)

    def hears(self, which: int, batch: Batch) -> None:
        self.processes[which].hear(batch)
        for reading in batch.readings:
            known = self.known(which, reading.device)
            known[reading.metric] = max(reading.offset, known.get(reading.metric, 0))

    async def hear(self, which: int, place: int, _: int) -> None:
        if place < len(self.due[which]):
            self.hears(which, self.due[which].pop(place))

    async def lose(self, which: int, place: int, _: int) -> None:
        if place < len(self.due[which]):
            self.due[which].pop(place)

    async def skip(self, which: int, *_: int) -> None:
        process = self.processes[which]
        process.state = LogState("epoch", self.database.head, 0)
        self.due[which].clear()
        process.cache.clear()
        for device in "ab":
            for metric, sample in self.database.newest(device).metrics.items():
                self.known(which, device)[metric] = sample.offset

    async def fetch(self, which: int, device: str, *_: int) -> None:
        self.asking.append(asyncio.create_task(self._fetch(which, device)))
        for _turn in range(5):
            await asyncio.sleep(0)

    async def _fetch(self, which: int, device: str) -> None:
        before = dict(self.known(which, device))
        found = await self.processes[which].latest(device)
        shown = {metric: sample.offset for metric, sample in found.metrics.items()}
        for metric, offset in before.items():
            assert shown.get(metric, 0) >= offset, (which, device, before, shown)
        # What was shown once is known: nothing older may follow.
        known = self.known(which, device)
        for metric, offset in shown.items():
            known[metric] = max(offset, known.get(metric, 0))

    async def finish(self, place: int, *_: int) -> None:
        gates = [gate for gate in self.shelf.gates if not gate.done()]
        for gate in gates[place : place + 1]:
            gate.set_result(None)
        for _turn in range(5):
            await asyncio.sleep(0)

    async def end(self) -> None:
        self.shelf.held = False
        while any(not task.done() for task in self.asking):
            for gate in self.shelf.gates:
                if not gate.done():
                    gate.set_result(None)
            await asyncio.sleep(0)
        await asyncio.gather(*self.asking)
        for which, process in enumerate(self.processes):
            for device in "ab":
                await self._fetch(which, device)
            await process.cache.close()


@given(st.sampled_from([1, 2, 1000]), steps)
@settings(max_examples=400)
def test_whatever_is_lost_or_late_no_process_sees_less_than_it_knows(
    devices_max: int, story: list[tuple[str, Any, Any, Any]]
) -> None:
    async def play() -> None:
        told = Story(devices_max)
        for what, *rest in story:
            await getattr(told, what)(*rest)
        await told.end()

    asyncio.run(play())
