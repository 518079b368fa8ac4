"""Limits that processes share: per key one number, the theoretical arrival time (TAT) of auth/rate_limit.py.

A process decides by itself and says afterwards what it admitted (auth/shared_limits.py). Here it is added up.
"""

import heapq
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

KEYS_MAX = 200_000


class Spent(Struct, frozen=True, array_like=True, gc=False):
    """What a process admitted under one key and did not tell yet.

    `seconds`: units times the interval of the limit, what they add to the fill. `most`: the fill that
    is not exceeded, however much is spent; 0.0: there is no such bound.
    """

    policy: str
    key: str
    seconds: float
    most: float = 0.0


class Counters(Protocol):
    """One account for all processes.

    `processes`: how many share it, as last known; at least 1.
    """

    processes: int

    async def settle(self, spent: Sequence[Spent]) -> list[float]:
        """Add what was spent, and give the fill of each key after it, in seconds until it is empty.

        To be called at least every `BEAT` seconds, with nothing if there is nothing: that is how
        processes are counted. Unavailable, Timeout: it may have been added or not.
        """


# Seconds between two calls of `settle`, and those after which a silent process counts no more.
BEAT = 1.0
SILENCE = 5.0


class MemoryCounters:
    """An account in this process, for itself and for those that it serves. `clock`: monotonic, seconds."""

    def __init__(
        self,
        processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
        keys_max: int = KEYS_MAX,
    ) -> None:
        self.processes = processes
        self._clock = clock
        self._keys_max = keys_max
        self._arrivals: dict[tuple[str, str], float] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    async def settle(self, spent: Sequence[Spent]) -> list[float]:
        """See Counters; never fails."""
        return self.add(spent)

    def add(self, spent: Sequence[Spent]) -> list[float]:
        """The same at once."""
        now = self._clock()
        arrivals = self._arrivals
        fills = []
        for one in spent:
            key = one.policy, one.key
            arrival = max(arrivals.get(key, now), now) + one.seconds
            if one.most:
                arrival = min(arrival, now + one.most)
            arrivals[key] = arrival
            fills.append(arrival - now)
        if len(arrivals) > self._keys_max:
            self._forget(now)
        return fills

    def _forget(self, now: float) -> None:
        """Keep the buckets in use, and should they be too many, the fuller half of what there is room for."""
        kept = {key: arrival for key, arrival in self._arrivals.items() if arrival > now}
        if len(kept) > self._keys_max:
            kept = dict(heapq.nlargest(self._keys_max // 2, kept.items(), key=lambda item: item[1]))
        self._arrivals = kept
