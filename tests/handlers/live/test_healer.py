"""Several processes write one log: each hub hands it on in order, once, whole, whatever gets lost."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from handlers.hub import Hub
from handlers.live import healer as healing
from handlers.live.filters import Filter
from handlers.live.follower import Follower, Owner
from handlers.live.gap import Gap
from handlers.live.healer import Healer
from handlers.live.subscription import Overflow, Subscription
from handlers.live.window import READING_SIZE
from handlers.live.wires import JsonFrames
from handlers.times import to_us
from storage import log as logs
from storage.errors import Unavailable
from storage.log import LogPage, LogState
from storage.models import Batch, Reading
from storage.patterns import Selection, parse_pattern
from tests.raw import until

EVERYTHING = Filter([parse_pattern(">")], [parse_pattern(">")])


class Log:
    """A log that is appended to by whoever wants. What this process knows of it is what it asked for."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self.epoch = "e"
        self.floor = 0
        self.away = False
        # When, in loop time.
        self.asked: list[float] = []
        self.pages: list[int] = []
        self._known = LogState("e", 0, 0)

    @property
    def head(self) -> int:
        return len(self.readings)

    def append(self, count: int) -> Batch:
        first = self.head + 1
        new = [Reading(first + n, "a", "m", first + n, first + n) for n in range(count)]
        self.readings += new
        return Batch(first, self.head, new)

    def state(self) -> LogState:
        return self._known

    async def refresh(self) -> LogState:
        self.asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("the database is away")
        self._known = LogState(self.epoch, self.head, self.floor)
        return self._known

    async def read_from(self, offset: int, until: int, limit: int, selection: Selection) -> LogPage:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("the database is away")
        found = self.readings[offset : min(until, offset + limit)]
        self.pages.append(len(found))
        return LogPage(found, offset + len(found), self.floor, self.epoch)


class _Owner(Owner):
    """Of a follower that reads everything at once."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def too_slow(self) -> None:
        self.ends.append("slow")

    def broken(self) -> None:
        self.ends.append("broken")

    def dropped(self, subscription: Subscription) -> bytes:
        raise AssertionError


class _Sink:
    """Keeps what the client has not read: all of it, if it is told to stop."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.kept: deque[bytes] = deque()
        self.stalled = False

    def write(self, data: bytes) -> None:
        if self.stalled:
            self.kept.append(data)
            return
        # Frames are whole.
        start = 0
        while start < len(data):
            size, begin = data[start + 1], start + 2
            if size == 126:
                size, begin = int.from_bytes(data[begin : begin + 2]), begin + 2
            start = begin + size
            message = json.loads(data[begin:start])
            if message["type"] == "reading":
                assert message["position"] == f"e-{message['ts']}"
                self.got.append(message["ts"])

    def pending(self) -> int:
        return sum(map(len, self.kept))

    def hold(self) -> None: ...

    release = close = abort = hold


