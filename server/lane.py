"""The common lane: aiohttp parses, the dispatch decides, one write answers."""

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Protocol, cast

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestPayloadError

from auth.principal import ANONYMOUS, Principal
from auth.tokens import KeyUnknown, TokenVerifier
from handlers import codings
from handlers.exchange import Deferred, Head, Headers, Request, Response, Stream
from handlers.problems import Problem, retry_after
from server.dispatch import Admitted, Dispatch, Endpoint, NotAdmitted, Preflight, RequestIds
from server.encoding import Encoder
from server.logs import AccessLog
from server.metrics import Metrics
from server.proxies import Network, Proxies
from server.wire import StreamWire, Taken, Wire, close_pieces

# Compressed bodies above this are decoded in a thread: inflating megabytes stops the loop.
INFLATE_INLINE = 64 * 1024
# Seconds that the body of a client is thrown away that was given its time already.
LINGER_SLOW = 1.0
# Combinations of peer and X-Forwarded-For that are remembered.
ADDRESSES = 4096
# Where requests are counted that no route took.
NO_ROUTE = -1


class ClientGone(ConnectionResetError):
    """The connection was lost before the request was whole."""


class BrokenBody(RequestPayloadError):
    """The parser gave up inside a body; `problem`: in which words."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class Takeover(Protocol):
    """A connection that can be given away."""

    def hand_over(self, stream: Stream, head: bytes) -> None:
        """Give the connection to a stream for good. ClientGone if the client was faster."""


class Lane:
    """Handles a request that aiohttp has parsed.

    `closing` is asked at each answer: whether the connection must end after it. `body_timeout`:
    seconds for a whole body, and for a client to read on. `max_held`: bytes that all bodies together
    may have while they arrive; `held`: those that they have.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        verifier: TokenVerifier,
        encoder: Encoder,
        metrics: Metrics,
        access: AccessLog | None,
        now: Callable[[], int],
        proxies: Sequence[Network],
        max_held: int,
        body_timeout: float,
    ) -> None:
        self._dispatch = dispatch
        self._verifier = verifier
        self._encoder = encoder
        self._metrics = metrics
        self._access = access
        self._now = now
        self._max_held = max_held
        self._ids = RequestIds()
        # None: the peer is the client.
        self._client = lru_cache(ADDRESSES)(Proxies(proxies).client) if proxies else None
        self.body_timeout = body_timeout
        self.proxied = bool(proxies)
        self.held = 0
        self.closing = False

    async def handle(self, source: web.BaseRequest) -> web.StreamResponse:
        """The handler given to aiohttp's low-level server."""
        started = perf_counter()
        headers = cast("Headers", source.headers)
        request_id = self._ids.choose(headers.get("X-Request-ID", ""))
        principal, index = ANONYMOUS, NO_ROUTE
        stream: Stream | None = None
        try:
            admitted = await self._admit(source, headers)
            principal, index = admitted.head.principal, admitted.endpoint.index
            body = await self._body(source, admitted)
            address = self.address(source.remote or "", headers)
            request = Request(admitted.head, body, request_id, address, self._now())
            answer = await self._answer(admitted.endpoint, request)
            match answer:
                case Stream():
                    stream, response = answer, answer.head
                case _:
                    response = answer
        except Preflight as preflight:
            response = preflight.response
        except NotAdmitted as refused:
            principal, index = refused.principal, refused.endpoint.index
            response = self._dispatch.problem(refused.error, request_id)
        except ClientGone:
            # aiohttp ends the connection without a word.
            raise
        except Exception as error:
            response = self._dispatch.problem(error, request_id)
        wire: Wire | Taken
        if stream is not None:
            head = self.stream_head(stream, request_id, admitted.head)
            cast("Takeover", source.protocol).hand_over(stream, head)
            wire = Taken()
        else:
            wire = await self._encode(source, response, request_id, principal)
        seconds = perf_counter() - started
        self._metrics.observe_request(index, response.status, seconds)
        if self._access is not None:
            self._access.record(
                request_id,
                self.address(source.remote or "", headers),
                principal.subject,
                source.method,
                source._message.path.partition("?")[0],
                response.status,
                len(response.body),
                seconds,
            )
        return cast("web.StreamResponse", wire)

    async def _admit(self, source: web.BaseRequest, headers: Headers) -> Admitted:
        message = source._message
        version = (message.version.major, message.version.minor)
        try:
            return self._dispatch.admit(message.method, message.path, version, headers)
        except KeyUnknown as unknown:
            await self._verifier.fetch(unknown.issuer)
            return self._dispatch.admit(message.method, message.path, version, headers)

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response | Stream:
        answer = self._dispatch.call(endpoint, request)
        match answer:
            case Response() | Stream():
                return answer
            case Deferred():
                settled = asyncio.Event()
                answer.write.then(lambda _: settled.set())
                await settled.wait()
                return self._dispatch.render(answer, request.id)
            case _:
                return await answer

    def stream_head(self, stream: Stream, request_id: str, head: Head) -> bytes:
        """How the answer begins that is a stream; its connection serves nothing else."""
        lines = self._dispatch.header_lines(head.principal, head.headers.get("Origin", ""))
        response = stream.head
        connection = "Upgrade" if response.status == 101 else "close"
        return self._encoder.encode(response, request_id, lines, bodiless=True, connection=connection)

    async def _encode(
        self, source: web.BaseRequest, response: Response, request_id: str, principal: Principal
    ) -> Wire:
        pieces = response.chunks
        modern = source.version.minor == 1
        # HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
        keep = not self._ends(source, response)
        if not modern and (pieces is not None or "Transfer-Encoding" in source.headers):
            keep = False
        head_only = source.method == "HEAD"
        data = self._encoder.encode(
            response,
            request_id,
            self._dispatch.header_lines(principal, source.headers.get("Origin", "")),
            bodiless=head_only,
            connection="close" if not keep else "" if modern else "keep-alive",
            chunked=pieces is not None and modern,
        )
        if pieces is None:
            return Wire(source.protocol, self, data, keep=keep)
        if head_only:
            await close_pieces(pieces)
            return Wire(source.protocol, self, data, keep=keep)
        return StreamWire(source.protocol, self, data, pieces, request_id, keep=keep, chunked=modern)

    def _ends(self, source: web.BaseRequest, response: Response) -> bool:
        """Whether the connection must end after this answer."""
        if self.closing or not source.keep_alive or response.status in (408, 505):
            return True
        content = source.content
        if content is EMPTY_PAYLOAD:
            return False
        if content.exception() is not None:
            return True
        # Who waits for 100 may send the body now or never; who is too slow or too long is not waited for.
        return not content.is_eof() and (response.status == 413 or "Expect" in source.headers)

    async def _body(self, source: web.BaseRequest, admitted: Admitted) -> bytes:
        """The whole body, decoded. Problem: too_large, request_timeout, malformed."""
        if not admitted.endpoint.consumes:
            return b""
        content = source.content
        if admitted.expects and source.protocol.transport is not None and not content.is_eof():
            source.protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            body = await self._read(content, admitted.limit)
        except TimeoutError:
            source.protocol._lingering_time = LINGER_SLOW
            detail = f"the body did not arrive within {self.body_timeout} s"
            raise Problem("request_timeout", detail) from None
        except BrokenBody as broken:
            raise broken.problem from broken
        except (RequestPayloadError, web.PayloadAccessError) as error:
            raise Problem("malformed", "the body does not keep to HTTP") from error
        except OSError as error:
            raise ClientGone from error
        if not admitted.coding:
            return body
        if len(body) <= INFLATE_INLINE:
            return codings.decode(admitted.coding, body, admitted.limit)
        return await asyncio.to_thread(codings.decode, admitted.coding, body, admitted.limit)

    async def _read(self, content: StreamReader, limit: int) -> bytes:
        if content is EMPTY_PAYLOAD:
            return b""
        if content.is_eof():
            body = content.read_nowait(-1)
            if len(body) > limit:
                raise _too_large(limit)
            return body
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.body_timeout):
                while not content.at_eof():
                    piece = await content.readany()
                    size += len(piece)
                    self.held += len(piece)
                    if size > limit:
                        raise _too_large(limit)
                    # What is alone is let in, however large.
                    if self.held > max(self._max_held, size):
                        raise Problem("overloaded", "too many bodies arrive", headers=(retry_after(1),))
                    pieces.append(piece)
        finally:
            self.held -= size
        return b"".join(pieces)

    def address(self, peer: str, headers: Headers) -> str:
        """The client's address, through trusted proxies."""
        if self._client is None:
            return peer
        return self._client(peer, ",".join(headers.getall("X-Forwarded-For", [])))


def _too_large(limit: int) -> Problem:
    return Problem("too_large", f"expected a body of at most {limit} bytes")
