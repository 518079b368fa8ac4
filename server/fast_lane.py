"""The fast lane: plain requests answered from `data_received`, without a task, by one write.

It frames requests itself (head end and Content-Length) where the connection stands at a boundary,
and calls the same dispatch and the same handlers as the common lane. What is not plain (chunks,
upgrades, codings, HTTP/1.0, `Connection: close`, Expect, large bodies under new heads) goes to the
common lane, in its turn.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, Protocol, cast

from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from auth.principal import ANONYMOUS, Principal
from auth.rate_limit import Limiter, LimitExceeded
from auth.tokens import KeyUnknown, TokenVerifier
from handlers.exchange import Deferred, Headers, Kind, Request, Response
from server.dispatch import Admitted, Dispatch, Preflight, RequestIds
from server.encoding import Encoder
from server.lane import NO_ROUTE, Wire, ends_connection
from server.logs import AccessLog
from server.memo import HeadMemo, Known
from server.metrics import Metrics

# Heads up to this are remembered.
HEAD_MAX = 2048
# Bodies under unknown heads up to this are taken from the parser; larger ones use the common lane.
BODY_MAX = 64 * 1024

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,8})[ \t]*\r\n", re.IGNORECASE)
_DIGITS = re.compile(r"0|[1-9][0-9]{0,7}", re.ASCII)


class Connection(Protocol):
    """What the fast lane needs of a connection."""

    @property
    def address(self) -> str:
        """The peer's address."""

    def end(self) -> None:
        """End the connection after the answer that is being made."""

    def finish(self, data: bytes) -> None:
        """Write the answer that was pending, then go on with what came meanwhile."""

    async def finish_stream(self, wire: Wire) -> None:
        """The same for an answer in pieces."""


def announced_length(head: bytes) -> int:
    """What Content-Length the bytes of a head seem to have; the parser's word counts in the end."""
    found = _LENGTH.search(head)
    return 0 if found is None else int(found[1])


def is_plain(message: RawRequestMessage) -> bool:
    """Whether a parsed request may be answered by the fast lane."""
    headers = message.headers
    return (
        message.version == (1, 1)
        and not message.should_close
        and not message.upgrade
        and not message.chunked
        and message.compression is None
        and message.method != "CONNECT"
        and "Expect" not in headers
        and "Content-Encoding" not in headers
        and "Transfer-Encoding" not in headers
        and "Upgrade" not in headers
        and _DIGITS.fullmatch(headers.get("Content-Length", "0")) is not None
    )


class _Pending:
    """A request whose answer comes later, and where it goes then."""

    __slots__ = ("admitted", "connection", "lane", "origin", "request_id", "started")

    def __init__(
        self,
        lane: "FastLane",
        connection: Connection,
        admitted: Admitted,
        request_id: str,
        origin: str,
        started: float,
    ) -> None:
        self.lane = lane
        self.connection = connection
        self.admitted = admitted
        self.request_id = request_id
        self.origin = origin
        self.started = started


