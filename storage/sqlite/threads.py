"""Threads that do the blocking work of SQLite, so that the event loop never waits for a disk."""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from storage.errors import Timeout, Unavailable

T = TypeVar("T")


class Connected(Protocol):
    """What a thread works on. `interrupt` may be called from any thread."""

    def interrupt(self) -> None:
        """Make the job that runs now fail."""

    def rest(self) -> None:
        """Called in the thread after each job: leave nothing of it behind. Never fails."""

    def close(self) -> None:
        """Called in the thread when it ends."""


C = TypeVar("C", bound=Connected)


class _Job(Generic[C]):
    __slots__ = ("args", "future", "running_on", "work")

    def __init__(self, work: Callable[..., Any], args: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.args = args
        self.future = future
        self.running_on: C | None = None


class Threads(Generic[C]):
    """Threads, each with a connection of its own, that share one queue of jobs.

    A job is `work(connection, *args)`. `run` takes none while `bound` jobs wait. Used on the event
    loop `loop`, but not made there: starting a thread blocks.
    """

    def __init__(self, connections: list[C], bound: int, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._bound = bound
        self._jobs: SimpleQueue[_Job[C] | None] = SimpleQueue()
        self._waiting = 0
        self._closed = False
        # Held while a job enters or leaves its connection, so that no interrupt hits the next job.
        self._changing = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=(connection,), name=f"{name}-{n}", daemon=True)
            for n, connection in enumerate(connections)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Queue a job of somebody who bounds his jobs himself; the future has its result."""
        return self._put(work, args).future

    async def run(self, work: Callable[..., T], *args: Any, deadline: float) -> T:
        """Do the job and give its result; interrupted after `deadline` seconds (Timeout) or if cancelled."""
        if self._waiting >= self._bound:
            raise Unavailable("too many requests wait for the database")
        job = self._put(work, args)
        # Half the price of asyncio.timeout.
        timer = self._loop.call_later(deadline, self._expire, job, deadline)
        try:
            return await job.future  # type: ignore[no-any-return]
        finally:
            timer.cancel()
            if job.future.cancelled():
                self._interrupt(job)

    async def close(self) -> None:
        """Finish the jobs that wait, then end the threads and close their connections."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        await asyncio.to_thread(self._join)

    def _put(self, work: Callable[..., Any], args: tuple[Any, ...]) -> _Job[C]:
        if self._closed:
            raise Unavailable("the database is closed")
        job: _Job[C] = _Job(work, args, self._loop.create_future())
        self._waiting += 1
        self._jobs.put(job)
        return job

    def _expire(self, job: _Job[C], deadline: float) -> None:
        if not job.future.done():
            job.future.set_exception(Timeout(f"the database did not answer within {deadline} s"))
            self._interrupt(job)

    def _interrupt(self, job: _Job[C]) -> None:
        with self._changing:
            if job.running_on is not None:
                job.running_on.interrupt()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _work(self, connection: C) -> None:
        while (job := self._jobs.get()) is not None:
            result: Any = None
            failure: BaseException | None = None
            with self._changing:
                if not job.future.done():
                    job.running_on = connection
            if job.running_on is not None:
                try:
                    result = job.work(connection, *job.args)
                except BaseException as raised:
                    failure = raised
                with self._changing:
                    job.running_on = None
                    connection.rest()
            try:
                self._loop.call_soon_threadsafe(self._finish, job.future, result, failure)
            except RuntimeError:
                # The loop is closed: nobody waits any more.
                break
            # A thread that waits must not keep the last result alive.
            del job, result, failure
        connection.close()

    def _finish(self, future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
        self._waiting -= 1
        if future.done():
            return
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)
