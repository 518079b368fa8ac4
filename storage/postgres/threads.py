"""A thread that does what libpq can only do blocking, apart from the event loop."""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Helper:
    """One thread with a queue of jobs, in order.

    It does not keep the process from ending: a name server may hold it longer than anybody waits. Starting
    it blocks for a moment, so it is not made on the loop whose futures it sets.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any], Callable[[Any], None]] | None]
        self._jobs = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, work: Callable[[], T], unwanted: Callable[[T], None]) -> asyncio.Future[T]:
        """Queue `work`. `unwanted` gets a result for which nobody waits any more."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((work, future, unwanted))
        return future

    def end(self) -> None:
        """Let the thread end after what it has to do; not awaited."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, future, unwanted = job
            result: Any = None
            failure: BaseException | None = None
            try:
                result = work()
            except BaseException as raised:
                failure = raised
            try:
                self._loop.call_soon_threadsafe(_finish, future, result, failure, unwanted)
            except RuntimeError:
                # The loop is closed: nobody waits any more.
                if failure is None:
                    unwanted(result)
            # A thread that waits must not keep anything of the last job alive.
            del job, work, future, unwanted, result, failure


def _finish(
    future: asyncio.Future[Any], result: Any, failure: BaseException | None, unwanted: Callable[[Any], None]
) -> None:
    if future.done():
        if failure is None:
            unwanted(result)
    elif failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
