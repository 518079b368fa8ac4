"""aiohttp's connection with the gate's deadlines, its cap on connections and its words for errors.

The fast lane will live here: it needs what is measured here already, where one request ends.
"""

import asyncio
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from handlers.problems import Problem, retry_after
from server.dispatch import RequestIds
from server.encoding import Encoder
from server.lane import NO_ROUTE, Lane, Wire
from server.metrics import Metrics

# Different numbers, so that the parser's complaint tells which of the two was too long.
TARGET_MAX = 8190
FIELD_MAX = 8192
FIELDS_MAX = 128
# Seconds that the rest of a body is read and thrown away after an early answer, so that the client
# gets to see it.
LINGER = 5.0

# Where a request ends cannot be told any more (chunks, pipelining, an upgrade, an error).
_UNKNOWN = -1


class GateServer(web.Server):
    """Makes a GateProtocol per connection and looks after all of them once a second."""

    def __init__(
        self,
        lane: Lane,
        encoder: Encoder,
        metrics: Metrics,
        *,
        max_connections: int,
        header_timeout: float,
        keepalive_timeout: float,
    ) -> None:
        super().__init__(
            lane.handle,
            keepalive_timeout=keepalive_timeout,
            access_log=None,
            max_line_size=TARGET_MAX,
            max_field_size=FIELD_MAX,
            max_headers=FIELDS_MAX,
            lingering_time=LINGER,
            auto_decompress=False,
        )
        self.lane = lane
        self.encoder = encoder
        self.metrics = metrics
        self.max_connections = max_connections
        self.header_timeout = header_timeout
        self.ids = RequestIds()
        self.accepted = 0
        self.refused = 0
        self.parse_errors = 0

    def __call__(self) -> RequestHandler:
        """A protocol for a new connection."""
        return GateProtocol(self, loop=self._loop, **self._kwargs)

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def sweep(self) -> None:
        """Close connections whose time for a head is over, and those that do not read their answers."""
        now = self._loop.time()
        for connection in list(self._connections):
            cast("GateProtocol", connection).expire(now)

    async def drain(self, seconds: float) -> None:
        """Close what is idle, let what was accepted finish and be answered, up to `seconds`."""
        self.lane.closing = True
        deadline = self._loop.time() + seconds
        while self._connections and self._loop.time() < deadline:
            for connection in list(self._connections):
                cast("GateProtocol", connection).close_if_idle()
            await asyncio.sleep(0.02)
        await self.shutdown(0.1)


class GateProtocol(RequestHandler):
    """One connection."""

    __slots__ = ("_gate", "_head", "_head_until", "_remaining", "_turned_away")

    def __init__(self, gate: GateServer, **kwargs: Any) -> None:
        super().__init__(gate, **kwargs)
        self._gate = gate
        self._turned_away = False
        # The bytes of a head that is not whole yet.
        self._head = b""
        # Bytes of the current body that have not come yet; 0 between two requests.
        self._remaining = 0
        # Loop time until which the head that has begun must be whole; 0: none has begun.
        self._head_until = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Turn the connection away if there are too many, else let aiohttp serve it."""
        gate = self._gate
        if gate.open >= gate.max_connections or gate.lane.closing:
            gate.refused += 1
            self._turned_away = True
            problem = Problem("overloaded", "too many connections", headers=(retry_after(1),))
            cast("asyncio.Transport", transport).write(self._problem(problem))
            transport.close()
            return
        gate.accepted += 1
        super().connection_made(transport)
        self._head_until = self._loop.time() + gate.header_timeout

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        if not self._turned_away:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Let aiohttp parse, and keep track of where requests end."""
        if self._turned_away:
            return
        before = self._request_count
        super().data_received(data)
        if self._parser is not None and data:
            self._measure(data, self._request_count - before)

    def _measure(self, data: bytes, messages: int) -> None:
        """Keep track of where requests begin and end; `messages`: how many heads the parser found."""
        remaining = self._remaining
        if remaining > 0:
            self._remaining = remaining - len(data) if len(data) <= remaining else _UNKNOWN
        elif remaining == 0 and messages == 0:
            # A head that is longer than the parser allows is refused by it.
            self._head += data
            if not self._head_until:
                self._head_until = self._loop.time() + self._gate.header_timeout
            return
        elif remaining == 0:
            self._remaining = self._body_left(self._head + data) if messages == 1 else _UNKNOWN
            self._head = b""
        # Where the end is unknown, whatever came may be the beginning of a head.
        unknown = self._remaining == _UNKNOWN
        self._head_until = self._loop.time() + self._gate.header_timeout if unknown else 0.0

    def _body_left(self, received: bytes) -> int:
        """How much of the body of the only request in `received` is missing."""
        headers = getattr(self._messages[-1][0], "headers", None) if self._messages else None
        end = received.find(b"\r\n\r\n")
        if headers is None or end < 0 or self._upgraded or "Transfer-Encoding" in headers:
            return _UNKNOWN
        left = int(headers.get("Content-Length", 0)) - (len(received) - end - 4)
        return left if left >= 0 else _UNKNOWN

    @property
    def _idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def expire(self, now: float) -> None:
        """Close the connection if a head took too long."""
        transport = self.transport
        if transport is None or not self._idle or not self._head_until or now < self._head_until:
            return
        if self._head:
            problem = Problem(
                "request_timeout", f"the head did not arrive within {self._gate.header_timeout} s"
            )
            transport.write(self._problem(problem))
        self.force_close()

    def close_if_idle(self) -> None:
        """Close the connection if no request is being answered or received."""
        if self._idle:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what the parser refused."""
        self._gate.parse_errors += 1
        problem = _refusal(exc, message or "")
        self._gate.metrics.observe_request(NO_ROUTE, problem.entry.status, 0.0)
        wire = Wire(self, self._problem(problem), False, LINGER)
        return cast("web.StreamResponse", wire)

    def _problem(self, problem: Problem) -> bytes:
        request_id = self._gate.ids.choose("")
        return self._gate.encoder.encode(problem.response(request_id), request_id, close=True)


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
    return Problem(
        "malformed", "the request does not keep to HTTP: " + message.strip().partition("\n")[0][:200]
    )
