"""Validation of readings by msgspec, for targets whose framework brings none of its own."""

import time
from typing import Annotated, Any, NamedTuple

import msgspec
from checks import Refused
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

READINGS_MAX = 10_000
Metric = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:/%-]{1,64}$")]
Number = Annotated[int, Meta(ge=-(2**53), le=2**53)]
Value = bool | Number | float | Annotated[str, Meta(max_length=1024)]
# Milliseconds since 1970, until the year 10000.
Time = Annotated[int, Meta(ge=0, lt=253402300800000)]
Row = tuple[str, int, Any]


class Item(Struct, forbid_unknown_fields=True):
    """One reading, or several of one time in `values`."""

    metric: Metric | UnsetType = UNSET
    value: Value | UnsetType = UNSET
    ts: Time | UnsetType = UNSET
    values: dict[Metric, Value] | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Either of both."""
        single = self.metric is not UNSET and self.value is not UNSET
        if single == bool(self.values) or (self.metric is UNSET) != (self.value is UNSET):
            raise ValueError("expected metric and value, or values")


class Readings(NamedTuple):
    """What a body holds: rows of metric, microseconds since 1970 and value; and what is wrong with the others."""

    rows: list[Row]
    rejected: list[dict[str, str]]


_whole = msgspec.json.Decoder(Item | list[Item])
_items = msgspec.json.Decoder(Item | list[Raw])
_item = msgspec.json.Decoder(Item)
_last = 0


def parse(body: bytes) -> Readings:
    """The readings of a body. Refused: 400 if it is no JSON, 422 if nothing in it is good, 413 if too much."""
    try:
        given = _whole.decode(body)
    except msgspec.ValidationError:
        return _sorted(body)
    except msgspec.DecodeError as error:
        raise Refused(400, "malformed") from error
    items = given if isinstance(given, list) else [given]
    check_count(items)
    return Readings([row for item in items for row in rows(item)], [])


def _sorted(body: bytes) -> Readings:
    """The good ones, and what is wrong with the others."""
    try:
        given = _items.decode(body)
    except msgspec.ValidationError as error:
        raise Refused(422, "invalid") from error
    items = given if isinstance(given, list) else [given]
    check_count(items)
    good, rejected = [], []
    for number, raw in enumerate(items):
        try:
            good += rows(_item.decode(raw))
        except msgspec.ValidationError as error:
            rejected.append({"pointer": f"/{number}", "code": "invalid", "detail": str(error)})
    if not good:
        raise Refused(422, "invalid")
    return Readings(good, rejected)


def check_count(items: list[Any]) -> None:
    """Not none, and not too many. Refused."""
    if not items:
        raise Refused(422, "invalid")
    if len(items) > READINGS_MAX:
        raise Refused(413, "too_large")


def rows(item: Item) -> list[Row]:
    """Of one item."""
    ts = unique_time() if item.ts is UNSET else item.ts * 1000
    if item.values is UNSET:
        return [(item.metric, ts, item.value)]
    return [(metric, ts, value) for metric, value in item.values.items()]


def unique_time() -> int:
    """Microseconds since 1970, never the same twice."""
    global _last
    _last = max(_last + 1, time.time_ns() // 1000)
    return _last


def page_query(query: dict[str, str]) -> dict[str, Any]:
    """The arguments of Store.page in a query. Refused: 422."""
    try:
        return msgspec.convert(query, Page, strict=False).arguments
    except msgspec.ValidationError as error:
        raise Refused(422, "invalid") from error


class Page(Struct, forbid_unknown_fields=True, rename={"start": "from", "stop": "to"}):
    """What a page is asked by; times in milliseconds."""

    metric: Metric
    start: Time = 0
    stop: Time = 253402300799999
    order: Annotated[str, Meta(pattern="^(asc|desc)$")] = "asc"
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Annotated[int, Meta(ge=0)] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """As Store.page takes them: times in microseconds."""
        return {
            "metric": self.metric,
            "low": self.start * 1000,
            "high": self.stop * 1000,
            "descending": self.order == "desc",
            "limit": self.limit,
            "cursor": self.cursor,
        }
