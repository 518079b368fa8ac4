"""The newest readings in memory, bounded in bytes: what most followers that come back have missed."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter

from storage.models import Batch, Reading

# What a reading costs beside a text that is its value: the object, its names, its numbers.
READING_SIZE = 320

_last = attrgetter("last")
_offset = attrgetter("offset")

# Stands where a batch was that is gone.
_GONE = Batch(0, 0, [])


def size_of(batch: Batch) -> int:
    """Bytes that a batch takes in memory, about."""
    return READING_SIZE * len(batch.readings) + sum(
        [len(reading.value) for reading in batch.readings if type(reading.value) is str]
    )


class Window:
    """Batches that join without a gap, up to the head of the hub.

    `after`: the offset behind which the window has everything. `size`: bytes, about.
    """

    def __init__(self, head: int, capacity: int) -> None:
        self.after = head
        self.size = 0
        self._capacity = capacity
        self._batches: list[Batch] = []
        self._sizes: list[int] = []
        # The batches before this index are gone; the lists are cut now and then.
        self._start = 0

    def add(self, batch: Batch) -> None:
        """Take the next batch, let the oldest go."""
        size = size_of(batch)
        self._batches.append(batch)
        self._sizes.append(size)
        self.size += size
        while self.size > self._capacity and self._start < len(self._batches):
            oldest = self._batches[self._start]
            self.size -= self._sizes[self._start]
            self.after = oldest.last
            self._batches[self._start] = _GONE
            self._start += 1
        if self._start > 1000 and self._start > len(self._batches) // 2:
            del self._batches[: self._start]
            del self._sizes[: self._start]
            self._start = 0

    def after_offset(self, offset: int) -> Iterator[Reading]:
        """Readings behind an offset that is not before `after`, in order; to be read in one turn."""
        index = bisect_right(self._batches, offset, self._start, key=_last)
        for batch in islice(self._batches, index, None):
            readings = batch.readings
            if batch.first <= offset:
                readings = readings[bisect_right(readings, offset, key=_offset) :]
            yield from readings
