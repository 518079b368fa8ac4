"""The group commit over an engine that the test controls."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from storage.commit import BATCH_READINGS, GroupCommit
from storage.errors import KeyRunning, Overloaded, StorageError, Timeout, Unavailable
from storage.models import Appended, Batch, Idempotency, Outcome, Reading, Write


class Engine:
    """Commits when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Write], asyncio.Future[Appended]]] = []
        self.changed = asyncio.Event()
        self.head = 0
        self.refusal: StorageError | None = None
        self.given: Callable[[], None] = lambda: None

    def append(self, writes: list[Write]) -> asyncio.Future[Appended]:
        if self.refusal is not None:
            raise self.refusal
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self.calls.append((writes, future))
        self.given()
        self.changed.set()
        return future

    async def called(self, times: int) -> None:
        """Wait for the n-th transaction."""
        async with asyncio.timeout(20):
            while len(self.calls) < times:
                self.changed.clear()
                await self.changed.wait()

    def finish(self) -> None:
        """All readings of the oldest transaction that is not ended are stored."""
        writes, future = next(call for call in self.calls if not call[1].done())
        first, results, readings = self.head + 1, [], []
        for write in writes:
            for device, metric, ts, value in write.readings:
                self.head += 1
                readings.append(Reading(self.head, device, metric, ts or 0, value))
            results.append(Outcome(len(write.readings), 0, (), self.head))
        future.set_result(Appended([*results], Batch(first, self.head, readings)))


class Bench:
    """A group commit with everything that happens around it."""

    def __init__(self, readings: int, size: int, deadline: float) -> None:
        self.engine = Engine()
        self.events: list[str] = []
        self.published: list[Batch] = []
        self.observed: list[int] = []
        self.commit = GroupCommit(
            self.engine, self._publish, self._observe, readings=readings, size=size, deadline=deadline
        )

    def _publish(self, batch: Batch) -> None:
        self.published.append(batch)
        self.events.append(f"published {batch.first}-{batch.last}")

    def _observe(self, readings: int, seconds: float) -> None:
        self.observed.append(readings)

    def submit(self, name: str, count: int = 1, size: int = 1, key: str = "") -> Write:
        write = Write(
            [("d", name, n, n) for n in range(count)],
            1,
            size,
            idempotency=Idempotency("p", key, b"") if key else None,
        )
        write.then(lambda settled: self.events.append(f"{name} settled"))
        self.commit.submit(write)
        return write

    def stuck(self) -> bool:
        return self.commit.stuck

    async def settled(self, write: Write) -> Outcome | StorageError:
        async with asyncio.timeout(20):
            while write.result is None:
                await asyncio.sleep(0)
        return write.result


@asynccontextmanager
async def bench(readings: int = 100_000, size: int = 10**9, deadline: float = 20) -> AsyncIterator[Bench]:
    made = Bench(readings, size, deadline)
    yield made
    closing = asyncio.create_task(made.commit.close())
    while not closing.done():
        for _, future in made.engine.calls:
            if not future.done():
                made.engine.finish()
        await asyncio.sleep(0)
    await closing


async def test_an_idle_gate_commits_at_once_and_a_busy_one_batches_by_itself() -> None:
    async with bench() as b:
        first = b.submit("a")
        await b.engine.called(1)
        others = [b.submit(f"b{n}") for n in range(50)]
        assert len(b.engine.calls) == 1
        b.engine.finish()
        await b.engine.called(2)
        assert [writes for writes, _ in b.engine.calls] == [[first], others]
        b.engine.finish()
        assert await b.settled(others[-1]) == Outcome(1, 0, (), 51)
        assert b.commit.figures.stored == 51
        assert b.observed == [1, 50]


