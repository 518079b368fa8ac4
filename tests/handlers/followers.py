"""Followers whose record is checked message by message, against the log that they follow.

What is demanded of every connection, whatever its client asks for and however it reads:
- a reading is sent once, and only if a live subscription takes it in;
- a subscription without conflation gets the matching readings of the log in order, without a gap;
- nothing arrives later that lies before a position which was shown already: it could be resumed from;
- what `min_interval` or an overflow policy leaves out is replaced by something newer, or told.
"""

import json
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from handlers.live.filters import Filter
from storage.log import parse_position
from storage.models import Batch, Reading
from storage.patterns import parse_pattern

Series = tuple[str, str]


class Journal:
    """The log as the model has it: all readings, found by their identity.

    It may have begun as a copy of another one's first readings; its own have values of their own.
    """

    def __init__(self, number: int = 0, begun: Sequence[Reading] = ()) -> None:
        self.epoch = f"e{number}"
        self.readings: list[Reading] = list(begun)
        self._base = number * 100_000
        self._offsets = {(r.device, r.metric, str(r.value)): r.offset for r in begun}

    @property
    def head(self) -> int:
        return len(self.readings)

    def append(self, series: Sequence[Series]) -> Batch:
        """Readings of these series; each has a time of its own."""
        first = self.head + 1
        for device, metric in series:
            offset = self.head + 1
            value = self._base + offset
            self.readings.append(Reading(offset, device, metric, offset * 1_000_000, value))
            self._offsets[device, metric, str(value)] = offset
        return Batch(first, self.head, self.readings[first - 1 :], self.epoch)

    def offset(self, item: dict[str, Any]) -> int:
        """Which reading this is: its value tells, and must belong to its series and to this log."""
        reading = (item["device"], item["metric"], str(item["value"]))
        assert reading in self._offsets, f"{reading} is none of this log"
        return self._offsets[reading]

    def matching(self, wish: Filter, after: int) -> list[int]:
        """The offsets behind `after` that a filter takes in."""
        return [r.offset for r in self.readings[after:] if wish.takes(r.device, r.metric)]


class Wish:
    """A subscription as its client sees it. `got`: the offsets that came for it."""

    def __init__(
        self, id: int, match: Sequence[str], metrics: Sequence[str], overflow: str, interval: str
    ) -> None:
        self.id = id
        self.match = match
        self.metrics = metrics
        self.overflow = overflow
        self.interval = interval
        everything = (parse_pattern(">"),)
        self.filter = Filter(map(parse_pattern, match), everything, metrics)
        # What it asked for, and where it really starts.
        self.since: str | None = None
        self.start = 0
        self.confirmed = self.live = False
        self.got: list[int] = []
        self.dropped = 0
        # The highest position shown since it was subscribed.
        self.shown = -1

    @property
    def exact(self) -> bool:
        """Whether every reading must arrive."""
        return not self.interval and self.overflow == "disconnect"

    def command(self, since: str | None) -> dict[str, Any]:
        command: dict[str, Any] = {"type": "subscribe", "id": self.id, "match": list(self.match)}
        if self.metrics:
            command["metrics"] = list(self.metrics)
        if self.interval:
            command["min_interval"] = self.interval
        if since is not None:
            command["since"] = since
        return command | {"overflow": self.overflow}


