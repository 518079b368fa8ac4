"""JSON logs on the standard library's logging: one object a line on stderr.

Whoever logs hands the record to a thread and goes on, so that neither the event loop nor a writer
ever waits for the pipe; what the thread cannot take in time is dropped and counted. The logger
`tidegate.audit` is the channel for what matters to security.
"""

import copy
import logging
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from types import MappingProxyType

import orjson

AUDIT = "tidegate.audit"
QUEUE_RECORDS = 10_000
ACCESS_LINES = 50_000
# Seconds between two writes of the access log.
ACCESS_INTERVAL = 0.1
# Seconds that close waits for a pipe that nobody reads.
CLOSE_TIMEOUT = 1.0
NOTHING: Mapping[str, object] = MappingProxyType({})

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "fields"}
# Searched for in the finished line, so that no message, extra or traceback is forgotten: texts under a
# telling name, credentials of headers and forms, JWTs, PEM keys. None takes in a quote: it stays JSON.
_SECRETS = re.compile(
    rb'("\w*(?:secret|password|token|authorization|cookie)":")(?:[^"\\]|\\.)+'
    rb"|\b((?:Bearer|Basic) +)[A-Za-z0-9._~+/=-]{16,}"
    rb'|\b((?:access_token|client_secret|token)=)[^\s&"\'\\]+'
    rb"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
    rb'|-----BEGIN [A-Z ]*PRIVATE KEY-----[^"]*-----END [A-Z ]*PRIVATE KEY-----',
    re.IGNORECASE,
)
_HIDDEN = rb"\1\2\3[hidden]"
# What the expression needs to find anything, in lower case; looking for these first is 20 times cheaper.
_TELLING = (
    b"secret",
    b"password",
    b"token",
    b"authorization",
    b"cookie",
    b"bearer ",
    b"basic ",
    b"eyj",
    b"-----",
)

# time (seconds since 1970), request id, address, subject, method, path, status, bytes, seconds
_Access = tuple[float, str, str, str, str, str, int, int, float]


def audit(event: str, /, **fields: object) -> None:
    """Log a security event: who did what to whom, never with which secret."""
    logging.getLogger(AUDIT).info(event, extra={"fields": {"event": event, **fields}})


class JsonFormatter(logging.Formatter):
    """A record as JSON: ts, level, logger, message, `always`, then its extras, then exception.

    `extra={"fields": {...}}` takes names that logging keeps for itself. An extra does not replace what
    stands before it.
    """

    def __init__(self, always: Mapping[str, object] = NOTHING) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        line: dict[str, object] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **self._always,
        }
        extras = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        for name, value in (extras | record.__dict__.get("fields", {})).items():
            line.setdefault(name, value)
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = record.stack_info
        return _dump(line).decode()


class _Pipe:
    """Where lines go, whole: the threads of this module write one after the other."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def write(self, *lines: bytes) -> None:
        """Whole lines, as many at a time as the kernel does not mix with those of other processes."""
        with self._lock:
            batch = b""
            for line in lines:
                if len(batch) + len(line) > select.PIPE_BUF:
                    self._write(batch)
                    batch = b""
                batch += line
            self._write(batch)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                # Somebody who shares the pipe has made it non-blocking.
                select.select((), (self._fd,), ())


class _LineHandler(logging.Handler):
    """Writes records; runs in the listener's thread."""

    def __init__(self, pipe: _Pipe, always: Mapping[str, object]) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter(always))
        self._pipe = pipe
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._pipe.write(self.format(record).encode() + b"\n")
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        # The inherited one would print to the same pipe.
        self.dropped += 1


class _Handoff(QueueHandler):
    """Takes records from whoever logs, at once."""

    def __init__(self, records: "SimpleQueue[logging.LogRecord]") -> None:
        super().__init__(records)
        self._records = records
        self._formatter = logging.Formatter()
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """A copy that holds texts instead of arguments and frames, which may change or live on."""
        record = copy.copy(record)
        record.msg, record.args = _message(record), None
        if record.exc_info and not record.exc_text:
            record.exc_text = self._formatter.formatException(record.exc_info)
        record.exc_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._records.qsize() < QUEUE_RECORDS:
            self._records.put_nowait(record)
        else:
            self.dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        self.dropped += 1