async def test_a_transaction_has_at_most_10_000_readings_and_keeps_the_order_of_the_writes() -> None:
    async with bench() as b:
        b.submit("busy")
        await b.engine.called(1)
        sizes = [4_000, 4_000, 2_000, 1, 9_999, 1, 30_000, 1]
        writes = [b.submit(f"w{n}", size) for n, size in enumerate(sizes)]
        for call in range(2, 6):
            b.engine.finish()
            await b.engine.called(call)
        made = [batch for batch, _ in b.engine.calls[1:]]
        assert [[len(w.readings) for w in batch] for batch in made] == [
            [4_000, 4_000, 2_000],
            [1, 9_999],
            [1],
            [30_000],
        ]
        assert [w for batch in made for w in batch] == writes[:-1]


@pytest.mark.parametrize(("readings", "size"), [(10, 10**9), (10**6, 100)])
async def test_the_queue_is_bounded_in_readings_and_in_bytes(readings: int, size: int) -> None:
    async with bench(readings, size) as b:
        b.submit("busy", 1_000, 10_000)
        await b.engine.called(1)
        b.submit("large and alone", 1_000, 10_000)
        with pytest.raises(Overloaded):
            b.submit("one more")
        b.engine.finish()
        await b.engine.called(2)
        assert (b.commit.figures.queued_readings, b.commit.figures.queued_bytes) == (0, 0)
        for n in range(10):
            b.submit(f"fits {n}", 1, 10)
        assert (b.commit.figures.queued_readings, b.commit.figures.queued_bytes) == (10, 100)
        with pytest.raises(Overloaded):
            b.submit("one more", key="k")
        b.engine.finish()
        await b.engine.called(3)
        # What was refused holds no key.
        b.submit("again", key="k")


async def test_a_batch_is_published_before_its_writers_get_their_answers() -> None:
    async with bench() as b:
        last = [b.submit("a"), b.submit("b", 2)][-1]
        await b.engine.called(1)
        b.engine.finish()
        await b.settled(last)
        assert b.events == ["published 1-3", "a settled", "b settled"]


async def test_what_was_stored_before_without_anybody_knowing_is_published_first() -> None:
    """Who writes it again is told that it is a duplicate, and must then find it."""
    async with bench() as b:
        write = b.submit("a")
        await b.engine.called(1)
        late = Batch(1, 1, [Reading(1, "d", "a", 0, 0)])
        b.engine.calls[0][1].set_result(Appended([Outcome(0, 1, (), 1)], late=late))
        await b.settled(write)
        assert b.events == ["published 1-1", "a settled"]


async def test_the_next_transaction_begins_before_the_writers_of_the_last_one_are_told() -> None:
    async with bench() as b:
        b.submit("first")
        await b.engine.called(1)
        second = b.submit("second")
        b.engine.given = lambda: b.events.append("begun")
        b.engine.finish()
        await b.engine.called(2)
        b.engine.finish()
        await b.settled(second)
        assert b.events == ["begun", "published 1-1", "first settled", "published 2-2", "second settled"]


@pytest.mark.parametrize(("waiting", "given"), [(BATCH_READINGS - 1, 2), (BATCH_READINGS, 3)])
async def test_the_engine_is_given_a_second_transaction_only_if_it_is_full(waiting: int, given: int) -> None:
    async with bench() as b:
        first = b.submit("first")
        await b.engine.called(1)
        b.submit("second", BATCH_READINGS)
        b.submit("third", waiting)
        b.engine.finish()
        await b.settled(first)
        assert len(b.engine.calls) == given
        for _ in range(2):
            b.engine.finish()
            await b.engine.called(3)


async def test_a_stuck_engine_is_a_timeout_for_those_in_it_and_unavailable_for_all_others() -> None:
    async with bench(deadline=0.02) as b:
        inside = [b.submit("inside", key="k"), b.submit("inside too")]
        await b.engine.called(1)
        behind = b.submit("behind", 5, 50)
        assert [type(await b.settled(w)) for w in (*inside, behind)] == [Timeout, Timeout, Unavailable]
        assert b.stuck()
        with pytest.raises(Unavailable):
            b.submit("new")
        assert (b.commit.figures.queued_readings, b.commit.figures.queued_bytes) == (0, 0)
        assert b.published == []
        b.engine.finish()
        while not b.published:
            await asyncio.sleep(0)
        assert [r.metric for r in b.published[0].readings] == ["inside", "inside too"]
        assert not b.stuck()
        assert b.commit.figures.stored == 2
        after = b.submit("after", key="k")
        await b.engine.called(2)
        b.engine.finish()
        assert await b.settled(after) == Outcome(1, 0, (), 3)


