"""What the dispatch made of requests before, found again by all of the head that it looked at.

Behind proxies and tracing clients every head differs, be it in a request id, so the head memo never
knows it. But the dispatch looks at the method, the target and the heeded fields only (server/heeded.py
sees to that): where these are the same, so is what it makes of them. aiohttp's parser has accepted
each of these requests; what is spared is routing, checking the token, negotiating and planning.

The rules are those of the head memo. Checked at every use: the token's expiry, the generation of keys
and revocations, the length of the body; the rate limit is taken. Remembered at the second sight only,
so that what differs each time never enters; refusals never are. The limit on each head bounds the bytes.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from aiohttp.http_parser import RawRequestMessage
from msgspec import Struct

from server.heeded import HEEDED
from server.memo import Known
from storage.cache import make_room

# The names of the heeded fields, as often as they came; method, target and the values of these fields.
Key = tuple[tuple[bytes, ...], tuple[str | bytes, ...]]

_HEEDED = frozenset(name.lower().encode() for name in HEEDED)
# Where it stands among the fields is in the key; how much it announces is not.
_LENGTH = b"content-length"
_SHAPES_MAX = 1024


class _Shape(Struct, frozen=True):
    """A head's shape: the `names` of its heeded fields, and how to `pick` what is in the key."""

    names: tuple[bytes, ...]
    pick: Callable[[tuple[str | bytes, ...]], tuple[str | bytes, ...]]


class Admissions:
    """At most `entries` requests that were admitted. One for each table of routes."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._known: dict[Key, Known] = {}
        # Hashes of what was seen once.
        self._seen: set[int] = set()
        # By the names of all fields in their order: clients have few.
        self._shapes: dict[tuple[bytes, ...], _Shape] = {}
        self.hits = 0
        self.misses = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._known)

    def key(self, message: RawRequestMessage) -> Key:
        """All that the dispatch looks at, but for the length of the body."""
        # There is a Host at least. (A multidict's keys would not tell that a field came twice.)
        names, values = zip(*message.raw_headers, strict=False)
        shape = self._shapes.get(names) or self._shape(names)
        return shape.names, shape.pick((message.method, message.path, *values))

    def find(self, key: Key, length: int, generation: int, now: int) -> Known | None:
        """What was admitted under this key, if it still would be, with a body of `length` bytes.

        `generation`: of keys and revocations. `now`: microseconds since 1970.
        """
        known = self._known.get(key)
        if known is None:
            self.misses += 1
            return None
        if known.generation != generation or known.expires <= now:
            # The dispatch will look at it with fresh eyes.
            del self._known[key]
            self.misses += 1
            return None
        if length > known.limit:
            self.misses += 1
            return None
        self.hits += 1
        known.recent = True
        return known

    def put(self, key: Key, known: Known) -> None:
        """Remember it, if it was seen before."""
        mark = hash(key)
        if mark not in self._seen:
            if len(self._seen) >= self._entries:
                self._seen.clear()
            self._seen.add(mark)
            return
        if key not in self._known and len(self._known) >= self._entries:
            make_room(self._known)
            self.evictions += 1
        self._known[key] = known

    def _shape(self, names: tuple[bytes, ...]) -> _Shape:
        heeded: list[bytes] = []
        places: list[Any] = [0, 1]
        for place, name in enumerate(map(bytes.lower, names), 2):
            if name in _HEEDED:
                heeded.append(name)
                places.append(place)
            elif name == _LENGTH:
                heeded.append(name)
        if len(self._shapes) >= _SHAPES_MAX:
            self._shapes.clear()
        shape = self._shapes[names] = _Shape(tuple(heeded), itemgetter(*places))
        return shape