class FastLane:
    """Answers requests that are whole. One for all connections.

    `deadline`: seconds a client may take to read on in a streamed answer. `closing`: answers end
    their connections.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        verifier: TokenVerifier,
        requests: Limiter | None,
        encoder: Encoder,
        metrics: Metrics,
        access: AccessLog | None,
        now: Callable[[], int],
        memo: HeadMemo,
        deadline: float,
    ) -> None:
        self._dispatch = dispatch
        self._verifier = verifier
        self._requests = requests
        self._encode = encoder.encode
        self._observe = metrics.observe_request
        self._access = access
        self._now = now
        self._deadline = deadline
        self._ids = RequestIds()
        self._tasks: set[asyncio.Task[None]] = set()
        self.memo = memo
        self.closing = False

    def recall(self, head: bytes) -> Known | None:
        """What this head means, if it still does: its token lives and nothing was revoked since."""
        known = self.memo.get(head)
        if known is None or known.admitted.endpoint.scope is None:
            return known
        if known.generation == self._verifier.generation and known.expires > self._now():
            return known
        self.memo.drop(head)
        return None

    def answer_known(self, connection: Connection, known: Known, body: bytes) -> bytes | None:
        """The answer to a request with a known head; None: it is pending."""
        started = perf_counter()
        admitted, request_id = known.admitted, known.request_id or self._ids.choose("")
        endpoint = admitted.endpoint
        if self._requests is not None and endpoint.cost and endpoint.scope is not None:
            try:
                self._requests.take(admitted.head.principal.account, endpoint.cost)
            except LimitExceeded as error:
                response = self._dispatch.problem(error, request_id)
                return self._whole(connection, admitted, response, request_id, known.origin, started)
        return self._answer(connection, admitted, body, request_id, known.origin, started)

    def answer_parsed(
        self, connection: Connection, message: RawRequestMessage, payload: StreamReader, head: bytes
    ) -> bytes | None:
        """The answer to a request that the parser has accepted; None: it is pending.

        `head`: its bytes if they are to be remembered, else empty. KeyUnknown: the common lane must
        fetch keys first.
        """
        started = perf_counter()
        headers = cast("Headers", message.headers)
        request_id = self._ids.choose(headers.get("X-Request-ID", ""))
        origin = headers.get("Origin", "")
        try:
            admitted = self._dispatch.admit(message.method, message.path, (1, 1), headers)
        except KeyUnknown:
            raise
        except Preflight as preflight:
            response = preflight.response
        except Exception as error:
            response = self._dispatch.problem(error, request_id)
        else:
            return self._answer_admitted(connection, admitted, payload, head, request_id, origin, started)
        path = message.path.partition("?")[0]
        return self._encoded(
            connection, response, request_id, origin, started, ANONYMOUS, NO_ROUTE, message.method, path
        )

    def _answer_admitted(
        self,
        connection: Connection,
        admitted: Admitted,
        payload: StreamReader,
        head: bytes,
        request_id: str,
        origin: str,
        started: float,
    ) -> bytes | None:
        body = b"" if payload is EMPTY_PAYLOAD else payload.read_nowait(-1)
        if head:
            given = admitted.head.headers.get("X-Request-ID", "")
            # An id that was not sane got another one, which must not be given twice.
            kept = request_id if given == request_id else ""
            self.memo.put(head, Known(admitted, len(body), self._verifier.generation, kept, origin))
        return self._answer(connection, admitted, body, request_id, origin, started)

    async def drain(self) -> None:
        """Wait for the answers that are being made."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    # -- answers -------------------------------------------------------------------------------

    def _answer(
        self,
        connection: Connection,
        admitted: Admitted,
        body: bytes,
        request_id: str,
        origin: str,
        started: float,
    ) -> bytes | None:
        endpoint = admitted.endpoint
        request = Request(admitted.head, body, request_id, connection.address, self._now())
        answer = self._dispatch.call(endpoint, request)
        if answer.__class__ is Response:
            return self._whole(connection, admitted, answer, request_id, origin, started)
        pending = _Pending(self, connection, admitted, request_id, origin, started)
        if endpoint.kind is Kind.COMMIT:
            deferred = cast("Deferred", answer)
            deferred.write.then(lambda _: self._settled(pending, deferred))
            return None
        task = asyncio.get_running_loop().create_task(
            self._run(pending, cast("Coroutine[Any, Any, Response]", answer))
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return None

    def _settled(self, pending: _Pending, deferred: Deferred) -> None:
        """The commit has answered."""
        response = self._dispatch.render(deferred, pending.request_id)
        self._finish(pending, response)

    async def _run(self, pending: _Pending, answer: Coroutine[Any, Any, Response]) -> None:
        try:
            response = await answer
        except Exception as error:
            response = self._dispatch.problem(error, pending.request_id)
        if response.chunks is None or pending.admitted.head.method == "HEAD":
            self._finish(pending, response)
            return
        data = self._whole(
            pending.connection,
            pending.admitted,
            response,
            pending.request_id,
            pending.origin,
            pending.started,
        )
        wire = Wire(pending.connection, data, not self.closing, self._deadline, response, chunked=True)
        await pending.connection.finish_stream(wire)

    def _finish(self, pending: _Pending, response: Response) -> None:
        data = self._whole(
            pending.connection,
            pending.admitted,
            response,
            pending.request_id,
            pending.origin,
            pending.started,
        )
        pending.connection.finish(data)

    def _whole(
        self,
        connection: Connection,
        admitted: Admitted,
        response: Response,
        request_id: str,
        origin: str,
        started: float,
    ) -> bytes:
        """The bytes of an answer, counted; of a streamed one the head."""
        head = admitted.head
        return self._encoded(
            connection,
            response,
            request_id,
            origin,
            started,
            head.principal,
            admitted.endpoint.index,
            head.method,
            head.raw_path,
        )

    def _encoded(
        self,
        connection: Connection,
        response: Response,
        request_id: str,
        origin: str,
        started: float,
        principal: Principal,
        index: int,
        method: str,
        path: str,
    ) -> bytes:
        status = response.status
        close = self.closing or ends_connection(status)
        if close:
            connection.end()
        data = self._encode(
            response,
            request_id,
            self._dispatch.header_lines(principal, origin),
            bodiless=method == "HEAD",
            close=close,
            chunked=response.chunks is not None,
        )
        seconds = perf_counter() - started
        self._observe(index, status, seconds)
        if self._access is not None:
            address = connection.address
            self._access.record(
                request_id, address, principal.subject, method, path, status, len(response.body), seconds
            )
        return data
