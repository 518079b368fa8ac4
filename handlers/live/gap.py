"""What lies between the hub and the end of the log: how far there is more, and what of it came too early."""

import heapq
from collections.abc import Callable
from itertools import count

from handlers.live.window import size_of
from storage.models import Batch

# Bytes of early batches; those over it come out of the log.
EARLY_MAX = 8 * 1024 * 1024


class Gap:
    """Begins right behind the head of the hub. `until`: the offset up to which the log is known to go, 0 if
    that is no further than the hub.

    `since`: when the head stopped before the gap, in the time of `now`. `opened`: called when there is one.
    `size`: bytes of the batches that wait behind it, at most `capacity`.
    """

    def __init__(self, now: Callable[[], float], capacity: int = EARLY_MAX) -> None:
        self.until = 0
        self.since = 0.0
        self.size = 0
        self.opened: Callable[[], None] = _nothing
        self._now = now
        self._capacity = capacity
        self._early: list[tuple[int, int, Batch]] = []
        self._numbers = count()

    def reaches(self, offset: int) -> None:
        """There is more of the log, up to this offset at least, which is behind the head."""
        if not self.until:
            self.since = self._now()
            self.opened()
        self.until = max(self.until, offset)

    def keep(self, batch: Batch) -> None:
        """Have a batch wait for what lies before it, if there is room."""
        self.reaches(batch.last)
        size = size_of(batch)
        if self.size + size <= self._capacity:
            self.size += size
            heapq.heappush(self._early, (batch.first, next(self._numbers), batch))

    def settle(self, head: int) -> Batch | None:
        """The hub has come up to `head`; the batch that joins it now, if one waits."""
        early = self._early
        while early and early[0][0] <= head + 1:
            batch = heapq.heappop(early)[2]
            self.size -= size_of(batch)
            if batch.last > head:
                return batch
        if self.until <= head:
            self.until = 0
        else:
            self.since = self._now()
        return None

    def clear(self) -> None:
        """Nothing of it counts any more."""
        self.until = self.size = 0
        self._early.clear()


def _nothing() -> None:
    """Nobody fills it."""
