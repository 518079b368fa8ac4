"""The three ways to say things to a follower: JSON and MessagePack frames, server-sent events.

A reading is encoded once per wire and its bytes, frame header included, are shared by all followers.
Servers do not mask their frames (RFC 6455 section 5.1), so one frame serves everybody.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from itertools import count
from struct import Struct as Layout

from handlers.live.deflate import Deflater
from handlers.live.items import Delivery, Item, ReadingOut
from handlers.schemas import encode_json, encode_msgpack
from handlers.times import Stamp, TimeFormat, rfc3339, to_datetime, to_ms, to_us
from storage.models import Reading

SubscriptionId = int | str

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA

# Bytes of items that one frame of a page has at most, so that no client finds it too big.
PAGE_BYTES = 128 * 1024

_MEDIUM = Layout("!BBH").pack
_LARGE = Layout("!BBQ").pack
_CODE = Layout("!H").pack


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole unmasked frame (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return _MEDIUM(0x80 | opcode, 126, size) + payload
    return _LARGE(0x80 | opcode, 127, size) + payload


def compressed_frame(opcode: int, payload: bytes) -> bytes:
    """The same of a message that permessage-deflate has compressed (RFC 7692 section 6)."""
    data = frame(opcode, payload)
    return bytes((data[0] | 0x40,)) + data[1:]


def _deflated(deflater: Deflater, opcode: int, payload: bytes) -> bytes:
    """A frame that is compressed if that is worth it."""
    compressed = deflater.compress(payload)
    return frame(opcode, payload) if compressed is None else compressed_frame(opcode, compressed)


def close_frame(code: int, reason: str) -> bytes:
    """A close frame; the reason is cut to what fits into it."""
    return frame(CLOSE, _CODE(code) + reason.encode()[:123])


class Wire(ABC):
    """How one kind of follower is spoken to. `index` tells the wires of a process apart."""

    def __init__(self, index: int, epoch: str, stamp: Stamp) -> None:
        self.index = index
        self._epoch = epoch
        self._stamp = stamp

    def position(self, offset: int) -> str:
        """The position behind an offset."""
        return f"{self._epoch}-{offset}"

    def join(self, delivery: Delivery) -> bytes:
        """All items of a delivery, each with its own position."""
        items = delivery.items
        data = self.live(items[0]) if len(items) == 1 else b"".join(map(self.live, items))
        delivery.joined[self.index] = data
        return data

    @abstractmethod
    def live(self, item: Item) -> bytes:
        """A reading with its own position: the bytes that all followers share."""

    @abstractmethod
    def live_at(self, item: Item, offset: int) -> bytes:
        """A reading with an earlier position, for who has something held back."""

    @abstractmethod
    def page(self, id: SubscriptionId, readings: Sequence[Reading], floor: int, until: int) -> list[bytes]:
        """Recovered readings; their positions, and that of the page, are at most `floor`.

        `until`: how far the log was searched for them.
        """

    @abstractmethod
    def newest(self, id: SubscriptionId, readings: Sequence[Reading], offset: int) -> list[bytes]:
        """The newest value of each series, as they stand."""

    @abstractmethod
    def moved(self, offset: int) -> bytes:
        """A position alone."""

    def _out(self, reading: Reading) -> ReadingOut:
        return ReadingOut(reading.device, reading.metric, self._stamp(reading.ts), reading.value)


class _Frames(Wire):
    """The two wires of the WebSocket. `deflater`: None if the client reads nothing compressed."""

    def __init__(self, index: int, epoch: str, stamp: Stamp, deflater: Deflater | None = None) -> None:
        super().__init__(index, epoch, stamp)
        self.deflater = deflater
        self._frame = frame if deflater is None else partial(_deflated, deflater)

    def live(self, item: Item) -> bytes:
        """See Wire."""
        data = item.forms.get(self.index)
        if data is None:
            data = item.forms[self.index] = self.live_at(item, item.offset)
        return data

    @abstractmethod
    def message(self, **fields: object) -> bytes:
        """Any other message."""

    def page(self, id: SubscriptionId, readings: Sequence[Reading], floor: int, until: int) -> list[bytes]:
        """See Wire."""
        frames: list[bytes] = []
        items: list[bytes] = []
        size = last = 0
        for reading in readings:
            item = self._item(reading, min(reading.offset, floor))
            if size + len(item) > PAGE_BYTES and items:
                frames.append(self._page(id, items, min(last, floor)))
                items, size = [], 0
            items.append(item)
            size += len(item)
            last = reading.offset
        if items:
            frames.append(self._page(id, items, min(until, floor)))
        return frames

    def newest(self, id: SubscriptionId, readings: Sequence[Reading], offset: int) -> list[bytes]:
        """See Wire."""
        frames: list[bytes] = []
        items: list[bytes] = []
        size = 0
        for reading in readings:
            item = self._newest(reading)
            if size + len(item) > PAGE_BYTES and items:
                frames.append(self._page(id, items, offset))
                items, size = [], 0
            items.append(item)
            size += len(item)
        if items:
            frames.append(self._page(id, items, offset))
        return frames

    def moved(self, offset: int) -> bytes:
        """See Wire."""
        return self.message(type="position", position=self.position(offset))

    @abstractmethod
    def _item(self, reading: Reading, offset: int) -> bytes: ...

    @abstractmethod
    def _newest(self, reading: Reading) -> bytes: ...

    @abstractmethod
    def _page(self, id: SubscriptionId, items: Sequence[bytes], offset: int) -> bytes: ...


class JsonFrames(_Frames):
    """Text frames of JSON."""

    def live_at(self, item: Item, offset: int) -> bytes:
        """See Wire."""
        inner = encode_json(self._out(item.reading))[1:-1]
        position = self.position(offset).encode()
        return self._frame(TEXT, b'{"type":"reading",%b,"position":"%b"}' % (inner, position))

    def message(self, **fields: object) -> bytes:
        """See _Frames."""
        return self._frame(TEXT, encode_json(fields))

    def _item(self, reading: Reading, offset: int) -> bytes:
        return encode_json(self._out(reading))[:-1] + b',"position":"%b"}' % self.position(offset).encode()

    def _newest(self, reading: Reading) -> bytes:
        return encode_json(self._out(reading))[:-1] + b',"latest":true}'

    def _page(self, id: SubscriptionId, items: Sequence[bytes], offset: int) -> bytes:
        start = b'{"type":"readings","id":%b,"items":[' % encode_json(id)
        position = self.position(offset).encode()
        return self._frame(TEXT, b'%b%b],"position":"%b"}' % (start, b",".join(items), position))


# MessagePack: maps of four, five and six fields, and names that come in each message.
_FOUR, _FIVE, _SIX = b"\x84", b"\x85", b"\x86"
_TYPE_READING = encode_msgpack("type") + encode_msgpack("reading")
_TYPE_READINGS = encode_msgpack("type") + encode_msgpack("readings")
_ID, _ITEMS, _POSITION = encode_msgpack("id"), encode_msgpack("items"), encode_msgpack("position")
_LATEST = encode_msgpack("latest") + encode_msgpack(True)
_ARRAY = Layout("!BI").pack


class MsgpackFrames(_Frames):
    """Binary frames of MessagePack."""

    def live_at(self, item: Item, offset: int) -> bytes:
        """See Wire."""
        inner = encode_msgpack(self._out(item.reading))[1:]
        return self._frame(BINARY, _SIX + _TYPE_READING + inner + self._place(offset))

    def message(self, **fields: object) -> bytes:
        """See _Frames."""
        return self._frame(BINARY, encode_msgpack(fields))

    def _place(self, offset: int) -> bytes:
        return _POSITION + encode_msgpack(self.position(offset))

    def _item(self, reading: Reading, offset: int) -> bytes:
        return _FIVE + encode_msgpack(self._out(reading))[1:] + self._place(offset)

    def _newest(self, reading: Reading) -> bytes:
        return _FIVE + encode_msgpack(self._out(reading))[1:] + _LATEST

    def _page(self, id: SubscriptionId, items: Sequence[bytes], offset: int) -> bytes:
        head = _FOUR + _TYPE_READINGS + _ID + encode_msgpack(id) + _ITEMS + _ARRAY(0xDD, len(items))
        return self._frame(BINARY, head + b"".join(items) + self._place(offset))


class Events(Wire):
    """Server-sent events (the HTML standard). JSON has no line breaks of its own, so one line holds it."""

    def live(self, item: Item) -> bytes:
        """See Wire."""
        data = item.forms.get(self.index)
        if data is None:
            data = item.forms[self.index] = self._reading(item.reading, item.offset)
        return data

    def live_at(self, item: Item, offset: int) -> bytes:
        """See Wire."""
        return self._reading(item.reading, offset)

    def page(self, id: SubscriptionId, readings: Sequence[Reading], floor: int, until: int) -> list[bytes]:
        """See Wire."""
        return [b"".join(self._reading(reading, min(reading.offset, floor)) for reading in readings)]

    def newest(self, id: SubscriptionId, readings: Sequence[Reading], offset: int) -> list[bytes]:
        """See Wire. Without an id of their own, so that the one before stays."""
        return [b"".join(map(self._newest, readings))]

    def moved(self, offset: int) -> bytes:
        """See Wire."""
        return self.event("position", offset, {"position": self.position(offset)})

    def event(self, name: str, offset: int, content: object) -> bytes:
        """Any event with a position."""
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (
            self.position(offset).encode(),
            name.encode(),
            encode_json(content),
        )

    def _reading(self, reading: Reading, offset: int) -> bytes:
        position = self.position(offset).encode()
        inner = encode_json(self._out(reading))[:-1]
        return b'id: %b\nevent: reading\ndata: %b,"position":"%b"}\n\n' % (position, inner, position)

    def _newest(self, reading: Reading) -> bytes:
        return b'event: reading\ndata: %b,"latest":true}\n\n' % encode_json(self._out(reading))[:-1]


class Wires:
    """All wires of a process: by form, and by how they write times."""

    def __init__(self, epoch: str) -> None:
        self._numbers = count()
        self.renew(epoch)

    def renew(self, epoch: str) -> None:
        """From here on positions are of another log; who has a wire keeps it as it is."""
        # In the order of TimeFormat.
        json: tuple[Stamp, ...] = (to_datetime, to_ms, to_us)
        # MessagePack would make a timestamp extension of a datetime.
        msgpack: tuple[Stamp, ...] = (rfc3339, to_ms, to_us)
        numbers = self._numbers
        self.events = [Events(next(numbers), epoch, stamp) for stamp in json]
        # By form, and whether they are compressed.
        self._frames: dict[tuple[bool, bool], list[JsonFrames] | list[MsgpackFrames]] = {}
        for deflater in (None, Deflater()):
            deflated = deflater is not None
            self._frames[False, deflated] = [JsonFrames(next(numbers), epoch, s, deflater) for s in json]
            self._frames[True, deflated] = [MsgpackFrames(next(numbers), epoch, s, deflater) for s in msgpack]

    def frames(self, style: TimeFormat, *, packed: bool, deflated: bool) -> JsonFrames | MsgpackFrames:
        """The wire of a WebSocket."""
        return self._frames[packed, deflated][style]
