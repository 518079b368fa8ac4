"""What is said on the streams, by the bench: handshakes, commands, and how a stream is read. Pure.

Every target speaks the same: a follower opens `/v1/stream` as a WebSocket (RFC 6455), is told `live` after
it has subscribed, and gets one text frame a reading; or it opens `/v1/events` (server-sent events), with the
event `recovery` first. Readings are written over a WebSocket, each write acknowledged.
"""

import base64
import hashlib
import json
import os
import struct
from abc import ABC, abstractmethod

from bench.verify import Unverified

DEVICE, METRIC = "bench.live", "m"
STREAM, EVENTS = "/v1/stream", f"/v1/events?match={DEVICE}"
TEXT = 0x81

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_HEAD_END = b"\r\n\r\n"


def upgrade(token: str, path: str = STREAM) -> tuple[bytes, bytes]:
    """An opening handshake ("": without a token), and the Sec-WebSocket-Accept that must come back."""
    key = base64.b64encode(os.urandom(16))
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}Upgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    ).encode()
    wanted = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    return head + key + _HEAD_END, wanted


def events(token: str) -> bytes:
    """The request for an event stream."""
    return (
        f"GET {EVENTS} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        "Accept: text/event-stream\r\n\r\n"
    ).encode()


def command(**fields: object) -> bytes:
    """A masked text frame of an object."""
    return masked(json.dumps(fields, separators=(",", ":")).encode())


def masked(payload: bytes) -> bytes:
    """A masked text frame. The mask is zero, which the receiver cannot tell from another one's cost."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BBI", TEXT, 0x80 | size, 0) + payload
    return struct.pack("!BBHI", TEXT, 0x80 | 126, size, 0) + payload


def subscribe(overflow: str = "") -> bytes:
    """The wish to follow all readings of the bench."""
    if overflow:
        return command(type="subscribe", id=1, match=[DEVICE], overflow=overflow)
    return command(type="subscribe", id=1, match=[DEVICE])


def value(number: int, padding: int) -> int | str:
    """What reading `number` says; with `padding` a text of so many characters."""
    return f"{number}:".ljust(padding, "x") if padding else number


def write(id: int, first: int, count: int, padding: int = 0) -> bytes:
    """The command that writes the readings number `first` and on; times are the target's."""
    readings = [
        {"device": DEVICE, "metric": METRIC, "value": value(n, padding)} for n in range(first, first + count)
    ]
    return command(type="write", id=id, readings=readings)


def head_end(data: bytes) -> int:
    """Where the head of an answer ends; -1 if it has not come in full."""
    end = data.find(_HEAD_END)
    return end if end < 0 else end + 4


def check_upgraded(head: bytes, accept: bytes) -> None:
    """Unverified unless this is the end of the handshake."""
    if not head.startswith(b"HTTP/1.1 101 "):
        raise Unverified(f"expected 101 for a WebSocket, got {head[:200]!r}")
    if b"\r\nsec-websocket-accept: " + accept.lower() + b"\r\n" not in head.lower():
        raise Unverified("expected the Sec-WebSocket-Accept of the key")


def check_events(head: bytes) -> bool:
    """Whether the event stream that follows is in chunks, or else as it is until the end. Unverified."""
    low = head.lower()
    if not head.startswith(b"HTTP/1.1 200 ") or b"\r\ncontent-type: text/event-stream" not in low:
        raise Unverified(f"expected 200 with text/event-stream, got {head[:200]!r}")
    if b"\r\ncontent-length:" in low or b"\r\ncontent-encoding:" in low:
        raise Unverified(f"expected an event stream without an end and coding, got {head!r}")
    return b"\r\ntransfer-encoding: chunked\r\n" in low