class _Listener(QueueListener):
    """The thread that writes records."""

    def stop(self) -> None:
        """Write what waits and end, or leave a thread behind that the pipe does not let go."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self.enqueue_sentinel()
            thread.join(CLOSE_TIMEOUT)


class AccessLog:
    """A line per request, written by a thread of its own in batches. `dropped`: lines that were lost."""

    def __init__(self, pipe: _Pipe, always: Mapping[str, object]) -> None:
        self.dropped = 0
        self._pipe = pipe
        self._always = always
        self._waiting: deque[_Access] = deque()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def record(
        self,
        request_id: str,
        address: str,
        subject: str,
        method: str,
        path: str,
        status: int,
        size: int,
        seconds: float,
    ) -> None:
        """Log an answered request: `path` without its query, which may hold a token; `size` in bytes."""
        if len(self._waiting) < ACCESS_LINES:
            self._waiting.append(
                (time.time(), request_id, address, subject, method, path, status, size, seconds)
            )
        else:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits and end."""
        self._end.set()
        self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        while not self._end.wait(ACCESS_INTERVAL):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [_access_line(self._waiting.popleft(), self._always) for _ in range(len(self._waiting))]
        try:
            self._pipe.write(*lines)
        except OSError:
            self.dropped += len(lines)


class Logs:
    """Logging as it was set up. `access` is None where no access log is wanted."""

    def __init__(self, level: str, *, access_log: bool, fd: int, always: Mapping[str, object]) -> None:
        pipe = _Pipe(fd)
        records: SimpleQueue[logging.LogRecord] = SimpleQueue()
        self._handoff = _Handoff(records)
        self._lines = _LineHandler(pipe, always)
        self._listener = _Listener(records, self._lines)
        self._listener.start()
        self.access = AccessLog(pipe, always) if access_log else None
        root = logging.getLogger()
        self._before = root.handlers[:], root.level
        root.handlers[:] = [self._handoff]
        root.setLevel(level.upper())
        # The audit is no matter of the level.
        logging.getLogger(AUDIT).setLevel(logging.INFO)
        logging.captureWarnings(True)

    @property
    def dropped(self) -> int:
        """Lines that were lost because the pipe was too slow or broken."""
        access = self.access.dropped if self.access else 0
        return self._handoff.dropped + self._lines.dropped + access

    def close(self) -> None:
        """Write what waits, a second at most, and give logging back as it was found."""
        logging.captureWarnings(False)
        logging.getLogger(AUDIT).setLevel(logging.NOTSET)
        root = logging.getLogger()
        root.handlers[:], level = self._before
        root.setLevel(level)
        self._listener.stop()
        if self.access:
            self.access.close()


def setup(level: str, access_log: bool, fd: int = 2, always: Mapping[str, object] = NOTHING) -> Logs:
    """Send all logs of the process, from `level` up, as JSON lines to the file descriptor.

    `always`: what each line says beside its own.
    """
    return Logs(level, access_log=access_log, fd=fd, always=always)


def _message(record: logging.LogRecord) -> str:
    """The text of a record, also where its arguments do not fit."""
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return f"{record.msg} {record.args!r}"


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _access_line(access: _Access, always: Mapping[str, object]) -> bytes:
    when, request_id, address, subject, method, path, status, size, seconds = access
    line = {
        "ts": _timestamp(when),
        "level": "info",
        "logger": "tidegate.access",
        "message": "request",
        **always,
        "request_id": request_id,
        "address": address,
        "subject": subject,
        "method": method,
        "path": path,
        "status": status,
        "bytes": size,
        "seconds": round(seconds, 6),
    }
    return _dump(line) + b"\n"


def _dump(line: dict[str, object]) -> bytes:
    """JSON without secrets, whatever the values are."""
    try:
        data = orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # Lone surrogates, integers past 64 bits and deep nesting are not for orjson.
        data = orjson.dumps({_plain(name): _plain(value) for name, value in line.items()})
    lower = data.lower()
    return _SECRETS.sub(_HIDDEN, data) if any(word in lower for word in _TELLING) else data


def _plain(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()
