"""The fast lane: plain requests that are whole, answered without a task and by one write.

The same dispatch and the same handlers as in the common lane. What is not plain (chunks, upgrades,
codings, HTTP/1.0, `Connection: close`, Expect) goes to the common lane.
"""

import asyncio
import re
from collections.abc import Coroutine
from time import perf_counter
from typing import Any, Protocol, cast

from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from auth.principal import ANONYMOUS, Principal
from auth.rate_limit import Limiter
from auth.tokens import KeyUnknown, TokenVerifier
from handlers.exchange import Answer, Deferred, Headers, Kind, Request, Response, Stream
from server.dispatch import Admitted, Dispatch, NotAdmitted, Preflight, RequestIds
from server.encoding import Encoder
from server.lane import NO_ROUTE, Lane
from server.logs import AccessLog
from server.memo import HeadMemo, Known
from server.metrics import Metrics
from server.wire import StreamWire, close_pieces

# Heads up to this are remembered.
HEAD_MAX = 2048
# Bodies under unknown heads up to this are taken from the parser; larger ones use the common lane.
BODY_MAX = 64 * 1024

_DIGITS = re.compile(r"0|[1-9][0-9]{0,7}", re.ASCII)
_NOT_PLAIN = frozenset(("Connection", "Content-Encoding", "Expect", "Transfer-Encoding", "Upgrade"))


class Connection(Protocol):
    """What the fast lane needs of a connection."""

    address: str

    def finish(self, data: bytes) -> None:
        """Write the answer that was pending, then go on with what came meanwhile."""

    async def finish_stream(self, wire: StreamWire) -> None:
        """The same for an answer in pieces."""

    def hand_over(self, stream: Stream, head: bytes) -> None:
        """Give the connection to a stream for good."""


def is_exact(message: RawRequestMessage, length: int) -> bool:
    """Whether a parsed request has a body of just `length` bytes."""
    announced = message.headers.get("Content-Length", "0")
    return (
        not message.chunked
        and not message.upgrade
        and message.method != "CONNECT"
        and _DIGITS.fullmatch(announced) is not None
        and int(announced) == length
    )


def is_plain(message: RawRequestMessage) -> bool:
    """Whether the fast lane may answer a parsed request."""
    return message.version == (1, 1) and not message.should_close and _NOT_PLAIN.isdisjoint(message.headers)


