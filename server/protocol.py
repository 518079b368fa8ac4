"""aiohttp's connection with the gate's deadlines, its cap on connections and its words for errors.

The fast lane will live here: it needs what is measured here already, where one request ends.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from handlers.exchange import Stream
from handlers.problems import Problem, retry_after
from server.dispatch import NO_ROUTE, RequestIds
from server.encoding import Encoder
from server.lane import BrokenBody, ClientGone, Lane
from server.metrics import Metrics
from server.streams import StreamProtocol
from server.wire import Wire

_log = logging.getLogger("tidegate.protocol")

# Different numbers, so that the parser's complaint tells which of the two was too long.
TARGET_MAX = 8190
FIELD_MAX = 8192
FIELDS_MAX = 128
# Seconds that the rest of a body is read and thrown away after an early answer, so that the client
# gets to see it.
LINGER = 5.0

# Bytes of answers that a connection keeps before whoever writes has to wait.
WRITE_MAX = 64 * 1024
# Seconds between two looks at the connections of a gate that closes.
DRAIN_EVERY = 0.05
# Seconds since its last answer, or its beginning, for which a connection is likely to bring a request at any
# moment: when the gate closes it is given so long, and the answer tells that it is the last one.
LIVELY = 0.5

HEAD_END = b"\r\n\r\n"

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,8})[ \t]*\r\n", re.IGNORECASE)

# Where a request ends cannot be told any more (chunks, pipelining, an upgrade, an error).
UNKNOWN = -1


class GateServer(web.Server):
    """Makes a GateProtocol per connection and looks after all of them once a second."""

    def __init__(
        self,
        lane: Lane,
        encoder: Encoder,
        metrics: Metrics,
        protocol: "Callable[..., GateProtocol] | None" = None,
        *,
        max_connections: int,
        header_timeout: float,
        keepalive_timeout: float,
    ) -> None:
        super().__init__(
            lane.handle,
            request_factory=_request,
            keepalive_timeout=keepalive_timeout,
            access_log=None,
            max_line_size=TARGET_MAX,
            max_field_size=FIELD_MAX,
            max_headers=FIELDS_MAX,
            lingering_time=LINGER,
            auto_decompress=False,
        )
        self._protocol = protocol or GateProtocol
        self.lane = lane
        self.encoder = encoder
        self.metrics = metrics
        self.max_connections = max_connections
        self.header_timeout = header_timeout
        self.ids = RequestIds()
        self.accepted = 0
        self.refused = 0
        self.parse_errors = 0
        self._empty = asyncio.Event()
        # Connections that are accepted and not made yet (their TLS handshake is under way), with the loop
        # time until which they must be.
        self._expected: dict[RequestHandler, float] = {}
        self._streams: dict[StreamProtocol, None] = {}

    def __call__(self) -> RequestHandler:
        """A protocol for a new connection."""
        protocol = self._protocol(self, loop=self._loop, **self._kwargs)
        self._expected[protocol] = self._loop.time() + self.header_timeout
        return protocol

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Remember the connection."""
        del self._expected[handler]
        super().connection_made(handler, transport)

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._connections) + len(self._streams)

    def sweep(self) -> None:
        """Close connections whose time for a head is over, and those that do not read their answers."""
        now = self._loop.time()
        for connection in cast("list[GateProtocol]", list(self._connections)):
            connection.expire(now)
        # Nobody tells of a handshake that failed.
        for late in [one for one, until in self._expected.items() if until < now]:
            del self._expected[late]

    def turn_away(self, handler: RequestHandler) -> None:
        """Count a connection that there is no room for."""
        del self._expected[handler]
        self.refused += 1

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget the connection once its last request has ended."""
        super().connection_lost(handler, exc)
        task = handler._task_handler
        if task is None:
            self._forgotten()
        else:
            task.add_done_callback(self._forgotten)

    def stream(self, transport: asyncio.Transport, stream: Stream) -> StreamProtocol:
        """What has a connection from now on that aiohttp has let go."""
        protocol = StreamProtocol(transport, stream, self._stream_gone)
        self._streams[protocol] = None
        return protocol

    def _stream_gone(self, protocol: StreamProtocol) -> None:
        del self._streams[protocol]

    def _forgotten(self, _: object = None) -> None:
        if not self._connections:
            self._empty.set()

    async def drain(self, seconds: float) -> None:
        """Close what is idle, let what was accepted finish and be answered, up to `seconds`."""
        # From here on every answer is the last one of its connection.
        self.lane.closing = True
        now = self._loop.time()
        until = now + seconds
        while (self._connections or self._expected) and now < until:
            for connection in cast("list[GateProtocol]", list(self._connections)):
                connection.close_if_idle(now)
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(now + DRAIN_EVERY, until)):
                    await self._empty.wait()
            now = self._loop.time()
        await self.shutdown(0.1)


class GateProtocol(RequestHandler):
    """One connection."""

    __slots__ = (
        "_begun",
        "_broken",
        "_gate",
        "_head_until",
        "_remaining",
        "_socket",
        "_tail",
        "_unread_until",
        "content",
    )

    def __init__(self, gate: GateServer, **kwargs: Any) -> None:
        super().__init__(gate, **kwargs)
        self._gate = gate
        # The transport for as long as the kernel has the connection; aiohttp forgets it earlier. None if
        # the connection was turned away.
        self._socket: asyncio.Transport | None = None
        # The body of the request that is answered now, and of the last one between two.
        self.content = EMPTY_PAYLOAD
        # Whether a head has begun that is not whole, and its last bytes.
        self._begun = False
        self._tail = b""
        # The parser has refused something.
        self._broken = False
        # Bytes of the current body that have not come yet; 0 between two requests.
        self._remaining = 0
        # Loop time until which the head that has begun must be whole; 0: none has begun.
        self._head_until = 0.0
        # Loop time until which the client must have read what is kept for it; 0: nothing is.
        self._unread_until = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Turn the connection away if there are too many, else let aiohttp serve it."""
        gate = self._gate
        transport = cast("asyncio.Transport", transport)
        if gate.open >= gate.max_connections:
            gate.turn_away(self)
            problem = Problem("overloaded", "too many connections", headers=(retry_after(1),))
            transport.write(self._problem(problem))
            transport.close()
            return
        gate.accepted += 1
        super().connection_made(transport)
        self._socket = transport
        self._head_until = self._loop.time() + gate.header_timeout
        if transport.get_extra_info("sslcontext"):
            # Otherwise uvloop keeps eight times as much as without TLS.
            transport.set_write_buffer_limits(WRITE_MAX)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        if self._socket is not None:
            self._socket = None
            if not self.content.is_eof():
                _break(self.content, ClientGone())
            if self._waiter is not None and self._waiter.done() and self._task_handler is not None:
                # It was woken for a request but has not run yet: it would find nothing to handle it with.
                self._task_handler.cancel()
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Let aiohttp parse, and keep track of where requests end."""
        if self._socket is None:
            return
        # One by one: the parser forgets what stood before a request that it refuses.
        while not self._broken and (stop := self._stop(data)) < len(data):
            self._feed(data[:stop])
            data = data[stop:]
        self._feed(data)

    def _stop(self, data: bytes) -> int:
        """How much to feed at once, at least 1: no more than belongs to one request, if that is known."""
        if self._remaining:
            return self._remaining if self._remaining > 0 else len(data)
        if not self._begun:
            return measured(data)
        # The rest of a head; how long its body is the parser will tell.
        end = (self._tail + data).find(HEAD_END)
        return max(1, end + 4 - len(self._tail)) if end >= 0 else len(data)

    def _feed(self, data: bytes) -> None:
        # Behind what is no HTTP nothing is read any more.
        if self._broken:
            return
        before = self._request_count
        super().data_received(data)
        if self._parser is not None and data:
            self._measure(data, self._request_count - before)
            self._look_for_errors()

    def _look_for_errors(self) -> None:
        """The parser may have put its complaint into the queue."""
        if self._messages and type(self._messages[-1][0]) is not RawRequestMessage:
            self._broken = True
            self._gate.parse_errors += 1
            self._break_body()

    def _measure(self, data: bytes, messages: int) -> None:
        """Keep track of where requests begin and end; `messages`: how many heads the parser found."""
        remaining = self._remaining
        if remaining == 0:
            if not self._begun:
                # Empty lines before a request are skipped (RFC 9112 section 2.2).
                data = data.lstrip(b"\r\n")
                if not data:
                    return
            if messages == 0:
                self._begin(data)
                return
            self._remaining = self._body_left(self._tail + data) if messages == 1 else UNKNOWN
        elif remaining > 0:
            self._remaining = remaining - len(data) if len(data) <= remaining else UNKNOWN
        elif messages == 0 and self._idle:
            self._begin(data)
            return
        self._begun = False
        self._tail = (self._tail + data)[-4:]
        # Where the end is unknown, a head may have begun behind it, unless the bytes end like a whole one.
        open_end = self._remaining == UNKNOWN and self._tail != HEAD_END
        self._head_until = self._loop.time() + self._gate.header_timeout if open_end else 0.0
        if not open_end:
            self._tail = b""

    def _begin(self, data: bytes) -> None:
        """Bytes of a head that is not whole: its deadline runs from the first of them."""
        self._begun = True
        self._tail = (self._tail + data)[-4:]
        if not self._head_until:
            self._head_until = self._loop.time() + self._gate.header_timeout

    def _body_left(self, received: bytes) -> int:
        """How much of the body of the only request in `received` is missing."""
        headers = getattr(self._messages[-1][0], "headers", None) if self._messages else None
        end = received.find(HEAD_END)
        if headers is None or end < 0 or self._upgraded or "Transfer-Encoding" in headers:
            return UNKNOWN
        left = int(headers.get("Content-Length", 0)) - (len(received) - end - 4)
        return left if left >= 0 else UNKNOWN

    def _break_body(self) -> None:
        """The parser gave up inside a body, which will never end: whoever reads it must know."""
        content = self._messages[-2][1] if len(self._messages) > 1 else self.content
        if not content.is_eof():
            refused = cast("Any", self._messages[-1][0])
            _break(content, BrokenBody(_refusal(refused.exc, refused.message)))

    def hand_over(self, stream: Stream, head: bytes) -> None:
        """Give the connection to a stream for good. ClientGone if the client was faster."""
        transport, rest = self.transport, self._message_tail
        if transport is None:
            raise ClientGone
        if self._task_handler is not None and self._current_request is None and self._waiter is None:
            # The request came so early that aiohttp's task has not begun; it could not any more.
            self._task_handler.cancel()
        # So that aiohttp does not close what it forgets.
        self.transport = None
        self.connection_lost(None)
        self._gate.stream(transport, stream).begin(head, rest)

    @property
    def _idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def expire(self, now: float) -> None:
        """Close the connection if a head takes too long, abort it if its last answers are not read."""
        transport, gate = self._socket, self._gate
        if transport is None:
            return
        idle = self._idle
        if not (idle or transport.is_closing()) or not transport.get_write_buffer_size():
            self._unread_until = 0.0
        elif not self._unread_until:
            self._unread_until = now + gate.lane.body_timeout
        elif now >= self._unread_until:
            transport.abort()
            return
        if not idle or not self._head_until or now < self._head_until:
            return
        # While a request was answered nobody could look at the bytes behind it.
        if now < self._next_keepalive_close_time - self._keepalive_timeout + gate.header_timeout:
            return
        if self._begun:
            detail = f"the head did not arrive within {gate.header_timeout} s"
            transport.write(self._problem(Problem("request_timeout", detail)))
        self.force_close()

    def close_if_idle(self, now: float) -> None:
        """Close the connection if no request is being answered or received, nor likely to come."""
        if not self._idle or self._begun:
            return
        if now >= self._next_keepalive_close_time - self._keepalive_timeout + LIVELY:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what the parser refused, or to what went wrong outside of the dispatch."""
        gate = self._gate
        if isinstance(exc, ConnectionError):
            # The client has gone; aiohttp ends the connection without a word.
            raise exc
        if status == 400:
            problem = _refusal(exc, message or "")
        else:
            _log.error("unexpected error", exc_info=exc)
            problem = Problem("internal", "the error was logged")
        gate.metrics.observe_request(NO_ROUTE, problem.entry.status, 0.0)
        return cast("web.StreamResponse", Wire(self, gate.lane, self._problem(problem), keep=False))

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log what aiohttp did not expect; that a body breaks off while it is thrown away is no news."""
        if not isinstance(kw.get("exc_info"), ClientGone | RequestPayloadError):
            super().log_exception(*args, **kw)

    def _problem(self, problem: Problem) -> bytes:
        request_id = self._gate.ids.choose("")
        return self._gate.encoder.encode(problem.response(request_id), request_id, connection="close")


def measured(data: bytes) -> int:
    """Where the request that begins `data` ends, as far as its bytes tell; the parser's word counts."""
    # Empty lines before it are skipped, and belong to it here: one by one they would take their time.
    begun = len(data) - len(data.lstrip(b"\r\n"))
    end = data.find(HEAD_END, begun) + 4
    return end + announced_length(data[:end]) if end >= 4 else len(data)


