"""aiopg's connection with its defects repaired.

aiopg 1.4.0 is no longer maintained. What is repaired, each point with a test in test_pool_aiopg.py:
- It lets the loop watch libpq's own socket, which libpq closes and opens again as it likes; on uvloop every
  second reconnect then fails with RuntimeError (aiopg #909). Here the session is made in a thread, and the
  loop watches a duplicate that nobody else closes.
- A statement that the server cancels, by statement_timeout for one, ends in CancelledError (aiopg #537).
- A statement whose caller went away or whose time is up goes on running in the server (aiopg #570).
- A session that ends while it is idle is noticed only by the next statement.
- Default timeouts of 60 s; a query for hstore's number on each connect.
"""

import asyncio
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import aiopg
import psycopg2
from aiopg.utils import ClosableQueue
from psycopg2.extensions import POLL_OK, POLL_WRITE, TRANSACTION_STATUS_IDLE

from storage.errors import StorageError, Timeout, Unavailable
from storage.postgres.dialing import Line
from storage.postgres.errors import is_misled, translate

# A statement of so many bytes is sent whole at once: the socket's buffer is empty between statements.
_SURELY_SENT = 4096

Rows = list[tuple[Any, ...]]


class Connection(aiopg.Connection):
    """A session that is ready. One statement at a time.

    `ended` is called once, when the session is of no use any more; its second argument says whether the
    server may still be at work on a statement: then `raw` is to be cancelled and closed, else it is closed.
    """

    def __init__(self, line: Line, ended: Callable[["Connection", bool], None]) -> None:
        # As aiopg's own, which would connect. test_pool_aiopg.py compares the attributes.
        self._enable_json = self._enable_hstore = self._enable_uuid = False
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._conn = line.raw
        self._dsn = line.raw.dsn
        self._timeout = 0.0
        self._last_usage = self._loop.time()
        self._writing = False
        self._echo = False
        self._notifies: asyncio.Queue[Any] = asyncio.Queue()
        self._notifies_proxy = ClosableQueue(self._notifies, self._loop)
        self._weakref = weakref.ref(self)
        # Ours: libpq may close its own at any time, and its number may then be another's.
        self._fileno: int | None = os.dup(line.raw.fileno())
        self._prefix = line.prefix
        self._ended = ended
        self._end = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._fileno, self._step)

    async def fetch(self, sql: str, args: Sequence[object], seconds: float) -> Rows:
        """Run what may be several statements, as one transaction; the rows of the last. StorageError."""
        waiter = self._create_waiter("fetch")
        text = self._prefix + sql if self._prefix else sql
        try:
            cursor = self._conn.cursor()
            cursor.execute(text, args or None)
        except Exception as error:
            self._waiter = None
            raise self._refused(error) from error
        if len(cursor.query) > _SURELY_SENT:
            self._step()
        try:
            await self._poll(waiter, seconds)
        except psycopg2.Error as error:
            if is_misled(error):
                self._finish(running=False)
            raise translate(error) from error
        return cursor.fetchall() if cursor.description is not None else []

    def _refused(self, error: Exception) -> StorageError:
        """What it means that a statement was not even sent."""
        if self._conn.closed:
            self._finish(running=False)
            return Unavailable("the connection to the database is lost; nothing was sent")
        return translate(error)

    async def _poll(self, waiter: asyncio.Future[None], seconds: float) -> None:
        """Wait for the answer; on any other end the statement is cancelled. Timeout, psycopg2.Error."""
        self._end = end = self._loop.time() + seconds
        alarm = self._alarm
        # One timer serves many statements: it looks at the end of the one that runs when it rings.
        if alarm is None or alarm.when() > end:
            if alarm is not None:
                alarm.cancel()
            self._alarm = self._loop.call_at(end, self._ring)
        try:
            await waiter
        except (asyncio.CancelledError, Timeout) as error:
            # A caller may be cancelled at the moment when the answer has come.
            if waiter.cancelled() or isinstance(error, Timeout):
                self._finish(running=True)
            raise
        finally:
            self._waiter = None

    def _ring(self) -> None:
        self._alarm = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._loop.time() < self._end:
            self._alarm = self._loop.call_at(self._end, self._ring)
        else:
            waiter.set_exception(Timeout("the database did not answer within its deadline"))

    def _step(self) -> None:
        """The socket can be read or written: let libpq go on."""
        try:
            state = self._conn.poll()
        except (psycopg2.Error, psycopg2.Warning) as error:
            self._write(False)
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)
            if self._conn.closed or waiter is None:
                self._finish(running=False)
            return
        if state == POLL_OK:
            if self._writing:
                self._write(False)
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                self._answered(waiter)
        elif (state == POLL_WRITE) != self._writing:
            self._write(not self._writing)

    def _answered(self, waiter: asyncio.Future[None]) -> None:
        if self._conn.get_transaction_status() == TRANSACTION_STATUS_IDLE:
            waiter.set_result(None)
        else:
            waiter.set_exception(psycopg2.ProgrammingError("the statement left a transaction open"))
            self._finish(running=False)

    def _write(self, wanted: bool) -> None:
        """Whether the loop tells when the socket can be written."""
        if wanted is not self._writing and self._fileno is not None:
            self._writing = wanted
            if wanted:
                self._loop.add_writer(self._fileno, self._step)
            else:
                self._loop.remove_writer(self._fileno)

    def _finish(self, *, running: bool) -> None:
        """Take it off the loop and tell that it is of no use any more."""
        if self._fileno is None:
            return
        self._write(False)
        self._loop.remove_reader(self._fileno)
        os.close(self._fileno)
        self._fileno = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._notifies_proxy.close(psycopg2.OperationalError("Connection closed"))
        self._ended(self, running)

    def _close(self) -> None:
        self._finish(running=False)

    @property
    def usable(self) -> bool:
        """Whether it can take a statement."""
        return self._fileno is not None