class FastLane:
    """Answers requests that are whole. One for all connections."""

    def __init__(
        self,
        lane: Lane,
        dispatch: Dispatch,
        verifier: TokenVerifier,
        requests: Limiter | None,
        encoder: Encoder,
        metrics: Metrics,
        access: AccessLog | None,
        memo: HeadMemo,
    ) -> None:
        self._lane = lane
        self._dispatch = dispatch
        self._verifier = verifier
        self._requests = requests
        self._encode = encoder.encode
        self._observe = metrics.observe_request
        self._access = access
        ids = RequestIds()
        self._choose_id, self._next_id = ids.choose, ids.next
        self._header_lines = dispatch.header_lines
        self._tasks: set[asyncio.Task[None]] = set()
        self.memo = memo

    def recall(self, head: bytes, now: int) -> Known | None:
        """What this head means, if it still does at `now`: its token lives and nothing was revoked since."""
        known = self.memo.get(head)
        if known is None or not known.guarded:
            return known
        if known.generation == self._verifier.generation and known.expires > now:
            return known
        # The dispatch will look at it with fresh eyes, and it may be remembered anew.
        self.memo.drop(head)
        return None

    def answer_known(self, connection: Connection, known: Known, body: bytes, now: int) -> bytes | None:
        """The answer to a request with a known head; None: it is pending."""
        started = perf_counter()
        request_id = known.request_id or self._next_id()
        answer: Answer
        try:
            if self._requests is not None and known.cost:
                self._requests.take(known.account, known.cost)
            head = known.admitted.head
            address = connection.address
            if self._lane.proxied:
                address = self._lane.address(address, head.headers)
            answer = known.handler(Request(head, body, request_id, address, now))
        except Exception as error:
            answer = self._dispatch.problem(error, request_id)
        if answer.__class__ is not Response or self._access is not None:
            return self._answer(connection, known.admitted, answer, request_id, known.origin, started)
        # The same as there, written out: this is the hottest path of all.
        response = answer
        data = self._encode(
            response,
            request_id,
            self._header_lines(known.principal, known.origin),
            bodiless=known.bodiless,
            connection="close" if self._lane.closing else "",
            chunked=response.chunks is not None,
        )
        self._observe(known.index, response.status, perf_counter() - started)
        return data

    def answer_parsed(
        self,
        connection: Connection,
        message: RawRequestMessage,
        payload: StreamReader,
        head: bytes,
        now: int,
    ) -> bytes | None:
        """The answer to a request that the parser has accepted; None: it is pending.

        `head`: its bytes if they are to be remembered, else empty. KeyUnknown: nothing was done yet,
        keys of an outside issuer must be fetched first.
        """
        started = perf_counter()
        headers = cast("Headers", message.headers)
        given, origin = headers.get("X-Request-ID", ""), headers.get("Origin", "")
        request_id = self._choose_id(given)
        try:
            admitted = self._dispatch.admit(message.method, message.path, (1, 1), headers)
        except KeyUnknown:
            raise
        except Exception as error:
            index, principal = NO_ROUTE, ANONYMOUS
            match error:
                case Preflight():
                    response = error.response
                case NotAdmitted():
                    index, principal = error.endpoint.index, error.principal
                    response = self._dispatch.problem(error.error, request_id)
                case _:
                    response = self._dispatch.problem(error, request_id)
            path = message.path.partition("?")[0]
            return self._encoded(
                response,
                request_id,
                origin,
                started,
                principal,
                index,
                message.method,
                path,
                connection,
                headers,
            )
        body = b"" if payload is EMPTY_PAYLOAD else payload.read_nowait(-1)
        if head:
            # An id that was not sane got another one, which must not be given twice.
            kept = request_id if given == request_id else ""
            self.memo.put(head, Known(admitted, len(body), self._verifier.generation, kept, origin))
        if not admitted.endpoint.consumes:
            body = b""
        address = self._lane.address(connection.address, headers)
        try:
            answer = admitted.endpoint.handler(Request(admitted.head, body, request_id, address, now))
        except Exception as error:
            answer = self._dispatch.problem(error, request_id)
        return self._answer(connection, admitted, answer, request_id, origin, started)

    # -- answers -------------------------------------------------------------------------------

    def _answer(
        self,
        connection: Connection,
        admitted: Admitted,
        answer: Answer,
        request_id: str,
        origin: str,
        started: float,
    ) -> bytes | None:
        if answer.__class__ is Response:
            return self._whole(admitted, answer, request_id, origin, started, connection)
        if admitted.endpoint.kind is Kind.COMMIT:
            deferred = cast("Deferred", answer)

            def settled(_: object) -> None:
                response = self._dispatch.render(deferred, request_id)
                connection.finish(self._whole(admitted, response, request_id, origin, started, connection))

            deferred.write.then(settled)
            return None
        if admitted.endpoint.kind is Kind.STREAM:
            stream = cast("Stream", answer)
            self._whole(admitted, stream.head, request_id, origin, started, connection)
            connection.hand_over(stream, self._lane.stream_head(stream, request_id, admitted.head))
            return None
        making = cast("Coroutine[Any, Any, Response]", answer)
        task = asyncio.get_running_loop().create_task(
            self._run(connection, admitted, making, request_id, origin, started)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return None

    async def _run(
        self,
        connection: Connection,
        admitted: Admitted,
        answer: Coroutine[Any, Any, Response],
        request_id: str,
        origin: str,
        started: float,
    ) -> None:
        try:
            response = await answer
        except Exception as error:
            response = self._dispatch.problem(error, request_id)
        data = self._whole(admitted, response, request_id, origin, started, connection)
        pieces = response.chunks
        if pieces is not None and admitted.head.method != "HEAD":
            keep = not self._lane.closing
            await connection.finish_stream(
                StreamWire(connection, self._lane, data, pieces, request_id, keep=keep, chunked=True)
            )
            return
        if pieces is not None:
            await close_pieces(pieces)
        connection.finish(data)

    def _whole(
        self,
        admitted: Admitted,
        response: Response,
        request_id: str,
        origin: str,
        started: float,
        connection: Connection,
    ) -> bytes:
        """The bytes of an answer, counted; of a streamed one the head."""
        head = admitted.head
        return self._encoded(
            response,
            request_id,
            origin,
            started,
            head.principal,
            admitted.endpoint.index,
            head.method,
            head.raw_path,
            connection,
            head.headers,
        )

    def _encoded(
        self,
        response: Response,
        request_id: str,
        origin: str,
        started: float,
        principal: Principal,
        index: int,
        method: str,
        path: str,
        connection: Connection,
        headers: Headers,
    ) -> bytes:
        data = self._encode(
            response,
            request_id,
            self._header_lines(principal, origin),
            bodiless=method == "HEAD",
            connection="close" if self._lane.closing else "",
            chunked=response.chunks is not None,
        )
        status = response.status
        seconds = perf_counter() - started
        self._observe(index, status, seconds)
        if self._access is not None:
            self._access.record(
                request_id,
                self._lane.address(connection.address, headers),
                principal.subject,
                method,
                path,
                status,
                len(response.body),
                seconds,
            )
        return data
