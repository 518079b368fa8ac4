"""A connection that answers plain requests in the fast lane, from `data_received`.

It frames requests itself (head end and Content-Length) as long as it stands at a boundary: the
parser was given whole requests only, each of which it found to be exactly one complete message.
Only there heads are looked up or remembered, and only there a request is taken away from aiohttp.
(The parser shows no state: after half a head it looks idle.) What cannot be measured moves the
connection to the common lane until it closes.
"""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, cast

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from auth.tokens import KeyUnknown
from handlers.problems import Problem
from server.dispatch import NO_ROUTE
from server.fast_lane import BODY_MAX, FastLane, is_exact, is_plain
from server.protocol import HEAD_END, UNKNOWN, GateProtocol, GateServer, announced_length
from server.wire import StreamWire

# Bytes that came too early are kept up to this, then reading pauses.
KEPT_MAX = 64 * 1024
# No answer is empty.
_NOT_OURS = b""
# Bytes up to this one do not begin a request: the parser would pass over line breaks.
_CONTROLS = 32


# What the parser says of some bytes: messages with their bodies, whether one was an upgrade, what is left.
Parsed = tuple[Sequence[tuple[RawRequestMessage, StreamReader]], bool, bytes]


class _Echo:
    """Stands in for the parser, to say once more what it has said."""

    __slots__ = ("_said",)

    def __init__(self, said: Parsed | HttpProcessingError) -> None:
        self._said = said

    def feed_data(self, _: bytes) -> Parsed:
        """What was said of these bytes."""
        if isinstance(self._said, HttpProcessingError):
            raise self._said
        return self._said


