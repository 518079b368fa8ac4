"""The fast lane: plain requests that are whole, answered without a task and by one write.

The same dispatch and the same handlers as in the common lane. What is not plain (chunks, upgrades,
codings, HTTP/1.0, `Connection: close`, Expect) goes to the common lane.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Protocol, cast

from aiohttp.http import HttpVersion11
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from auth.principal import Principal
from auth.rate_limit import Limiter
from auth.tokens import KeyUnknown, TokenVerifier
from handlers.exchange import Answer, Deferred, Headers, Kind, Request, Response, Stream
from server.admissions import Admissions
from server.dispatch import Dispatch, Refused, RequestIds
from server.encoding import Encoder
from server.lane import ClientGone, Lane
from server.logs import AccessLog
from server.memo import HeadMemo, Known, KnownHead
from server.metrics import Metrics
from server.wire import StreamWire, close_pieces
from storage import tasks
from storage.models import Result

# Heads up to this, and what was made of them, are remembered.
HEAD_MAX = 2048
# Bodies under unknown heads up to this are taken from the parser; larger ones use the common lane.
BODY_MAX = 64 * 1024

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
    """Whether a parsed request announces a body of just `length` bytes, without a sign or leading zero."""
    return (
        not message.chunked
        and not message.upgrade
        and message.method != "CONNECT"
        and message.headers.get("Content-Length", "0") == str(length)
    )


def is_plain(message: RawRequestMessage, length: int) -> bool:
    """Whether the fast lane may answer a parsed request that has a body of `length` bytes."""
    return (
        is_exact(message, length)
        and _NOT_PLAIN.isdisjoint(message.headers)
        and message.version == HttpVersion11
        and not message.should_close
    )


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
        admissions: Admissions,
    ) -> None:
        self._lane = lane
        self._proxied = lane.proxied
        self._dispatch = dispatch
        self._verifier = verifier
        self._requests = requests
        self._encode = encoder.encode
        # By index of the route; the last one, and so -1 too, is for requests that no route took.
        self._observers = [route.observe for route in metrics.routes]
        self._access = access
        ids = RequestIds()
        self._choose_id, self._next_id = ids.choose, ids.next
        self._limit_lines = dispatch.limits.lines
        self._tasks: set[asyncio.Task[None]] = set()
        self._memo = memo
        self._find = memo.find
        self._admissions = admissions

    def recall(self, head: bytes, now: int) -> KnownHead | None:
        """What this head means, if it still does at `now`: its token lives and nothing was revoked since."""
        memo = self._memo
        known = self._find(head)
        if known is None:
            memo.misses += 1
            return None
        if known.generation != self._verifier.generation or known.expires <= now:
            # The dispatch will look at it with fresh eyes, and it may be remembered anew.
            memo.drop(head)
            memo.misses += 1
            return None
        memo.hits += 1
        known.recent = True
        return known

    def answer(
        self,
        connection: Connection,
        known: Known,
        body: bytes,
        request_id: str,
        cost: int,
        started: float,
        now: int,
    ) -> bytes | None:
        """The answer to a request whose head is known; None: it is pending.

        `request_id`: "" to choose one. `cost`: of the request, as far as it was not taken yet. `started`:
        monotonic seconds, `now`: microseconds since 1970.
        """
        if not request_id:
            request_id = self._next_id()
        answer: Answer
        try:
            if cost and self._requests is not None:
                self._requests.take(known.account, cost)
            address = connection.address
            if self._proxied:
                address = self._lane.address(address, known.head.headers)
            answer = known.handler(Request(known.head, body, request_id, address, now))
        except Exception as error:
            answer = self._dispatch.problem(error, request_id)
        if answer.__class__ is Response:
            return self.encode(connection, known, answer, request_id, started)
        if known.kind is Kind.STREAM:
            stream = cast("Stream", answer)
            data = self._lane.stream_head(stream, request_id, known.head)
            self._count_known(connection, known, stream.head, request_id, started)
            # Behind the answers before it, which are written in this turn.
            asyncio.get_running_loop().call_soon(_hand_over, connection, stream, data)
            return None
        pending = _Pending(self, connection, known, request_id, started)
        if known.kind is Kind.COMMIT:
            deferred = cast("Deferred", answer)
            pending.render = deferred.render
            deferred.write.then(pending.settled)
        else:
            making = pending.run(cast("Coroutine[Any, Any, Response]", answer))
            task = asyncio.get_running_loop().create_task(making)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return None

    def answer_parsed(
        self,
        connection: Connection,
        message: RawRequestMessage,
        payload: StreamReader,
        head: bytes,
        length: int,
        started: float,
        now: int,
        *,
        again: bool,
    ) -> bytes | None:
        """The answer to a request that the parser has accepted; None: it is pending.

        `head`: its bytes. `length`: of its body. `again`: the head came before, so it is worth
        remembering. KeyUnknown: nothing was done yet, keys of an outside issuer must be fetched first.
        """
        headers = cast("Headers", message.headers)
        given = headers.get("X-Request-ID", "")
        request_id = self._choose_id(given)
        generation = self._verifier.generation
        known, key, cost = None, None, 0
        if len(head) <= HEAD_MAX:
            key = self._admissions.key(message)
            known = self._admissions.find(key, length, generation, now)
        if known is not None:
            cost = known.cost
        else:
            try:
                admitted = self._dispatch.admit(message.method, message.path, (1, 1), headers)
            except KeyUnknown:
                raise
            except Exception as error:
                refused = self._dispatch.refused(error, request_id)
                return self._refusal(connection, message, refused, request_id, started)
            known = Known(admitted, generation, self._dispatch.cors.lines(headers.get("Origin", "")))
            if known.kind is Kind.STREAM:
                # It looks at fields that nobody else heeds.
                key = None
            if key is not None:
                self._admissions.put(key, known)
        body = b"" if payload is EMPTY_PAYLOAD else payload.read_nowait(-1)
        if again and key is not None:
            # An id that was not sane got another one, which must not be given twice.
            self._memo.put(head, KnownHead(known, length, request_id if given == request_id else ""))
        return self.answer(connection, known, body, request_id, cost, started, now)

    async def close(self, seconds: float) -> None:
        """Wait for the answers under way, also those whose clients have gone; after `seconds` cancel them."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            await tasks.end(*late)

    # -- answers -------------------------------------------------------------------------------

    def encode(
        self, connection: Connection, known: Known, response: Response, request_id: str, started: float
    ) -> bytes:
        """The bytes of an answer, counted; of a streamed one the head."""
        account = known.account
        lines = self._limit_lines(account) + known.cors if account else known.cors
        if known.bodiless or response.chunks is not None or self._lane.closing:
            data = self._encode(
                response,
                request_id,
                lines,
                bodiless=known.bodiless,
                connection="close" if self._lane.closing else "",
                chunked=response.chunks is not None,
            )
        else:
            data = self._encode(response, request_id, lines)
        if self._access is None:
            self._observers[known.index](response.status, monotonic() - started)
        else:
            self._count_known(connection, known, response, request_id, started)
        return data

    def _refusal(
        self,
        connection: Connection,
        message: RawRequestMessage,
        refused: Refused,
        request_id: str,
        started: float,
    ) -> bytes:
        """The bytes of an answer to a request that was not admitted, counted."""
        response, principal = refused.response, refused.principal
        headers = cast("Headers", message.headers)
        data = self._encode(
            response,
            request_id,
            self._dispatch.header_lines(principal, headers.get("Origin", "")),
            bodiless=message.method == "HEAD",
            connection="close" if self._lane.closing else "",
        )
        path = message.path.partition("?")[0]
        self._count(
            connection,
            refused.index,
            message.method,
            path,
            headers,
            principal,
            response,
            request_id,
            started,
        )
        return data

    def _count_known(
        self, connection: Connection, known: Known, response: Response, request_id: str, started: float
    ) -> None:
        head = known.head
        self._count(
            connection,
            known.index,
            head.method,
            head.raw_path,
            head.headers,
            head.principal,
            response,
            request_id,
            started,
        )

    def _count(
        self,
        connection: Connection,
        index: int,
        method: str,
        path: str,
        headers: Headers,
        principal: Principal,
        response: Response,
        request_id: str,
        started: float,
    ) -> None:
        """Put an answer into the figures, and into the access log if there is one."""
        seconds = monotonic() - started
        self._observers[index](response.status, seconds)
        if self._access is None:
            return
        self._access.record(
            request_id,
            self._lane.address(connection.address, headers),
            principal.subject,
            method,
            path,
            response.status,
            len(response.body),
            seconds,
        )


