"""Cancelling statements in the server without waiting for it longer than said.

psycopg2's `connection.cancel` blocks until the server closes the connection, holding the interpreter's lock:
a frozen server would freeze this process. libpq 17 can do it step by step (PQcancelStart and its kin);
psycopg2 shows the PGconn for such use (`connection.pgconn_ptr`), and its own library leads to its libpq.
"""

import ctypes
import select
import time
from typing import Any

import psycopg2._psycopg

_libpq = ctypes.CDLL(psycopg2._psycopg.__file__)
_create = _libpq.PQcancelCreate
_create.argtypes, _create.restype = [ctypes.c_void_p], ctypes.c_void_p
_start = _libpq.PQcancelStart
_start.argtypes, _start.restype = [ctypes.c_void_p], ctypes.c_int
_poll = _libpq.PQcancelPoll
_poll.argtypes, _poll.restype = [ctypes.c_void_p], ctypes.c_int
_socket = _libpq.PQcancelSocket
_socket.argtypes, _socket.restype = [ctypes.c_void_p], ctypes.c_int
_finish = _libpq.PQcancelFinish
_finish.argtypes, _finish.restype = [ctypes.c_void_p], None

# PostgresPollingStatusType
_READING, _WRITING = 1, 2


class Cancellation:
    """A request to cancel what a psycopg2 connection runs. `raw` must not be used until it is sent."""

    def __init__(self, raw: Any) -> None:
        pointer = raw.pgconn_ptr
        self._handle: int | None = _create(pointer) if pointer else None

    def send(self, end: float) -> bool:
        """Send it; whether nothing is left to wait for at `end` (of time.monotonic). Blocks, in a thread."""
        if self._handle is None or not _start(self._handle):
            return True
        # After PQcancelStart the socket is to be waited for as if PQcancelPoll had said WRITING.
        state = _WRITING
        while state in (_READING, _WRITING):
            poll = select.poll()
            poll.register(_socket(self._handle), select.POLLIN if state == _READING else select.POLLOUT)
            left = end - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return False
            state = _poll(self._handle)
        return True

    def close(self) -> None:
        """Let go of it, answered or not."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _finish(handle)