class Node:
    """A process: its hub with one follower, or none, and its healer."""

    def __init__(self, log: Log, *, early: int = 1 << 20, followed: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self.log = log
        self.hub = Hub(
            log.head,
            epoch="e",
            window=100 * READING_SIZE,
            now=loop.time,
            alarm=lambda _: None,
            observe=lambda _: None,
        )
        self.hub.gap = Gap(loop.time, early)
        self.told = True
        self.found: list[int] = []
        self.passed = 0
        self.healer = Healer(
            self.hub,
            cast("logs.Log", log),
            told=lambda: self.told,
            found=lambda batch: self.found.append(batch.last),
            passed=self._pass,
        )
        self.sink, self.owner = _Sink(), _Owner()
        self.follower = Follower(self.hub, self.owner, self.sink, JsonFrames(0, "e", to_us), 1 << 20)
        if followed:
            subscription = Subscription(1, EVERYTHING, Overflow.DISCONNECT, 0.0, log.head)
            self.follower.add(subscription)
            self.follower.go_live(subscription)

    def _pass(self) -> None:
        self.passed += 1


# -- any order ---------------------------------------------------------------------------------

# Who commits how many readings; where its batch goes to, how often, and how late.
commits = st.lists(
    st.tuples(st.integers(0, 1), st.integers(1, 4), st.integers(0, 2), st.integers(0, 12)),
    min_size=1,
    max_size=30,
)


async def interleave(work: list[tuple[int, int, int, int]], looks: set[int], early: int) -> None:
    """Two nodes commit; what the other one is told of it comes late, in any order, twice or not at all."""
    log = Log()
    nodes = [Node(log, early=early * READING_SIZE) for _ in range(2)]
    under_way: list[tuple[int, int, Batch]] = []
    for step, (own, count, copies, delay) in enumerate(work):
        batch = log.append(count)
        nodes[own].hub.publish(batch)
        under_way += [(step + delay * (copy + 1), 1 - own, batch) for copy in range(copies)]
        for due, other, late in sorted(under_way, key=lambda one: one[0]):
            if due <= step:
                nodes[other].hub.publish(late)
        under_way = [one for one in under_way if one[0] > step]
        if step in looks:
            await nodes[step % 2].healer.look()
        for node in nodes:
            whole(node)
    for _, other, late in under_way:
        nodes[other].hub.publish(late)
    for node in nodes:
        await node.healer.look()
        whole(node)
        assert node.hub.head == log.head, "the end of the log is missing"
        assert node.hub.gap.until == node.hub.gap.size == 0, "something waits for ever"


def whole(node: Node) -> None:
    """What the follower has is the log up to the head of the hub, and the positions say so."""
    assert node.sink.got == list(range(1, node.hub.head + 1))
    assert node.follower.position() == node.hub.head
    assert node.hub.gap.size <= node.hub.gap._capacity
    assert node.owner.ends == []


# For what is known to be wrong: one failure does, and it need not be the shortest.
PLANTED: dict[str, Any] = {"phases": [Phase.generate], "database": None, "report_multiple_bugs": False}


def explore(examples: int = 300, **options: Any) -> None:
    @settings(max_examples=examples, deadline=None, **options)
    @given(work=commits, looks=st.sets(st.integers(0, 29), max_size=4), early=st.integers(1, 20))
    def run(work: list[tuple[int, int, int, int]], looks: set[int], early: int) -> None:
        asyncio.run(interleave(work, looks, early))

    run()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healing, "PAGE", 3)


def test_in_whatever_order_batches_come_each_hub_hands_on_the_log(small: None, long: bool) -> None:
    explore(5000 if long else 300)


Publish = Callable[[Hub, Batch], None]


def does_not_wait(publish: Publish, hub: Hub, batch: Batch) -> None:
    """An early batch is handed on before what it waits for."""
    if batch.first > hub.head + 1:
        hub.head = batch.first - 1
    publish(hub, batch)


def repeats(publish: Publish, hub: Hub, batch: Batch) -> None:
    """What has been handed on is handed on again."""
    if batch.last <= hub.head:
        head, hub.head = hub.head, batch.first - 1
        publish(hub, batch)
        hub.head = head
    else:
        publish(hub, batch)


def jumps(publish: Publish, hub: Hub, batch: Batch) -> None:
    """A gap is taken for a hole."""
    if batch.first > hub.head + 1:
        batch = Batch(hub.head + 1, batch.last, batch.readings)
    publish(hub, batch)