def _hand_over(connection: Connection, stream: Stream, head: bytes) -> None:
    with contextlib.suppress(ClientGone):
        connection.hand_over(stream, head)


class _Pending:
    """A request whose answer comes later: from a commit (`settled`) or a coroutine (`run`)."""

    __slots__ = ("_connection", "_known", "_lane", "_request_id", "_started", "render")

    render: Callable[[Result], Response]

    def __init__(
        self, lane: FastLane, connection: Connection, known: Known, request_id: str, started: float
    ) -> None:
        self._lane = lane
        self._connection = connection
        self._known = known
        self._request_id = request_id
        self._started = started

    def settled(self, result: Result) -> None:
        """A commit has decided."""
        lane, connection, request_id = self._lane, self._connection, self._request_id
        try:
            response = self.render(result)
        except Exception as error:
            response = lane._dispatch.problem(error, request_id)
        connection.finish(lane.encode(connection, self._known, response, request_id, self._started))

    async def run(self, answer: Coroutine[Any, Any, Response]) -> None:
        """Wait for the answer of a coroutine."""
        lane, connection, known, request_id = self._lane, self._connection, self._known, self._request_id
        try:
            response = await answer
        except Exception as error:
            response = lane._dispatch.problem(error, request_id)
        data = lane.encode(connection, known, response, request_id, self._started)
        pieces = response.chunks
        if pieces is None:
            connection.finish(data)
        elif known.bodiless:
            await close_pieces(pieces)
            connection.finish(data)
        else:
            keep = not lane._lane.closing
            await connection.finish_stream(
                StreamWire(connection, lane._lane, data, pieces, request_id, keep=keep, chunked=True)
            )
