"""Frames of a client, read by aiohttp's reader, with what it lets pass (RFC 6455)."""

import zlib
from collections.abc import Callable

from aiohttp import WSCloseCode, WSMsgType
from aiohttp._websocket.models import WSMessage
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp.http import WebSocketError

# Codes that must not stand in a close frame (RFC 6455 section 7.4.1).
_UNSENDABLE = frozenset((1004, 1005, 1006, 1015))


class FrameError(Exception):
    """The client does not keep to the protocol. `code`: what to close with."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class _Inbox(WebSocketDataQueue):
    """Where the reader puts messages: at once to whom they are for, without a queue."""

    __slots__ = ("error", "take")

    def __init__(self, take: Callable[[WSMessage], None]) -> None:
        super().__init__(None, 0, loop=None)  # type: ignore[arg-type]
        self.take = take
        # What `take` raised.
        self.error: Exception | None = None

    def feed_data(self, data: WSMessage, size: int) -> None:  # type: ignore[override]
        """A whole message."""
        if self.error is None:
            try:
                self.take(data)
            except Exception as error:
                self.error = error


class FrameReader:
    """Gives whole messages to `take`, at most `limit` bytes long. Needs no loop and no task.

    `deflated`: compressed ones are agreed to; none is inflated beyond the limit.
    """

    __slots__ = ("_guard", "_inbox", "_reader")

    def __init__(self, take: Callable[[WSMessage], None], limit: int, *, deflated: bool = False) -> None:
        self._guard = MaskGuard()
        self._inbox = _Inbox(take)
        # Its own limit is the first size that it refuses.
        self._reader = WebSocketReader(self._inbox, limit + 1, compress=deflated, decode_text=True)

    def feed(self, data: bytes) -> None:
        """Read on. FrameError, after which nothing may follow; also what `take` raises."""
        if not self._guard.passes(data):
            raise FrameError(WSCloseCode.PROTOCOL_ERROR, "a frame is not masked")
        broken, _ = self._reader.feed_data(data)
        if self._inbox.error is not None:
            raise self._inbox.error
        if broken:
            error = self._inbox.exception()
            if isinstance(error, WebSocketError):
                raise FrameError(error.code, str(error)) from error
            if isinstance(error, zlib.error):
                raise FrameError(WSCloseCode.INVALID_TEXT, "a message cannot be inflated") from error
            raise RuntimeError("the frame reader broke") from error


def close_code(message: WSMessage) -> int:
    """The code to answer a close frame with; FrameError if it has one that nobody may send."""
    if message.type is not WSMsgType.CLOSE or message.data in _UNSENDABLE:
        raise FrameError(WSCloseCode.PROTOCOL_ERROR, f"the close code {message.data}")
    return int(message.data) or WSCloseCode.OK


class MaskGuard:
    """Whether the frames of a client are masked, as they must be; aiohttp's reader does not look.

    Follows the frame headers through the bytes, however they are cut.
    """

    __slots__ = ("_header", "_skip")

    def __init__(self) -> None:
        # Bytes of the frame under way that are still to come, and the header that has begun.
        self._skip = 0
        self._header = b""

    def passes(self, data: bytes) -> bool:
        """Whether all frames that begin in the next bytes are masked."""
        if self._skip >= len(data):
            self._skip -= len(data)
            return True
        data = self._header + data[self._skip :]
        start, size = 0, len(data)
        while size - start >= 2:
            second = data[start + 1]
            if not second & 0x80:
                return False
            length = second & 0x7F
            extended = 0 if length < 126 else 2 if length == 126 else 8
            if size - start < 2 + extended:
                break
            if extended:
                length = int.from_bytes(data[start + 2 : start + 2 + extended])
            start += 6 + extended + length
        self._header = data[start:] if start < size else b""
        self._skip = max(0, start - size)
        return True
