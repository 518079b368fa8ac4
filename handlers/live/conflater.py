"""At most one reading of a series in some time, the newest, and the last one always (`min_interval`)."""

from collections import OrderedDict, deque
from collections.abc import Callable

from handlers.live.filters import Series
from handlers.live.items import Item


class Held:
    """The newest item of each series, in order of offset; `size`: their bytes."""

    __slots__ = ("_items", "size")

    def __init__(self) -> None:
        self._items: OrderedDict[Series, tuple[Item, int]] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._items)

    def has(self, series: Series) -> bool:
        """Whether an item of the series is held."""
        return series in self._items

    def drop(self, over: Callable[[Item], bool]) -> None:
        """Let go of the items that are over."""
        for item in self.items():
            if over(item):
                self.take(item.series)

    def items(self) -> list[Item]:
        """What is held, in order of offset."""
        return [item for item, _ in self._items.values()]

    @property
    def oldest(self) -> int:
        """The lowest offset; there must be one."""
        return next(iter(self._items.values()))[0].offset

    def put(self, item: Item, size: int) -> bool:
        """Hold an item instead of an older one of its series; whether there was one."""
        old = self._items.pop(item.series, None)
        if old is not None:
            self.size -= old[1]
        behind = bool(self._items) and next(reversed(self._items.values()))[0].offset > item.offset
        self._items[item.series] = (item, size)
        self.size += size
        if behind:
            self._items = OrderedDict(sorted(self._items.items(), key=_place))
        return old is not None

    def take(self, series: Series) -> Item | None:
        """Let go of the item of a series, if there is one."""
        found = self._items.pop(series, None)
        if found is None:
            return None
        self.size -= found[1]
        return found[0]

    def take_oldest(self) -> Item:
        """Let go of the item with the lowest offset."""
        item, size = self._items.popitem(last=False)[1]
        self.size -= size
        return item

    def clear(self) -> None:
        """Let go of all."""
        self._items.clear()
        self.size = 0


def _place(entry: tuple[Series, tuple[Item, int]]) -> int:
    return entry[1][0].offset


class Conflater:
    """Holds back what comes too soon. `interval`: seconds; times are those of the caller's clock."""

    __slots__ = ("_resting", "_rests", "held", "interval")

    def __init__(self, interval: float) -> None:
        self.interval = interval
        # Series that were sent less than an interval ago, and when that is over, in order.
        self._resting: set[Series] = set()
        self._rests: deque[tuple[float, Series]] = deque()
        self.held = Held()

    def admit(self, series: Series, now: float) -> bool:
        """Whether a reading of the series may be sent now; then the series rests."""
        self._wake(now)
        if series in self._resting:
            return False
        self._rest(series, now)
        return True

    def hold(self, item: Item, now: float) -> None:
        """Take over what another one held back, to be sent when its series has rested here."""
        if item.series not in self._resting:
            self._rest(item.series, now)
        if not self.held.has(item.series):
            self.held.put(item, 0)

    def due(self, now: float) -> list[Item]:
        """What was held back long enough; its series rest again."""
        found: list[Item] = []
        while self._rests and self._rests[0][0] <= now:
            series = self._rests.popleft()[1]
            self._resting.discard(series)
            item = self.held.take(series)
            if item is not None:
                found.append(item)
                self._rest(series, now)
        return found

    @property
    def alarm(self) -> float | None:
        """When to ask again what is due; None if nothing is held."""
        return self._rests[0][0] if self.held else None

    def _rest(self, series: Series, now: float) -> None:
        self._resting.add(series)
        self._rests.append((now + self.interval, series))

    def _wake(self, now: float) -> None:
        """Forget the rests that are over and hold nothing."""
        while self._rests and self._rests[0][0] <= now:
            series = self._rests[0][1]
            if self.held.has(series):
                return
            self._rests.popleft()
            self._resting.discard(series)
