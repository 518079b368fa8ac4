"""The threads that work for the loop: bounds, deadlines, cancelled callers, the end."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from storage.errors import Timeout, Unavailable
from storage.sqlite.threads import Threads


class Connection:
    """Something to work on; `interrupt` ends a job that waits."""

    def __init__(self) -> None:
        self.interrupted = threading.Event()
        self.rests = 0
        self.closed = False

    def interrupt(self) -> None:
        self.interrupted.set()

    def rest(self) -> None:
        self.rests += 1
        self.interrupted.clear()

    def close(self) -> None:
        self.closed = True


def until_interrupted(connection: Connection, started: threading.Event) -> None:
    started.set()
    assert connection.interrupted.wait(20)
    raise RuntimeError("interrupted")


def until(connection: Connection, event: threading.Event) -> str:
    assert event.wait(20)
    return "done"


def nothing(connection: Connection) -> int:
    return connection.rests


@asynccontextmanager
async def threads(bound: int = 10, count: int = 1) -> AsyncIterator[tuple[Threads[Connection], Connection]]:
    connections = [Connection() for _ in range(count)]
    loop = asyncio.get_running_loop()
    made = await asyncio.to_thread(lambda: Threads(connections, bound, "test", loop))
    yield made, connections[0]
    await made.close()
    assert all(connection.closed for connection in connections)


async def test_more_jobs_than_the_bound_are_refused_at_once_and_taken_again_later() -> None:
    async with threads(bound=3) as (made, _):
        gate = threading.Event()
        waiting = [asyncio.create_task(made.run(until, gate, deadline=20)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await made.run(nothing, deadline=20)
        # Who has a bound of his own is not kept out by the others.
        own = made.submit(nothing)
        gate.set()
        assert await asyncio.gather(*waiting) == ["done"] * 3
        await own
        await made.run(nothing, deadline=20)


async def test_a_job_past_its_deadline_is_interrupted_and_the_next_one_is_not() -> None:
    async with threads() as (made, _):
        for _ in range(20):
            with pytest.raises(Timeout):
                await made.run(until_interrupted, threading.Event(), deadline=0.01)
            assert isinstance(await made.run(nothing, deadline=20), int)


async def test_a_cancelled_caller_interrupts_his_job_alone() -> None:
    async with threads(count=2) as (made, _):
        started, gate = threading.Event(), threading.Event()
        other = asyncio.create_task(made.run(until, gate, deadline=20))
        cancelled = asyncio.create_task(made.run(until_interrupted, started, deadline=20))
        assert await asyncio.to_thread(started.wait, 20)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        gate.set()
        assert await other == "done"


async def test_a_job_cancelled_before_its_turn_is_never_done() -> None:
    async with threads() as (made, _):
        gate, done = threading.Event(), threading.Event()
        first = made.submit(until, gate)
        second = asyncio.create_task(made.run(lambda _: done.set(), deadline=20))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.set()
        assert await first == "done"
        await made.run(nothing, deadline=20)
        assert not done.is_set()


async def test_closing_finishes_what_waits_and_takes_nothing_more() -> None:
    async with threads() as (made, _):
        gate = threading.Event()
        first, second = made.submit(until, gate), made.submit(nothing)
        closing = asyncio.create_task(made.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await made.submit(nothing)
        with pytest.raises(Unavailable):
            await made.run(nothing, deadline=20)
        gate.set()
        await closing
        assert first.result() == "done"
        assert second.done()


async def test_each_job_leaves_the_connection_at_rest_also_when_it_fails() -> None:
    async with threads() as (made, _):
        with pytest.raises(ZeroDivisionError):
            await made.run(lambda _: 1 // 0, deadline=20)
        assert await made.run(nothing, deadline=20) == 1
