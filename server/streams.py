"""A connection that a stream has for itself: aiohttp is gone from it, the transport is all that is left."""

import asyncio
from collections.abc import Callable

from handlers.exchange import Stream


class StreamProtocol(asyncio.Protocol):
    """Between a transport and a stream, for which it is the sink. `gone` is called once, at the end."""

    __slots__ = ("_gone", "_stream", "_transport", "pending", "write")

    def __init__(
        self, transport: asyncio.Transport, stream: Stream, gone: Callable[["StreamProtocol"], None]
    ) -> None:
        self._transport = transport
        self._stream = stream
        self._gone = gone
        # The transport's own: nothing stands between the hub and the socket.
        self.write: Callable[[bytes], None] = transport.write
        self.pending: Callable[[], int] = transport.get_write_buffer_size

    def begin(self, head: bytes, received: bytes) -> None:
        """Take the connection over, send the head, hand on what came behind the request."""
        transport = self._transport
        transport.set_protocol(self)
        # Whoever waits for room is told when there is nothing left. With a limit of 0 uvloop's TLS would say
        # that it pauses where there is nothing to wait for, and say nothing when there was.
        transport.set_write_buffer_limits(high=1 if transport.get_extra_info("sslcontext") else 0)
        transport.write(head)
        self._stream.opened(self)
        transport.resume_reading()
        if received:
            self._stream.received(received)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._stream.received(data)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._stream.drained()

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio.Protocol."""
        # A transport that is closed raises where it is written to.
        self.write = _drop
        self.pending = _nothing
        self._stream.lost()
        self._gone(self)

    def hold(self) -> None:
        """See Sink."""
        self._transport.pause_reading()

    def release(self) -> None:
        """See Sink."""
        self._transport.resume_reading()

    def close(self) -> None:
        """See Sink."""
        self._transport.close()

    def abort(self) -> None:
        """See Sink."""
        self._transport.abort()


def _drop(data: bytes, /) -> None:
    """Nobody is there."""


def _nothing() -> int:
    """Nothing is kept for nobody."""
    return 0