@pytest.mark.parametrize("fault", [does_not_wait, repeats, jumps])
def test_a_hub_that_gets_the_order_wrong_is_seen(
    fault: Callable[..., None], small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Hub.publish
    monkeypatch.setattr(Hub, "publish", lambda hub, batch: fault(publish, hub, batch))
    with pytest.raises(AssertionError):
        explore(**PLANTED)


def test_a_gap_that_keeps_what_it_gives_is_seen(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are never counted down would end the keeping of early batches for good."""
    settle = Gap.settle

    def leaks(gap: Gap, head: int) -> Batch | None:
        size = gap.size
        found = settle(gap, head)
        gap.size = size
        return found

    monkeypatch.setattr(Gap, "settle", leaks)
    with pytest.raises(AssertionError):
        explore(**PLANTED)


def test_a_healer_that_leaves_something_out_is_seen(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read_from = Log.read_from

    async def careless(log: Log, *arguments: Any) -> LogPage:
        page = await read_from(log, *arguments)
        return LogPage(page.readings[:2], page.scanned, page.floor, page.epoch)

    monkeypatch.setattr(Log, "read_from", careless)
    with pytest.raises(AssertionError):
        explore(**PLANTED)


# -- when the database is asked ----------------------------------------------------------------


async def running(node: Node) -> "asyncio.Task[None]":
    """Its healer; to be cancelled."""
    return asyncio.get_running_loop().create_task(node.healer.run())


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look at the head within the test."""
    monkeypatch.setattr(healing, "ALONE", 3600.0)
    monkeypatch.setattr(healing, "TOLD", 3600.0)


async def test_what_is_late_by_less_than_50_ms_is_not_read_from_the_database(quiet: None) -> None:
    log = Log()
    node = Node(log)
    task = await running(node)
    for _ in range(20):
        late, early = log.append(2), log.append(1)
        node.hub.publish(early)
        assert node.hub.head == early.first - 3
        await asyncio.sleep(0.01)
        node.hub.publish(late)
        whole(node)
        assert node.hub.head == log.head
    task.cancel()
    assert log.pages == []
    assert node.healer.healed == 0


async def test_what_does_not_come_within_50_ms_is_read_from_the_database(quiet: None) -> None:
    log = Log()
    node = Node(log)
    task = await running(node)
    took: list[float] = []
    # Who is starved is late: the best of some tells.
    for _ in range(3):
        log.append(3)
        started = node.hub.now()
        node.hub.publish(log.append(2))
        await until(lambda: node.hub.head == log.head)
        took.append(round(node.hub.now() - started, 3))
    task.cancel()
    whole(node)
    assert 0.05 <= min(took) < 1.0
    assert node.healer.healed == 15
    assert node.found == [5, 10, 15]


async def test_a_gap_that_others_follow_at_full_speed_is_filled_all_the_same(quiet: None) -> None:
    """Early batches that go on coming do not put it off, nor do batches that were there already."""
    log = Log()
    node = Node(log)
    task = await running(node)
    first = log.append(1)
    node.hub.publish(first)
    log.append(1)
    # A millisecond each, or more: 50 of them are to be expected.
    early = 0
    while node.hub.head < 3 and early < 500:
        node.hub.publish(log.append(1))
        node.hub.publish(first)
        early += 1
        await asyncio.sleep(0.001)
    task.cancel()
    whole(node)
    assert node.hub.head >= 3


@pytest.mark.parametrize(("told", "every"), [(False, 0.25), (True, 1.0)])
async def test_the_head_is_compared_every_250_ms_or_once_a_second_where_somebody_tells(
    told: bool, every: float
) -> None:
    log = Log()
    node = Node(log)
    node.told = told
    task = await running(node)
    await until(lambda: len(log.asked) >= 3)
    log.append(2)
    await until(lambda: node.hub.head == 2)
    task.cancel()
    # Who is starved is late: the shortest pause tells.
    assert every <= min(pauses(log)) < 1.8 * every
    whole(node)


def pauses(log: Log) -> list[float]:
    """Between questions to the database, in seconds; the loop's clock counts milliseconds."""
    return [round(later - earlier, 3) for earlier, later in pairwise(log.asked)]


async def test_where_nobody_follows_the_hub_keeps_up_without_reading(quiet: None) -> None:
    log = Log()
    node = Node(log, followed=False)
    log.append(100_000)
    await node.healer.look()
    assert (node.hub.head, node.hub.window.after, node.healer.skipped) == (100_000, 100_000, 100_000)
    assert log.pages == []
    assert node.passed == 1
    # Who comes now gets what comes now.
    subscription = Subscription(1, EVERYTHING, Overflow.DISCONNECT, 0.0, node.hub.head)
    node.follower.add(subscription)
    node.follower.go_live(subscription)
    node.hub.publish(log.append(2))
    assert node.sink.got == [100_001, 100_002]


async def test_a_large_gap_is_read_page_by_page_and_the_loop_goes_on(quiet: None) -> None:
    log = Log()
    node = Node(log)
    log.append(50_000)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await node.healer.look()
    task.cancel()
    whole(node)
    assert max(log.pages) <= healing.PAGE
    assert turns >= len(log.pages) == 50_000 // healing.PAGE


async def test_early_batches_over_the_bound_come_out_of_the_log(quiet: None) -> None:
    log = Log()
    node = Node(log, early=10 * READING_SIZE)
    log.append(1)
    for _ in range(1000):
        node.hub.publish(log.append(2))
        assert node.hub.gap.size <= 10 * READING_SIZE
    assert node.hub.head == 0
    await node.healer.look()
    whole(node)
    assert node.hub.head == 2001


async def test_one_question_does_for_all_who_ask_at_the_same_time(quiet: None) -> None:
    log = Log()
    node = Node(log)
    log.append(7)
    await asyncio.gather(*(node.healer.look() for _ in range(1000)))
    assert len(log.asked) <= 2
    whole(node)
    assert node.hub.head == 7
    # Who gives up takes nobody with him.
    waiting = [asyncio.ensure_future(node.healer.look()) for _ in range(10)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(*waiting[1:])
    log.away = True
    failures = await asyncio.gather(*(node.healer.look() for _ in range(3)), return_exceptions=True)
    assert [type(failure) for failure in failures] == [Unavailable] * 3


async def test_while_the_database_is_away_it_is_left_in_peace_and_then_nothing_is_missing(
    caplog: pytest.LogCaptureFixture, quiet: None
) -> None:
    log = Log()
    node = Node(log)
    log.away = True
    with caplog.at_level(logging.INFO):
        task = await running(node)
        log.append(2)
        node.hub.publish(log.append(1))
        await until(lambda: len(log.asked) >= 4)
        assert 0.25 <= min(pauses(log)) < 0.5
        log.away = False
        await until(lambda: node.hub.head == 3)
        task.cancel()
    whole(node)
    said = [record.message for record in caplog.records]
    assert said.count("the log cannot be read") == said.count("the log can be read again") == 1


async def test_readings_that_retention_removed_before_they_were_told_end_the_followers(quiet: None) -> None:
    log = Log()
    node = Node(log)
    log.append(10)
    log.floor = 5
    log.readings[:5] = []
    await node.healer.look()
    assert node.owner.ends


async def test_a_page_of_another_log_is_not_handed_on(quiet: None) -> None:
    log = Log()
    node = Node(log)
    log.append(2)
    node.hub.publish(log.append(1))
    log.epoch = "f"
    await node.healer._fill()
    assert node.sink.got == []
    replaced: list[str] = []
    node.hub.replaced = replaced.append
    await node.healer.look()
    assert replaced == ["f"]
    assert (node.hub.epoch, node.hub.head, node.hub.gap.until) == ("f", 3, 0)
    assert node.owner.ends == ["broken"]
    assert node.sink.got == []


# -- commits larger than what may wait ---------------------------------------------------------


def bulk(first: int, count: int) -> Batch:
    text = "x" * 1000
    return Batch(
        first, first + count - 1, [Reading(first + n, "a", "m", first + n, text) for n in range(count)]
    )


async def test_two_commits_larger_than_the_queue_at_once_are_no_slow_reader() -> None:
    node = Node(Log())
    node.sink.stalled = True
    # 1 MiB may wait; two of about 4 MB, and small ones behind them.
    head = 0
    for size in (4000, 4000, 1, 100, 1):
        node.hub.publish(bulk(head + 1, size))
        head += size
        assert node.owner.ends == []
    node.sink.stalled = False
    for data in list(node.sink.kept):
        node.sink.write(data)
    node.sink.kept.clear()
    node.follower.drained()
    assert node.sink.got == list(range(1, head + 1))
    assert node.follower.position() == head


async def test_who_does_not_read_is_ended_however_large_the_commits_are() -> None:
    node = Node(Log())
    node.sink.stalled = True
    head = 0
    for _ in range(10):
        node.hub.publish(bulk(head + 1, 4000))
        head += 4000
        if node.owner.ends:
            break
        assert node.follower.queued() < 12_000_000
    assert node.owner.ends == ["slow"]
    assert head == 12_000


async def test_small_commits_end_who_does_not_read_at_the_bound() -> None:
    node = Node(Log())
    node.sink.stalled = True
    head = 0
    while not node.owner.ends:
        node.hub.publish(bulk(head + 1, 10))
        head += 10
        assert node.owner.ends or node.follower.queued() <= 1 << 20
    assert node.owner.ends == ["slow"]


# -- the same bytes for all --------------------------------------------------------------------


async def test_a_commit_is_one_write_of_the_same_bytes_to_all_who_follow_in_the_same_form() -> None:
    node = Node(Log())
    wire = JsonFrames(0, "e", to_us)
    sinks = [_Sink() for _ in range(3)]
    for number, sink in enumerate(sinks):
        sink.stalled = True
        follower = Follower(node.hub, node.owner, sink, wire, 1 << 20)
        # Two of them ask for the same, one for more.
        match = [parse_pattern(">" if number == 2 else "a")]
        subscription = Subscription(1, Filter(match, [parse_pattern(">")]), Overflow.DISCONNECT, 0.0, 0)
        follower.add(subscription)
        follower.go_live(subscription)
    node.hub.publish(bulk(1, 16))
    node.hub.publish(bulk(17, 1))
    assert [len(sink.kept) for sink in sinks] == [2, 2, 2]
    assert sinks[0].kept[0] is sinks[1].kept[0]
    # A single reading is shared by who asks for something else too.
    assert len({id(sink.kept[1]) for sink in sinks}) == 1
