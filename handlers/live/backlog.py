"""What a slow follower has no room for: items in order, or the newest of each series that conflates."""

from collections import deque
from collections.abc import Callable

from handlers.live.conflater import Held
from handlers.live.filters import Series
from handlers.live.items import Item
from handlers.live.subscription import Overflow, Terms

_Entry = tuple[Item, int, Terms]


class Backlog:
    """Bounded by whoever fills it, with `shed`. `size`: bytes."""

    __slots__ = ("_held", "_size", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[_Entry] = deque()
        self._size = 0
        self._held = Held()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._held)

    @property
    def size(self) -> int:
        """The bytes of all items."""
        return self._size + self._held.size

    @property
    def oldest(self) -> int | None:
        """The lowest offset."""
        waiting = self._waiting[0][0].offset if self._waiting else None
        held = self._held.oldest if self._held else None
        if waiting is None or held is None:
            return held if waiting is None else waiting
        return min(waiting, held)

    def keep(self, item: Item, size: int, terms: Terms) -> int:
        """Take an item; how many it replaces."""
        if terms.overflow is Overflow.CONFLATE:
            if not self._held.put(item, size):
                return 0
            terms.lose()
            return 1
        entry = (item, size, terms)
        self._size += size
        if self._waiting and self._waiting[-1][0].offset > item.offset:
            # A conflater has held it back longer than what waits already.
            later = []
            while self._waiting and self._waiting[-1][0].offset > item.offset:
                later.append(self._waiting.pop())
            self._waiting.append(entry)
            self._waiting.extend(reversed(later))
        else:
            self._waiting.append(entry)
        return 0

    def take(self) -> Item:
        """Let go of the next item: those in order first."""
        if self._waiting:
            item, size, _ = self._waiting.popleft()
            self._size -= size
            return item
        return self._held.take_oldest()

    def supersede(self, series: Series) -> None:
        """A newer item of the series passes: what is held of it is over."""
        if self._held:
            self._held.take(series)

    def shed(self, over: int) -> tuple[int, int]:
        """Drop the oldest that may go, until `over` bytes are gone; what is over still, and how many went."""
        kept: list[_Entry] = []
        count = 0
        while over > 0 and self._waiting:
            entry = self._waiting.popleft()
            if entry[2].overflow is Overflow.DROP_OLDEST:
                entry[2].lose()
                count += 1
                self._size -= entry[1]
                over -= entry[1]
            else:
                kept.append(entry)
        self._waiting.extendleft(reversed(kept))
        return over, count

    def reassign(self, route: Callable[[Series], Terms | None]) -> None:
        """Subscriptions have changed: drop what none of them takes in any more."""
        entries = [
            (item, size, terms)
            for item, size, _ in self._waiting
            if (terms := route(item.series)) is not None
        ]
        self._waiting = deque(entries)
        self._size = sum(size for _, size, _ in entries)
        for item in self._held.items():
            if route(item.series) is None:
                self._held.take(item.series)
