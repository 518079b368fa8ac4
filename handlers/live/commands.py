"""What a client may say on the WebSocket, and what it must not."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from handlers.bodies import NOT_WELL_FORMED
from handlers.live.subscription import Overflow
from handlers.live.wires import SubscriptionId

T = TypeVar("T", str, bytes)

Id = int | Annotated[str, Meta(max_length=128)]
Names = Annotated[list[str], Meta(min_length=1, max_length=64)]

OVERFLOWS = {
    "disconnect": Overflow.DISCONNECT,
    "drop_oldest": Overflow.DROP_OLDEST,
    "conflate": Overflow.CONFLATE,
}


class Subscribe(Struct, tag="subscribe", tag_field="type", forbid_unknown_fields=True):
    """Follow the devices of some patterns."""

    id: Id
    match: Names
    metrics: Annotated[list[str], Meta(max_length=64)] = []
    since: str | None = None
    latest: bool = False
    min_interval: str | UnsetType = UNSET
    overflow: Literal["disconnect", "drop_oldest", "conflate"] = "disconnect"


class Unsubscribe(Struct, tag="unsubscribe", tag_field="type", forbid_unknown_fields=True):
    """End a subscription."""

    id: Id


class Write(Struct, tag="write", tag_field="type", forbid_unknown_fields=True):
    """Write readings; they are decoded where those of HTTP are."""

    id: Id
    readings: msgspec.Raw


Command = Subscribe | Unsubscribe | Write


class BadFrame(Exception):
    """What came is no object in the right coding."""


class BadCommand(Exception):
    """It is an object but no command. `id`: what it was called, if it was."""

    def __init__(self, detail: str, id: SubscriptionId | None) -> None:
        super().__init__(detail)
        self.id = id


class Commands:
    """Decodes the frames of clients, JSON or MessagePack."""

    def __init__(self) -> None:
        self._json: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
        self._msgpack: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
        self._json_anything = msgspec.json.Decoder()
        self._msgpack_anything = msgspec.msgpack.Decoder()

    def json(self, text: str) -> Command:
        """The command of a text frame. BadFrame, BadCommand."""
        return _decode(self._json.decode, self._json_anything.decode, text)

    def msgpack(self, data: bytes) -> Command:
        """The command of a binary frame. BadFrame, BadCommand."""
        return _decode(self._msgpack.decode, self._msgpack_anything.decode, data)


def _decode(decode: Callable[[T], Command], anything: Callable[[T], Any], data: T) -> Command:
    try:
        try:
            return decode(data)
        except msgspec.ValidationError as error:
            # What does not fit may be broken behind the place that does not.
            raise _verdict(error, anything(data)) from error
    except NOT_WELL_FORMED as error:
        raise BadFrame(f"the frame cannot be decoded: {error}") from error


def _verdict(error: Exception, content: Any) -> Exception:
    if type(content) is not dict:
        return BadFrame("expected an object")
    id = content.get("id")
    fits = (type(id) is int) or (type(id) is str and len(id) <= 128)
    return BadCommand(str(error), id if fits else None)