class Record:
    """What one connection was sent, checked as it comes. `begins`: where a subscription that is told that its
    position is of another log starts instead.
    """

    def __init__(self, journal: Journal, begins: Callable[[int, int], int]) -> None:
        self.journal = journal
        self._begins = begins
        self.wishes: dict[int, Wish] = {}
        self.position = ""
        self.closed: int | None = None
        self.messages: list[dict[str, Any]] = []
        self._live: set[int] = set()
        self._shown = -1
        self._newest: dict[Series, int] = {}

    def take(self, message: dict[str, Any]) -> None:
        """Check one message."""
        assert self.closed is None, "something came behind the end"
        self.messages.append(message)
        match message["type"]:
            case "subscribed":
                self._subscribed(message)
            case "readings":
                self._page(message)
            case "live":
                self.wishes[message["id"]].live = True
            case "reading":
                self._reading(message)
            case "event":
                self._event(message)
            case "dropped":
                assert message["count"] > 0
                self.wishes[message["id"]].dropped += message["count"]
            case "unsubscribed":
                self.wishes.pop(message["id"])
            case "closed":
                self.closed = message["code"]
            case "position":
                pass
            case other:
                raise AssertionError(f"unexpected {other}: {message}")
        if message.get("position"):
            self._show(message["position"])

    def _subscribed(self, message: dict[str, Any]) -> None:
        wish = self.wishes[message["id"]]
        recovered = None
        if wish.since is not None:
            recovered = wish.since == "earliest" or parse_position(wish.since).epoch == self.journal.epoch
        assert message["recovered"] is recovered
        if recovered is False:
            assert message["reason"] == "unknown_epoch"
            wish.start = self._begins(wish.id, parse_position(message["position"]).offset)
        assert parse_position(message["position"]).offset <= wish.start
        assert not wish.confirmed
        wish.confirmed = True

    def _event(self, message: dict[str, Any]) -> None:
        """A reading on a stream that does not tell what was recovered from what is live."""
        wish = self.wishes[0]
        offset = self.journal.offset(message)
        if message.get("latest"):
            assert "position" not in message
            return
        assert offset > wish.shown, f"{offset} was still held back when {wish.shown} was shown"
        assert offset not in wish.got, f"{offset} was sent twice"
        self._give(wish, offset)

    def _page(self, message: dict[str, Any]) -> None:
        wish = self.wishes[message["id"]]
        assert not wish.live, "a recovered page behind live"
        assert message["items"]
        for item in message["items"]:
            if item.get("latest"):
                assert "position" not in item
                continue
            offset = self.journal.offset(item)
            assert offset > wish.shown, f"{offset} was still held back when {wish.shown} was shown"
            self._give(wish, offset)
            for other in self.wishes.values():
                # What the page brings need not come again for who wants the newest alone.
                if other.live and other.interval and other.filter.takes(item["device"], item["metric"]):
                    other.got.append(offset)
            self._show(item["position"])

    def _reading(self, message: dict[str, Any]) -> None:
        offset = self.journal.offset(message)
        series = (message["device"], message["metric"])
        assert offset not in self._live, f"{offset} was sent twice"
        self._live.add(offset)
        assert offset > self._shown, f"{offset} was still held back when {self._shown} was shown"
        assert offset > self._newest.get(series, 0), "a series went backwards"
        self._newest[series] = offset
        takers = [
            wish
            for wish in self.wishes.values()
            if wish.live and wish.filter.takes(*series) and offset > wish.start
        ]
        assert takers, f"nobody asked for {offset}"
        for wish in takers:
            self._give(wish, offset)

    def _give(self, wish: Wish, offset: int) -> None:
        assert wish.filter.takes(*_series(self.journal.readings[offset - 1]))
        if wish.exact:
            after = wish.got[-1] if wish.got else wish.start
            following = self.journal.matching(wish.filter, after)
            assert offset in following[:1], f"{offset} came behind {after} instead of {following[:1]}"
        wish.got.append(offset)

    def _show(self, position: str) -> None:
        epoch, offset = parse_position(position).epoch, parse_position(position).offset
        assert epoch == self.journal.epoch, "the position is of another log"
        assert offset <= self.journal.head
        self.position = position
        self._shown = max(self._shown, offset)
        for wish in self.wishes.values():
            # What was on its way when it was wished for does not count.
            if wish.confirmed:
                wish.shown = max(wish.shown, offset)

    def resumable(self) -> None:
        """Whoever loses the connection now and resumes from the last position shown misses nothing."""
        until = parse_position(self.position).offset if self.position else 0
        for wish in self.wishes.values():
            if not wish.confirmed or wish.overflow == "drop_oldest":
                continue
            expected = self.journal.matching(wish.filter, wish.start)
            if wish.exact:
                lost = [offset for offset in expected if offset <= until and offset not in wish.got]
            else:
                newest = {_series(self.journal.readings[o - 1]): o for o in expected}
                lost = [o for o in newest.values() if o <= until and o not in wish.got]
            assert not lost, f"{lost} lie before {until}, which was shown, and never came"

    def complete(self) -> None:
        """Nothing is under way any more: whoever is connected has what it was promised."""
        for wish in self.wishes.values():
            assert wish.confirmed
            expected = self.journal.matching(wish.filter, wish.start)
            if wish.exact:
                assert wish.got == expected, f"{wish.got} instead of {expected}"
                continue
            newest = {_series(self.journal.readings[o - 1]): o for o in expected}
            got = {_series(self.journal.readings[o - 1]): o for o in sorted(wish.got)}
            if wish.overflow == "drop_oldest":
                assert wish.interval or len(wish.got) + wish.dropped == len(expected), vars(wish)
                if wish.dropped:
                    continue
            missing = {series: o for series, o in newest.items() if got.get(series) != o}
            assert not missing, f"the last values {missing} never came"


def _series(reading: Reading) -> Series:
    return reading.device, reading.metric


class Frames:
    """Cuts the bytes of a server into messages."""

    def __init__(self, *, packed: bool) -> None:
        self._packed = packed
        self._data = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        self._data += data
        messages = []
        while (found := self._next()) is not None:
            opcode, payload = found
            if opcode & 0x40:
                # Each by itself: nothing is kept of the one before.
                payload = zlib.decompress(payload + b"\x00\x00\xff\xff\x03\x00", -9)
                opcode &= 0x0F
            if opcode == 8:
                code = struct.unpack("!H", payload[:2])[0]
                messages.append({"type": "closed", "code": code, "position": payload[2:].decode()})
            elif opcode in (1, 2):
                assert opcode == (2 if self._packed else 1)
                messages.append(msgspec.msgpack.decode(payload) if self._packed else json.loads(payload))
        return messages

    def _next(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        size, start = data[1], 2
        assert size < 128, "a server does not mask"
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start])
        if len(data) < start + size:
            return None
        self._data = data[start + size :]
        return data[0] & 0x4F, data[start : start + size]


class EventFrames:
    """The same for server-sent events, which speak as a socket with one subscription would."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        self._data += data
        *events, self._data = self._data.split(b"\n\n")
        messages: list[dict[str, Any]] = []
        for event in events:
            lines = [line.partition(": ")[::2] for line in event.decode().split("\n")]
            fields = {name: value for name, value in lines if name}
            if "data" not in fields:
                continue
            content = json.loads(fields["data"])
            assert content.get("position") == fields.get("id")
            match fields["event"]:
                case "recovery":
                    messages.append({"type": "subscribed", "id": 0, **content})
                case "reading":
                    messages.append({"type": "event", **content})
                case "position" | "expired":
                    messages.append({"type": "position", **content})
                case other:
                    raise AssertionError(other)
        return messages


def masked(content: object, *, packed: bool = False) -> bytes:
    """A frame of a client."""
    payload = msgspec.msgpack.encode(content) if packed else json.dumps(content).encode()
    head = bytes((0x82 if packed else 0x81,))
    size = len(payload)
    head += bytes((0x80 | size,)) if size < 126 else b"\xfe" + struct.pack("!H", size)
    mask = b"\x01\x02\x03\x04"
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