class FastProtocol(GateProtocol):
    """One connection with both lanes."""

    __slots__ = (
        "_clock",
        "_common",
        "_fast",
        "_held",
        "_kept",
        "_kept_size",
        "_last_head",
        "_missing",
        "_pending",
        "address",
    )

    def __init__(self, gate: GateServer, fast: FastLane, clock: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(gate, **kwargs)
        self._fast = fast
        # Nanoseconds since 1970.
        self._clock = clock
        self.address = ""
        # A request under a known head of whose body so many bytes are missing, or what came while an
        # answer was pending.
        self._kept: list[bytes] = []
        self._kept_size = 0
        self._missing = 0
        self._pending = False
        # Reading is paused because of what is kept, or because answers are not read.
        self._held = False
        # aiohttp was given something that it may not be done with.
        self._common = False
        # The head before, if the lane has answered it: one that comes twice is worth remembering.
        self._last_head = b""

    # -- bytes come ----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Frame requests where they can be measured, else let aiohttp have the bytes."""
        head = self._last_head
        if head and not self._pending and not self._kept and data.startswith(head):
            # Most requests: whole, alone, under the head of the one before. As in `_frame`, without its loop.
            fast, now = self._fast, self._clock() // 1000
            known = fast.recall(head, now)
            if known is not None and len(data) == len(head) + known.length:
                self._pending = True
                body = data[len(head) :]
                answer = fast.answer(self, known, body, known.request_id, known.cost, monotonic(), now)
                if answer is not None:
                    self._pending = False
                    self._write(answer)
                return
        if self._pending:
            self._keep(data)
        elif self._kept:
            self._kept.append(data)
            self._missing -= len(data)
            if self._missing <= 0:
                self._frame(self._take_kept())
        elif self._common and not (data and self._remaining == 0 and not self._begun and self._idle):
            super().data_received(data)
        elif self._socket is not None:
            self._common = False
            self._frame(data)

    def _keep(self, data: bytes) -> None:
        """Keep what came too early; a client that sends on and on is not read any more."""
        # aiohttp says that nothing came whenever a body is read from its parser.
        if not data:
            return
        self._kept.append(data)
        self._kept_size += len(data)
        if self._kept_size > KEPT_MAX:
            self._hold()

    def _take_kept(self) -> bytes:
        data = b"".join(self._kept)
        self._kept.clear()
        self._kept_size = self._missing = 0
        self._release()
        return data

    def _frame(self, data: bytes) -> None:
        """Answer the whole requests in `data`, at a boundary; keep or hand on the rest."""
        fast = self._fast
        answers: list[bytes] = []
        start, size = 0, len(data)
        now, started = self._clock() // 1000, monotonic()
        self._head_until = 0.0
        while start < size:
            head = self._last_head
            if head and data.startswith(head, start):
                # It ends with its only empty line: found without a search.
                end = start + len(head)
            else:
                end = data.find(HEAD_END, start) + 4
                if end < 4 or data[start] <= _CONTROLS:
                    # The parser sees at once if it is none.
                    self._hand_over(answers, data[start:])
                    return
                head = data[start:end]
            known = fast.recall(head, now)
            if known is not None:
                stop = end + known.length
                if stop > size:
                    self._write(b"".join(answers))
                    self._await_body(data[start:], stop - size)
                    return
                self._pending = True
                self._last_head = head
                answer = fast.answer(self, known, data[end:stop], known.request_id, known.cost, started, now)
            else:
                stop = end + announced_length(head)
                whole = stop <= size and stop - end <= BODY_MAX
                if not whole:
                    self._hand_over(answers, data[start:])
                    return
                answer = self._answer_unknown(data[start:stop], head, started, now)
                if answer == _NOT_OURS:
                    self._hand_over(answers, data[stop:])
                    return
            start = stop
            if answer is None:
                break
            self._pending = False
            answers.append(answer)
            if start < size and self._gate.lane.closing:
                # It said that it is the last one of this connection.
                break
        self._write(b"".join(answers))
        if start < size:
            self._keep(data[start:])

    def _await_body(self, begun: bytes, missing: int) -> None:
        """Keep a request under a known head until its body is whole."""
        self._kept.append(begun)
        self._missing = missing
        self._head_until = self._loop.time() + self._gate.lane.body_timeout

    def _answer_unknown(self, request: bytes, head: bytes, started: float, now: int) -> bytes | None:
        """Let aiohttp's parser have one measured request, and answer it; None: it is pending.

        _NOT_OURS: the lane may not answer it, and aiohttp has queued it, as everything that it parses.
        """
        parser, length = self._parser, len(request) - len(head)
        if parser is None or self._close or self._force_close:
            self._queue(request, length, ((), False, b""))
            return _NOT_OURS
        try:
            said = parser.feed_data(request)
        except HttpProcessingError as error:
            self._queue(request, length, error)
            return _NOT_OURS
        messages, upgraded, _ = said
        if len(messages) == 1 and not upgraded:
            message, payload = messages[0]
            if payload.is_eof() and is_plain(message, length):
                again = head == self._last_head
                self._last_head = head
                self._pending = True
                try:
                    answer = self._fast.answer_parsed(
                        self, message, payload, head, length, started, now, again=again
                    )
                except KeyUnknown:
                    pass
                else:
                    self._request_count += 1
                    parser.message_consumed()
                    return answer
        self._queue(request, length, said)
        return _NOT_OURS

    def _queue(self, request: bytes, length: int, said: Parsed | HttpProcessingError) -> None:
        """Let aiohttp go on with what its parser said of a measured request. `length`: of its body."""
        # Without its waiter its task is not woken, which is for `_hand_over` to do.
        waiter, self._waiter = self._waiter, None
        parser, self._parser = self._parser, cast("Any", _Echo(said))
        super(GateProtocol, self).data_received(request)
        self._waiter, self._parser = waiter, parser
        if len(self._messages) == 1 and not self._upgraded:
            message, payload = self._messages[0]
            if type(message) is RawRequestMessage and payload.is_eof() and is_exact(message, length):
                return
        self._remaining = UNKNOWN
        self._look_for_errors()

    def _hand_over(self, answers: list[bytes], rest: bytes) -> None:
        """Leave what the parser has, and the rest, to aiohttp; what was answered before goes out first."""
        self._pending = False
        self._common = True
        self._last_head = b""
        self._write(b"".join(answers))
        if self._remaining == UNKNOWN:
            self._head_until = self._loop.time() + self._gate.header_timeout
        if self._messages and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if rest:
            super().data_received(rest)

    # -- answers go ----------------------------------------------------------------------------

    def finish(self, data: bytes) -> None:
        """Write the answer that was pending, then go on with what came meanwhile."""
        self._pending = False
        self._write(data)
        if self._kept:
            self._go_on()

    async def finish_stream(self, wire: StreamWire) -> None:
        """The same for an answer in pieces."""
        try:
            await wire.write_eof()
        except ConnectionError:
            self.force_close()
        self._pending = False
        self._write(b"")
        self._go_on()

    def _go_on(self) -> None:
        if self._kept and self.transport is not None:
            self._frame(self._take_kept())

    def _write(self, data: bytes) -> None:
        transport = self.transport
        if transport is None:
            return
        if data:
            transport.write(data)
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._gate.lane.closing and not self._pending:
            self.force_close()
        elif self._paused:
            # Who does not read his answers is not read either.
            self._hold()

    def resume_writing(self) -> None:
        """The client reads on."""
        super().resume_writing()
        if self._kept_size <= KEPT_MAX:
            self._release()

    def _hold(self) -> None:
        if not self._held and self.transport is not None:
            self._held = True
            self.transport.pause_reading()

    def _release(self) -> None:
        if self._held:
            self._held = False
            if self.transport is not None and not self._reading_paused and not self._buffer_paused:
                self.transport.resume_reading()

    # -- life ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember who it is."""
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if type(peer) is tuple else ""
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._kept.clear()
        super().connection_lost(exc)

    def expire(self, now: float) -> None:
        """Close the connection if a request that has begun takes too long to come."""
        transport = self.transport
        if not self._kept or self._pending or transport is None:
            super().expire(now)
        elif now >= self._head_until:
            gate = self._gate
            gate.metrics.observe_request(NO_ROUTE, 408, 0.0)
            detail = f"the body did not arrive within {gate.lane.body_timeout} s"
            transport.write(self._problem(Problem("request_timeout", detail)))
            self.force_close()

    def close_if_idle(self, now: float) -> None:
        """Close the connection if no request is being answered or received, nor likely to come."""
        if not self._pending and not self._missing:
            super().close_if_idle(now)

    def _process_keepalive(self) -> None:
        # A pending answer suspends the deadline, which begins anew with the answer.
        if self._pending:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()
