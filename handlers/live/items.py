"""Committed readings on their way to followers: encoded once per wire, shared by all."""

from msgspec import Struct

from handlers.live.filters import Series
from storage.models import Reading


class Item:
    """A reading and its bytes. `forms`: by the index of the wire, whatever the wire keeps there."""

    __slots__ = ("forms", "offset", "reading", "series")

    def __init__(self, reading: Reading, series: Series) -> None:
        self.reading = reading
        self.series = series
        self.offset = reading.offset
        self.forms: dict[int, bytes] = {}


class Delivery:
    """What a commit has for one group of followers: items in log order.

    `joined`: by the index of the wire the bytes of all of them, made when the first follower needs them.
    """

    __slots__ = ("items", "joined")

    def __init__(self, item: Item) -> None:
        self.items = [item]
        self.joined: dict[int, bytes] = {}


class ReadingOut(Struct, frozen=True, gc=False):
    """What every wire says of a reading; a position follows."""

    device: str
    metric: str
    ts: object
    value: bool | int | float | str
