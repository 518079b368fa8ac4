"""Sessions with PostgreSQL, shared: as many as were asked for, made anew in the background when lost."""

import asyncio
import contextlib
import functools
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from storage import tasks
from storage.errors import Overloaded, Timeout, Unavailable
from storage.postgres.cancelling import Cancellation
from storage.postgres.connection import Connection, Rows
from storage.postgres.dialing import Dialer, Limits, Line
from storage.postgres.threads import Helper
from storage.postgres.url import parse

_log = logging.getLogger("tidegate.postgres")

# Seconds between attempts to connect: the first, doubled up to the last.
_PAUSE_FIRST = 0.05
_PAUSE_LAST = 0.5
# So long a server may take to say that it cancels, before its place is given to another. A frozen one never
# says so. The request is kept for as long as it may still answer: pgbouncer 1.18.0, Debian 12's, dies of one
# that is let go of (pgbouncer #801).
_CANCEL = 0.5
_CANCEL_KEPT = 60.0
# A transaction is one message, so the server never has to wait for us inside of one.
_IDLE_IN_TRANSACTION = 5.0
# How often the server looks whether who asked is still there.
_CLIENT_CHECK = 1.0
_WAITING_MAX = 10_000


class Pool:
    """A fixed number of sessions. Used on the event loop where it was opened.

    `down`: why there is no session at all, if so; then nobody is kept waiting.
    """

    @classmethod
    async def open(
        cls,
        url: str,
        size: int,
        *,
        name: str = "tidegate",
        statement_timeout: float = 5.0,
        connect_timeout: float = 1.0,
        deadline: float = 2.0,
    ) -> "Pool":
        """Connect `size` sessions, called `name` in the server.

        `statement_timeout`: seconds after which the server ends a statement, or half of that waiting for a
        lock. `connect_timeout`: for an attempt to connect, all hosts together. `deadline`: of a `fetch` that
        names none. Unavailable if the first session cannot be made; StorageError if the URL is wrong.
        """
        limits = Limits(statement_timeout, statement_timeout / 2, _IDLE_IN_TRANSACTION, _CLIENT_CHECK)
        dialer = Dialer(parse(url, name), limits)
        loop = asyncio.get_running_loop()
        helpers = await asyncio.to_thread(
            lambda: (Helper(f"{name}-dialer", loop), Helper(f"{name}-canceller", loop))
        )
        pool = cls(dialer, size, connect_timeout, deadline, *helpers)
        try:
            await pool._connect()
            # The others may come later: the first one tells that the server is there.
            with contextlib.suppress(Unavailable):
                for _ in range(size - 1):
                    await pool._connect()
        except BaseException:
            await pool.close()
            raise
        pool._keeper = loop.create_task(pool._keep(), name=f"{name}-keeper")
        return pool

    def __init__(
        self,
        dialer: Dialer,
        size: int,
        connect_timeout: float,
        deadline: float,
        dialing: Helper,
        cancelling: Helper,
    ) -> None:
        self._dialer = dialer
        self._wanted = size
        self._connect_timeout = connect_timeout
        self._deadline = deadline
        self._dialing = dialing
        self._cancelling = cancelling
        self._loop = asyncio.get_running_loop()
        self._sessions: set[Connection] = set()
        self._free: list[Connection] = []
        # In order; ten thousand may be cancelled in any order.
        self._waiting: OrderedDict[asyncio.Future[Connection], None] = OrderedDict()
        # Sessions that are given up, but may still be at work in the server.
        self._ending = 0
        self._unanswered: dict[Cancellation, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()
        self._closing = False
        self._keeper: asyncio.Task[None] | None = None
        self.down: Unavailable | None = None

    @property
    def size(self) -> int:
        """Sessions that live."""
        return len(self._sessions)

    @property
    def free(self) -> int:
        """Sessions that nobody uses."""
        return len(self._free)

    @property
    def waiting(self) -> int:
        """Statements that wait for a session."""
        return len(self._waiting)

    async def fetch(self, sql: str, args: Sequence[object] = (), deadline: float | None = None) -> Rows:
        """Run `sql` with `args` in place of its %s; the rows of its last statement.

        Several statements are one transaction. After `deadline` seconds in all it is cancelled in the server,
        as it is when the caller is. StorageError: Unavailable if nothing was sent, Overloaded if all sessions
        were busy for so long; Timeout if it may have happened or not; the others say what is wrong with it.
        """
        timeout = self._deadline if deadline is None else deadline
        if timeout <= 0:
            raise Timeout("the deadline has passed; nothing was sent")
        if self._free:
            connection = self._free.pop()
        else:
            started = self._loop.time()
            connection = await self._acquire(timeout)
            # At its very end there may be nothing left.
            timeout = max(0.001, timeout - (self._loop.time() - started))
        try:
            return await connection.fetch(sql, args, timeout)
        finally:
            if connection.usable:
                self._release(connection)

    async def close(self) -> None:
        """Refuse what waits, let what runs end within its deadline, close the sessions."""
        self._closing = True
        self._refuse(Unavailable("the database is closed"))
        if self._keeper is not None:
            await tasks.end(self._keeper)
        for connection in list(self._free):
            connection.close()
        while self._sessions or self._ending:
            self._changed.clear()
            await self._changed.wait()
        for request in list(self._unanswered):
            self._forget(request)
        for helper in (self._dialing, self._cancelling):
            helper.end()

    async def _acquire(self, seconds: float) -> Connection:
        if self._closing:
            raise Unavailable("the database is closed")
        if self.down is not None:
            raise Unavailable(str(self.down))
        if len(self._waiting) >= _WAITING_MAX:
            raise Overloaded("too many statements wait for the database")
        future: asyncio.Future[Connection] = self._loop.create_future()
        self._waiting[future] = None
        alarm = self._loop.call_later(seconds, self._give_up, future)
        try:
            return await future
        except asyncio.CancelledError:
            # It may have been given one at the same moment.
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(future.result())
            raise
        finally:
            alarm.cancel()
            self._waiting.pop(future, None)

    def _give_up(self, future: asyncio.Future[Connection]) -> None:
        if not future.done():
            busy = bool(self._sessions)
            future.set_exception(
                Overloaded("all sessions with the database are busy")
                if busy
                else Unavailable("there is no session with the database")
            )

    def _release(self, connection: Connection) -> None:
        """Give a session to who waits, or put it by."""
        if self._closing:
            connection.close()
            return
        while self._waiting:
            future, _ = self._waiting.popitem(last=False)
            if not future.done():
                future.set_result(connection)
                return
        self._free.append(connection)

    def _refuse(self, error: Unavailable) -> None:
        """Nobody waits any longer."""
        while self._waiting:
            future, _ = self._waiting.popitem(last=False)
            if not future.done():
                future.set_exception(Unavailable(str(error)))

    def _ended(self, connection: Connection, running: bool) -> None:
        """A session is of no use any more."""
        self._sessions.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if running:
            # Its place stays taken until then: a storm of cancelled callers must not pile up sessions.
            self._ending += 1
            work = functools.partial(_cancel, connection, time.monotonic() + _CANCEL)
            self._cancelling.submit(work, _discard_request).add_done_callback(self._cancelled)
        else:
            connection.raw.close()
        self._changed.set()

    def _cancelled(self, future: asyncio.Future[Cancellation | None]) -> None:
        self._ending -= 1
        self._changed.set()
        if (request := future.result()) is not None:
            self._unanswered[request] = self._loop.call_later(_CANCEL_KEPT, self._forget, request)

    def _forget(self, request: Cancellation) -> None:
        self._unanswered.pop(request).cancel()
        request.close()

    async def _connect(self) -> None:
        """Make a session more."""
        dial = functools.partial(self._dialer.dial, self._connect_timeout)
        line = await self._dialing.submit(dial, _discard)
        connection = Connection(line, self._ended)
        self._sessions.add(connection)
        self.down = None
        self._release(connection)

    async def _keep(self) -> None:
        """Make sessions anew when some are lost."""
        pause = 0.0
        while True:
            while len(self._sessions) + self._ending >= self._wanted:
                self._changed.clear()
                await self._changed.wait()
            await asyncio.sleep(pause)
            try:
                await self._connect()
            except Unavailable as error:
                if not pause:
                    _log.warning("no new session with the database: %s", error)
                pause = min(max(pause * 2, _PAUSE_FIRST), _PAUSE_LAST)
                if not self._sessions:
                    self.down = error
                    self._refuse(error)
            except Exception:
                _log.exception("a session with the database could not be made")
                pause = _PAUSE_LAST
            else:
                if pause:
                    _log.info("the database answers again")
                pause = 0.0


def _cancel(connection: Connection, end: float) -> Cancellation | None:
    """Cancel what it runs and close it; the request if it is not answered by `end` (of time.monotonic)."""
    raw: Any = connection.raw
    try:
        request = Cancellation(raw)
        answered = request.send(end)
    finally:
        raw.close()
    if not answered:
        return request
    request.close()
    return None


def _discard(line: Line) -> None:
    line.raw.close()


def _discard_request(request: Cancellation | None) -> None:
    if request is not None:
        request.close()