def announced_length(head: bytes) -> int:
    """What Content-Length the bytes of a head seem to have."""
    found = _LENGTH.search(head)
    return 0 if found is None else int(found[1])


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: "asyncio.Task[None]",
) -> web.BaseRequest:
    """A request as aiohttp makes it; its connection remembers the body."""
    cast("GateProtocol", protocol).content = payload
    return web.BaseRequest(message, payload, protocol, writer, task, protocol._loop)


def _break(content: StreamReader, error: Exception) -> None:
    """Nothing more comes: raise it where the body is read, and wait for no rest."""
    content.set_exception(error)
    content.feed_eof()


def _refusal(error: BaseException | None, message: str) -> Problem:
    """The problem that the parser's complaint is."""
    match error:
        case LineTooLong() if error.args[1] == TARGET_MAX:
            return Problem("uri_too_long", f"expected a request target of at most {TARGET_MAX} bytes")
        case LineTooLong():
            return Problem("headers_too_large", f"expected header fields of at most {FIELD_MAX} bytes")
    if "Too many headers" in message:
        return Problem("headers_too_large", f"expected at most {FIELDS_MAX} header fields")
    if "HTTP version" in message:
        return Problem("version_not_supported", "expected HTTP/1.0 or HTTP/1.1")
    reason = message.strip().partition("\n")[0].rstrip(":")[:200]
    return Problem("malformed", f"the request does not keep to HTTP: {reason}")