def frame_at(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """Begin and end of the payload of the text frame at `at`; None if it is not there in full. Unverified."""
    have = len(data) - at
    if have < 2:
        return None
    first, size = data[at], data[at + 1]
    if first != TEXT:
        raise Unverified(f"expected a whole text frame, got one that begins with {first:#x}")
    if size >= 128:
        raise Unverified("expected frames without a mask")
    begin = at + 2
    if size >= 126:
        width = 2 if size == 126 else 8
        begin += width
        if len(data) < begin:
            return None
        size = int.from_bytes(data[begin - width : begin], "big")
    end = begin + size
    return (begin, end) if end <= len(data) else None


def message(payload: bytes | bytearray) -> dict[str, object]:
    """The object in a frame or an event. Unverified."""
    try:
        found = json.loads(payload)
    except ValueError as error:
        raise Unverified(f"expected JSON, got {bytes(payload[:200])!r}") from error
    if not isinstance(found, dict):
        raise Unverified(f"expected an object, got {bytes(payload[:200])!r}")
    return found


class Reader(ABC):
    """Reads the one stream that all followers get: the readings from number `next` on, each once, in order.

    `ends`: for each reading the place in the bytes behind it. `padding`: of their values.
    """

    def __init__(self, padding: int = 0) -> None:
        self.ends: list[int] = []
        self.padding = padding
        self.next = 0
        # Up to where the bytes were read.
        self.at = 0

    @abstractmethod
    def read(self, data: bytearray) -> None:
        """Read what is whole of the bytes since `at`. Unverified."""

    def _check(self, found: dict[str, object]) -> None:
        wanted = value(self.next, self.padding)
        if found.get("value") != wanted:
            raise Unverified(f"expected reading {self.next} next, in order and once, got {str(found)[:300]}")
        if (found.get("device"), found.get("metric")) != (DEVICE, METRIC):
            raise Unverified(f"expected device and metric of the reading, got {str(found)[:300]}")
        if not isinstance(found.get("ts"), str) or not isinstance(found.get("position"), str):
            raise Unverified(f"expected ts and position in a reading, got {str(found)[:300]}")
        self.next += 1


class FrameReader(Reader):
    """WebSocket: one text frame a reading."""

    def read(self, data: bytearray) -> None:
        """See Reader."""
        while (place := frame_at(data, self.at)) is not None:
            found = message(data[place[0] : place[1]])
            if found.get("type") != "reading":
                raise Unverified(f"expected a reading, got {str(found)[:300]}")
            self._check(found)
            self.at = place[1]
            self.ends.append(self.at)


class EventReader(Reader):
    """Server-sent events (the HTML standard), as they are (`chunked` is false) or in chunks, cut anywhere."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__(padding)
        self.chunked = False
        self._text = b""

    def read(self, data: bytearray) -> None:
        """See Reader."""
        if self.chunked:
            while (place := chunk_at(data, self.at)) is not None:
                begin, end = place
                *whole, self._text = (self._text + data[begin:end]).split(b"\n\n")
                self.at = end + 2
                for event in whole:
                    self._event(event)
                    self.ends.append(self.at)
            return
        while (end := data.find(b"\n\n", self.at)) >= 0:
            self._event(bytes(data[self.at : end]))
            self.at = end + 2
            self.ends.append(self.at)

    def _event(self, event: bytes) -> None:
        fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line)
        if fields.get(b"event") != b"reading" or not fields.get(b"id"):
            raise Unverified(f"expected the event of a reading with an id, got {event[:300]!r}")
        self._check(message(fields.get(b"data", b"")))


def chunk_at(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """Begin and end of what is in the chunk at `at` (RFC 9112 section 7.1); None if not whole. Unverified."""
    line = data.find(b"\r\n", at)
    if line < 0:
        return None
    try:
        size = int(data[at:line], 16)
    except ValueError as error:
        raise Unverified(f"expected the size of a chunk, got {bytes(data[at:line][:50])!r}") from error
    if not size:
        raise Unverified("the event stream ended")
    end = line + 2 + size
    if len(data) < end + 2:
        return None
    if data[end : end + 2] != b"\r\n":
        raise Unverified("a chunk is longer than it says")
    return line + 2, end
