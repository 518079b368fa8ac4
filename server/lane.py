"""The common lane: aiohttp parses, the dispatch decides, one write answers."""

import asyncio
import ipaddress
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, cast

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestPayloadError

from auth.principal import ANONYMOUS, Principal
from auth.tokens import KeyUnknown, TokenVerifier
from handlers import codings
from handlers.exchange import Deferred, Headers, Request, Response
from handlers.problems import Problem
from server.dispatch import Admitted, Dispatch, Endpoint, Preflight, RequestIds
from server.encoding import Encoder
from server.logs import AccessLog
from server.metrics import Metrics

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Compressed bodies above this are decoded in a thread: inflating megabytes stops the loop.
INFLATE_INLINE = 64 * 1024
# Where requests are counted that no route took.
NO_ROUTE = -1


def ends_connection(status: int) -> bool:
    """Whether an answer ends its connection: the rest of the body is not waited for."""
    return status in (408, 413)


class Wire:
    """An encoded answer in the shape that aiohttp's protocol asks of a response.

    The protocol calls prepare and write_eof and reads keep_alive, nothing else (a contract test
    holds it to that).
    """

    __slots__ = ("_chunked", "_data", "_deadline", "_protocol", "_response", "keep_alive")

    def __init__(
        self,
        protocol: Any,
        data: bytes,
        keep_alive: bool,
        deadline: float,
        response: Response | None = None,
        chunked: bool = False,
    ) -> None:
        self._protocol = protocol
        self._data = data
        self.keep_alive = keep_alive
        self._deadline = deadline
        # Set where the body comes in pieces.
        self._response = response
        self._chunked = chunked

    async def prepare(self, _: web.BaseRequest) -> None:
        """Nothing: the head is part of the data."""

    async def write_eof(self) -> None:
        """Write it, and wait while the client is slower than we are, up to the deadline."""
        await self._write(self._data)
        if self._response is None or self._response.chunks is None:
            return
        try:
            async for piece in self._response.chunks:
                if piece:
                    await self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
            if self._chunked:
                await self._write(b"0\r\n\r\n")
        except BaseException:
            # The client must see that the rest is missing: no regular end.
            if self._protocol.transport is not None:
                self._protocol.transport.abort()
            raise

    async def _write(self, data: bytes) -> None:
        transport = self._protocol.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        transport.write(data)
        if self._protocol.writing_paused:
            try:
                async with asyncio.timeout(self._deadline):
                    await self._protocol._drain_helper()
            except TimeoutError as error:
                transport.abort()
                raise ConnectionResetError("the client does not read its answer") from error


class Lane:
    """Handles a request that aiohttp has parsed.

    `closing` is asked at each answer: whether the connection must end after it. `body_timeout`:
    seconds for a whole body, and for a client to read on.
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
        max_body: int,
        body_timeout: float,
    ) -> None:
        self._dispatch = dispatch
        self._verifier = verifier
        self._encoder = encoder
        self._metrics = metrics
        self._access = access
        self._now = now
        self._proxies = proxies
        self._max_body = max_body
        self._body_timeout = body_timeout
        self._ids = RequestIds()
        self.closing = False

    async def handle(self, source: web.BaseRequest) -> web.StreamResponse:
        """The handler given to aiohttp's low-level server."""
        started = perf_counter()
        headers = cast("Headers", source.headers)
        request_id = self._ids.choose(headers.get("X-Request-ID", ""))
        principal, index = ANONYMOUS, NO_ROUTE
        try:
            admitted = await self._admit(source, headers)
            principal, index = admitted.head.principal, admitted.endpoint.index
            body = await self._body(source, admitted)
            address = self._address(source, headers)
            request = Request(admitted.head, body, request_id, address, self._now())
            response = await self._answer(admitted.endpoint, request)
        except Preflight as preflight:
            response = preflight.response
        except Exception as error:
            response = self._dispatch.problem(error, request_id)
        wire = self._encode(source, response, request_id, principal)
        seconds = perf_counter() - started
        self._metrics.observe_request(index, response.status, seconds)
        if self._access is not None:
            self._access.record(
                request_id,
                self._address(source, headers),
                principal.subject,
                source.method,
                source.path_qs.partition("?")[0],
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

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response:
        answer = self._dispatch.call(endpoint, request)
        match answer:
            case Response():
                return answer
            case Deferred():
                settled = asyncio.Event()
                answer.write.then(lambda _: settled.set())
                await settled.wait()
                return self._dispatch.render(answer, request.id)
            case _:
                return await answer

    def _encode(
        self, source: web.BaseRequest, response: Response, request_id: str, principal: Principal
    ) -> Wire:
        ends = self.closing or ends_connection(response.status)
        keep_alive = source.keep_alive and not ends
        streamed = response.chunks is not None
        modern = source.version.minor == 1
        if streamed and not modern:
            # HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
            keep_alive = False
        head_only = source.method == "HEAD"
        data = self._encoder.encode(
            response,
            request_id,
            self._dispatch.header_lines(principal, source.headers.get("Origin", "")),
            bodiless=head_only,
            close=not keep_alive,
            chunked=streamed and modern,
        )
        return Wire(
            source.protocol,
            data,
            keep_alive,
            self._body_timeout,
            response if streamed and not head_only else None,
            modern,
        )

    async def _body(self, source: web.BaseRequest, admitted: Admitted) -> bytes:
        """The whole body, decoded. Problem: too_large, request_timeout, malformed."""
        if not admitted.endpoint.consumes:
            return b""
        content = source.content
        if admitted.expects and source.protocol.transport is not None and not content.is_eof():
            source.protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            body = await self._read(content)
        except TimeoutError:
            raise Problem(
                "request_timeout", f"the body did not arrive within {self._body_timeout} s"
            ) from None
        except (RequestPayloadError, web.PayloadAccessError) as error:
            raise Problem("malformed", "the body does not keep to HTTP") from error
        if not admitted.coding:
            return body
        if len(body) <= INFLATE_INLINE:
            return codings.decode(admitted.coding, body, self._max_body)
        return await asyncio.to_thread(codings.decode, admitted.coding, body, self._max_body)

    async def _read(self, content: StreamReader) -> bytes:
        if content is EMPTY_PAYLOAD:
            return b""
        if content.is_eof():
            return content.read_nowait(-1)
        pieces: list[bytes] = []
        size = 0
        async with asyncio.timeout(self._body_timeout):
            while not content.at_eof():
                piece = await content.readany()
                size += len(piece)
                if size > self._max_body:
                    raise Problem("too_large", f"expected a body of at most {self._max_body} bytes")
                pieces.append(piece)
        return b"".join(pieces)

    def _address(self, source: web.BaseRequest, headers: Headers) -> str:
        """The client's address: the last one in X-Forwarded-For that is no trusted proxy."""
        peer = source.remote or ""
        if not self._proxies or not self._trusted(peer):
            return peer
        hops = [hop.strip() for part in headers.getall("X-Forwarded-For", []) for hop in part.split(",")]
        for hop in reversed(hops):
            if not self._trusted(hop):
                return hop if _is_address(hop) else peer
        return hops[0] if hops and _is_address(hops[0]) else peer

    def _trusted(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._proxies)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
