"""Answers on their way to a client that may be slow, or gone."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

from aiohttp import web

from storage.errors import StorageError

_log = logging.getLogger("tidegate.wire")

# Bytes that a client must take within the deadline, again and again.
PIECE = 64 * 1024


class LaneState(Protocol):
    """What an answer asks of its lane: whether the gate is closing, and the deadline in seconds."""

    closing: bool
    body_timeout: float


class Wire:
    """An encoded answer in the shape that aiohttp's protocol asks of a response.

    The protocol calls prepare and write_eof and reads keep_alive, nothing else (a contract test
    holds it to that).
    """

    __slots__ = ("_data", "_keep", "_lane", "_protocol")

    def __init__(self, protocol: Any, lane: LaneState, data: bytes, *, keep: bool) -> None:
        self._protocol = protocol
        self._lane = lane
        self._data = data
        self._keep = keep

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow; asked when all is written, which may take its time."""
        return self._keep and not self._lane.closing

    async def prepare(self, _: web.BaseRequest) -> None:
        """Nothing: the head is part of the data."""

    async def write_eof(self) -> None:
        """Write it, and wait while the client is slower than we are."""
        await self._write(self._data)

    async def _write(self, data: bytes) -> None:
        """Each piece must have gone within the deadline, which makes a least speed for readers."""
        if len(data) <= PIECE:
            await self._send(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), PIECE):
            await self._send(view[start : start + PIECE])

    async def _send(self, data: bytes | memoryview) -> None:
        transport = self._protocol.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        transport.write(data)
        if self._protocol.writing_paused:
            try:
                async with asyncio.timeout(self._lane.body_timeout):
                    await self._protocol._drain_helper()
            except TimeoutError as error:
                transport.abort()
                raise ConnectionResetError("the client does not read its answer") from error


class Taken:
    """The place of an answer on a connection that a stream has taken: nothing is left to write."""

    __slots__ = ()

    keep_alive = False

    async def prepare(self, _: web.BaseRequest) -> None:
        """Nothing."""

    async def write_eof(self) -> None:
        """Nothing."""


class StreamWire(Wire):
    """An answer whose body comes in pieces, in chunks or until the connection closes."""

    __slots__ = ("_chunked", "_pieces", "_request_id")

    def __init__(
        self,
        protocol: Any,
        lane: LaneState,
        data: bytes,
        pieces: AsyncIterator[bytes],
        request_id: str,
        *,
        keep: bool,
        chunked: bool,
    ) -> None:
        super().__init__(protocol, lane, data, keep=keep)
        self._pieces = pieces
        self._request_id = request_id
        self._chunked = chunked

    async def write_eof(self) -> None:
        """Write piece by piece; if one fails without a regular end, so that the client sees it."""
        try:
            await self._write(self._data)
            async for piece in self._pieces:
                if piece:
                    await self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
            if self._chunked:
                await self._write(b"0\r\n\r\n")
        except BaseException as error:
            if self._protocol.transport is not None:
                self._protocol.transport.abort()
            if not isinstance(error, Exception) or isinstance(error, ConnectionError):
                raise
            level = logging.WARNING if isinstance(error, StorageError) else logging.ERROR
            _log.log(level, "a stream broke off", exc_info=error, extra={"request_id": self._request_id})
            raise ConnectionResetError("the stream broke off") from error
        finally:
            await close_pieces(self._pieces)


async def close_pieces(pieces: AsyncIterator[bytes]) -> None:
    """Let go of what a stream that is not read any further holds."""
    if isinstance(pieces, AsyncGenerator):
        await pieces.aclose()
