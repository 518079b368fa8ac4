"""The Structs of the wire and their codecs, made once."""

from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec
from msgspec import UNSET, Struct, UnsetType

from handlers.exchange import Media, Response
from handlers.problems import Fault
from storage.models import Value


class Item(Struct, forbid_unknown_fields=True, gc=False):
    """One item of a write: `metric` and `value`, or `values`; what must be there is checked by ingest."""

    metric: str | UnsetType = UNSET
    value: bool | int | float | str | UnsetType = UNSET
    ts: int | str | UnsetType = UNSET
    values: dict[str, Value] | UnsetType = UNSET


class DeviceItem(Item, forbid_unknown_fields=True, gc=False):
    """The same with the device in it."""

    device: str | UnsetType = UNSET


class Written(Struct, frozen=True, gc=False):
    """The answer to a write."""

    accepted: int
    duplicates: int
    rejected_count: int
    rejected: list[Fault]
    position: str


class Promised(Struct, frozen=True):
    """The answer to a write that is not committed yet."""

    accepted: int
    rejected_count: int
    rejected: list[Fault]


class SampleOut(Struct, frozen=True, gc=False):
    """The newest reading of a metric."""

    ts: datetime | int | str
    value: Value
    offset: int


class LatestOut(Struct, frozen=True, gc=False):
    """The newest readings of a device."""

    device: str
    metrics: dict[str, SampleOut]
    position: str


class RangeItem(Struct, frozen=True, gc=False):
    """A reading of a known device."""

    offset: int
    metric: str
    ts: datetime | int | str
    value: Value


class LogItem(Struct, frozen=True, gc=False):
    """A reading of the log."""

    offset: int
    device: str
    metric: str
    ts: datetime | int | str
    value: Value


class LogOut(Struct, frozen=True):
    """A page of the log. `next`: the position to continue from; `end`: nothing follows at the moment."""

    items: list[LogItem]
    next: str
    end: bool


class Page(Struct, frozen=True):
    """A page of any list. `next`: the cursor of the following page."""

    items: Sequence[object]
    next: str | None


class DeviceIn(Struct, forbid_unknown_fields=True):
    """What a client may say about a device."""

    name: str = ""
    labels: dict[str, str] = {}


class DeviceOut(Struct, frozen=True):
    """A registered device."""

    device: str
    name: str
    labels: dict[str, str]
    created_at: datetime | int | str
    last_seen: datetime | int | str | None
    metrics: tuple[str, ...]


class ClientIn(Struct, forbid_unknown_fields=True):
    """A client to be made. `ttl`: seconds, or a duration such as "1h"."""

    scopes: list[str]
    devices: list[str]
    id: str | UnsetType = UNSET
    ttl: int | str | UnsetType = UNSET


class ClientOut(Struct, frozen=True, omit_defaults=True):
    """A client; the secret is shown once, when it is made."""

    id: str
    scopes: tuple[str, ...]
    devices: tuple[str, ...]
    ttl: int
    created_at: datetime | int | str
    secret: str | UnsetType = UNSET


class TokenOut(Struct, frozen=True):
    """RFC 6749 section 5.1."""

    access_token: str
    token_type: str
    expires_in: int
    scope: str


CONTENT_TYPES = {
    Media.JSON: "application/json",
    Media.MSGPACK: "application/msgpack",
    Media.NDJSON: "application/x-ndjson",
    Media.CSV: "text/csv; charset=utf-8",
    Media.TEXT: "text/plain; charset=utf-8",
}

encode_json = msgspec.json.Encoder().encode
encode_msgpack = msgspec.msgpack.Encoder().encode


def respond(
    media: Media, content: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
) -> Response:
    """A response with the content in the negotiated form, JSON or MessagePack."""
    encode, content_type = representation(media)
    return Response(status, encode(content), content_type, headers)


def representation(media: Media) -> tuple[Callable[[object], bytes], str]:
    """How a negotiated form is made, and its content type."""
    if media is Media.MSGPACK:
        return encode_msgpack, "application/msgpack"
    return encode_json, "application/json"