async def test_an_idempotency_key_is_running_until_its_write_is_settled() -> None:
    async with bench() as b:
        first = b.submit("a", key="k")
        with pytest.raises(KeyRunning):
            b.submit("b", key="k")
        b.submit("c", key="other")
        await b.engine.called(1)
        with pytest.raises(KeyRunning):
            b.submit("b", key="k")
        b.engine.finish()
        await b.settled(first)
        b.submit("b", key="k")


async def test_closing_settles_everything_and_takes_nothing_more() -> None:
    async with bench() as b:
        writes = [b.submit(f"w{n}", 6_000) for n in range(4)]
        closing = asyncio.create_task(b.commit.close())
        await b.engine.called(1)
        with pytest.raises(Unavailable):
            b.submit("late")
        for n in range(1, 5):
            await b.engine.called(n)
            assert not closing.done()
            b.engine.finish()
        await closing
        assert all(isinstance(w.result, Outcome) for w in writes)
        assert b.commit.task.done()


async def test_a_waiter_who_gives_up_harms_nobody() -> None:
    async with bench() as b:
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        first = Write([("d", "m", 1, 1)], 1, 1)
        first.then(lambda _: gone.set_result(None))
        gone.cancel()
        b.commit.submit(first)
        second = b.submit("b")
        await b.engine.called(1)
        b.engine.finish()
        assert isinstance(await b.settled(second), Outcome)
        assert isinstance(first.result, Outcome)


def boom(*_: object) -> None:
    raise ArithmeticError("boom")


@pytest.mark.parametrize("part", ["listener", "_publish", "_observe"])
async def test_an_error_of_who_listens_is_logged_and_ends_no_commit(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench() as b:
        if part != "listener":
            setattr(b.commit, part, boom)
        bad = Write([("d", "m", 1, 1)], 1, 1)
        bad.then(boom)
        b.commit.submit(bad)
        good = b.submit("good")
        await b.engine.called(1)
        b.engine.finish()
        assert isinstance(await b.settled(good), Outcome)
        again = b.submit("again")
        await b.engine.called(2)
        b.engine.finish()
        assert isinstance(await b.settled(again), Outcome)
        assert not b.commit.task.done()
    assert [r.exc_info is not None for r in caplog.records if r.levelno == logging.ERROR]


async def fails_at_once(b: Bench) -> None:
    b.engine.refusal = Unavailable("closed")


async def fails_later(b: Bench) -> None:
    await b.engine.called(1)
    b.engine.calls[0][1].set_exception(KeyError("a bug"))


@pytest.mark.parametrize("fail", [fails_at_once, fails_later])
async def test_an_engine_that_breaks_its_promise_fails_the_writes_it_had_and_no_others(
    fail: Callable[[Bench], Awaitable[None]],
) -> None:
    async with bench() as b:
        write = b.submit("a")
        await fail(b)
        assert isinstance(await b.settled(write), Unavailable)
        b.engine.refusal = None
        calls = len(b.engine.calls)
        after = b.submit("b")
        await b.engine.called(calls + 1)
        b.engine.finish()
        assert isinstance(await b.settled(after), Outcome)


async def test_a_commit_task_that_is_ended_from_outside_leaves_nobody_waiting() -> None:
    b = Bench(100_000, 100, 20)
    b.submit("first")
    await b.engine.called(1)
    inside = [b.submit("inside", BATCH_READINGS), b.submit("inside too", BATCH_READINGS)]
    waiting = b.submit("waiting")
    b.engine.finish()
    await b.engine.called(3)
    b.commit.task.cancel()
    assert isinstance(await b.settled(waiting), Unavailable)
    assert [type(await b.settled(write)) for write in inside] == [Timeout, Timeout]
    with pytest.raises(Unavailable):
        b.submit("new")
    async with asyncio.timeout(20):
        await b.commit.close()
