"""Limits that hold over all processes together, decided in each of them without a question.

A process decides by what it knows of a bucket: its own units, and those of the others as of the last
settlement. What it admitted it tells the shared account (storage/counters.py) within a turn or two of the
loop, and learns what the others did. Between two settlements it may admit a lease:

    lease = 2 x burst / processes, rounded up

so that over any window of time no more is admitted than

    limit + burst + processes x lease        (at most limit + 3 x burst + processes; with one process
                                              limit + burst, as when nothing is shared)

A batch larger than the lease is admitted whole if nothing of its key is unsettled, and counts as a lease
then. While the account is away each process admits its share, limit / processes (those that were known
last) with a burst of burst / processes, at least one unit; each time that it goes or comes back, what was not
settled and these bursts, not more than burst + processes x (lease + 1), may be admitted once more. A process
that joins is known to the others within a second; until then their leases are those of fewer processes.
Who calls one process alone gets the whole limit: it is refused for want of a lease only when it
spends a whole one within one settlement, the time of a question to Redis.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from auth.rate_limit import KEYS_MAX, TOLERANCE, Limiter, LimitExceeded, Policy
from storage.counters import BEAT, SILENCE, Counters, Spent
from storage.errors import StorageError

_log = logging.getLogger("tidegate.limits")

# Seconds after which somebody who has spent a lease is asked to come again.
_LEASE_WAIT = 0.05
# Seconds between two looks at the settlement, and looks without an answer after which each decides alone.
LOOK = 0.1
LOOKS_MAX = 4
# Keys of one settlement, so that many of them do not hold up the loop.
KEYS_AT_ONCE = 500


class SharedLimiter(Limiter):
    """A limiter whose units are settled. `wake`: called when something should be settled soon.

    `capped`: units are charged, not taken, so that a debt ends at one window.
    """

    def __init__(
        self,
        policy: Policy,
        wake: Callable[[], None],
        *,
        capped: bool = False,
        clock: Callable[[], float] = time.monotonic,
        keys_max: int = KEYS_MAX,
    ) -> None:
        super().__init__(policy, clock, keys_max)
        self._wake = wake
        self._most = policy.depth + policy.window if capped else 0.0
        # Seconds per key that were admitted and are not settled, those on their way included.
        self._spent: dict[str, float] = {}
        # Keys whose spending has passed the threshold.
        self._ready: list[str] = []
        self._shared = False
        self._lease = math.inf
        self._threshold = policy.interval

    def take(self, key: str, cost: int = 1) -> float:
        """As Limiter.take."""
        now = self._clock()
        arrivals = self.arrivals
        arrival = arrivals.get(key, 0.0)
        seconds = cost * self._interval
        after = (arrival if arrival > now else now) + seconds  # noqa: FURB136
        fill = after - now
        if fill > self.depth and (cost <= self._burst or arrival > now + self._tolerance):
            raise self._excess(max(arrival - now, 0.0), cost)
        if self._shared:
            before = self._spent.get(key, 0.0)
            pending = before + seconds
            if pending > self._lease and before:
                self.refused += 1
                raise LimitExceeded(self.policy, _LEASE_WAIT, fill)
            self._spent[key] = pending
            if pending >= self._threshold > before:
                self._ready.append(key)
                self._wake()
        arrivals[key] = after
        if len(arrivals) > self._keys_max:
            self._forget(now)
        return fill

    def charge(self, key: str, cost: int = 1) -> None:
        """As Limiter.charge."""
        super().charge(key, cost)
        if self._shared:
            before = self._spent.get(key, 0.0)
            self._spent[key] = before + cost * self._interval
            if not before:
                self._ready.append(key)
                self._wake()

    # -- settling ------------------------------------------------------------------------------

    def share(self, processes: int) -> None:
        """Decide by the shared account from now on."""
        policy = self.policy
        self._interval, self._burst = policy.interval, policy.burst
        self._tolerance = policy.interval * TOLERANCE
        self.depth = policy.depth + self._tolerance
        lease = -(-2 * policy.burst // processes) * policy.interval
        self._lease = lease + self._tolerance if processes > 1 else math.inf
        # What is charged is rare, and the others should know at once.
        share = 0.0 if self._most else lease / 4
        self._threshold = max(policy.interval, share) - self._tolerance
        self._shared = True

    def part(self, processes: int) -> None:
        """The account is away: decide alone, by the share of one of so many processes."""
        policy = self.policy
        self._shared = False
        self._spent.clear()
        self._ready.clear()
        self._interval = policy.interval * processes
        self._burst = max(1, policy.burst // processes)
        self._tolerance = self._interval * TOLERANCE
        # A bucket keeps its fill: it is in seconds, and drains in the same time.
        self.depth = self._burst * self._interval + self._tolerance

    def spent(self, *, everything: bool) -> list[Spent]:
        """What is to be settled now: keys past the threshold, or all."""
        keys = list(self._spent) if everything else self._ready
        self._ready = []
        name, most, spent = self.policy.name, self._most, self._spent
        return [Spent(name, key, spent[key], most) for key in keys if key in spent]

    def settled(self, spent: Spent, fill: float) -> None:
        """The account has added it; `fill`: of its bucket after that, all processes together."""
        key, now = spent.key, self._clock()
        left = self._spent.pop(key, 0.0) - spent.seconds
        if left < self._tolerance:
            left = 0.0
        else:
            self._spent[key] = left
            if left >= self._threshold:
                self._ready.append(key)
        # Never less than what is known here: an account that was lost is not a bucket that is empty.
        arrival = now + fill + left
        if arrival > self.arrivals.get(key, 0.0):
            self.arrivals[key] = arrival
            if len(self.arrivals) > self._keys_max:
                self._forget(now)

    def _forget(self, now: float) -> None:
        super()._forget(now)
        self._spent = {key: seconds for key, seconds in self._spent.items() if key in self.arrivals}
        self._ready = [key for key in self._ready if key in self._spent]

    @property
    def unsettled(self) -> bool:
        """Whether something is past the threshold."""
        return bool(self._ready)


class Settlement:
    """Settles the limiters of this process with the account.

    `healthy`: whether it could be done the last time. `settled`: keys so far; `lost`: how often the account
    went away.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._limiters: dict[str, SharedLimiter] = {}
        self._work = asyncio.Event()
        # Loop time of the next beat.
        self._due = 0.0
        # An answer is awaited, and looks since then.
        self._asked = False
        self._silent = 0
        # What was counted lately: an account that has just begun knows only those who were quick.
        self._counted: deque[int] = deque([1], maxlen=math.ceil(SILENCE / BEAT))
        self.healthy = False
        self.settled = 0
        self.lost = 0

    def limiter(self, policy: Policy, *, capped: bool = False) -> SharedLimiter:
        """A limiter that is settled here; one for each name of a policy."""
        limiter = self._limiters[policy.name] = SharedLimiter(policy, self._work.set, capped=capped)
        return limiter

    @property
    def processes(self) -> int:
        """How many share the limits, as last known."""
        return max(self._counted)

    async def beat(self) -> None:
        """Be counted, learn how many others there are, settle everything. StorageError."""
        await self._ask(())
        self._counted.append(self._counters.processes)
        for limiter in self._limiters.values():
            limiter.share(self.processes)
        if not self.healthy:
            self.healthy = True
            _log.info("limits are shared", extra={"processes": self.processes})
        await self.settle(everything=True)

    async def settle(self, *, everything: bool = False) -> None:
        """Settle what is past the threshold, or everything. StorageError."""
        for limiter in self._limiters.values():
            spent = limiter.spent(everything=everything)
            for start in range(0, len(spent), KEYS_AT_ONCE):
                some = spent[start : start + KEYS_AT_ONCE]
                for one, fill in zip(some, await self._ask(some), strict=True):
                    limiter.settled(one, fill)
                self.settled += len(some)
            if limiter.unsettled:
                self._work.set()

    async def run(self) -> None:
        """Settle again and again, until cancelled."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LOOK, self._look)
        try:
            while True:
                self._due = loop.time() + BEAT
                try:
                    await self.beat()
                    # Alone meanwhile, if the account took too long.
                    while self.healthy and loop.time() < self._due:
                        await self._work.wait()
                        self._work.clear()
                        await self.settle()
                except StorageError as error:
                    self._part(str(error))
                    await asyncio.sleep(BEAT)
                except Exception as error:
                    _log.exception("the settlement broke")
                    self._part(str(error))
                    await asyncio.sleep(BEAT)
        finally:
            self._timer.cancel()

    async def _ask(self, spent: Sequence[Spent]) -> list[float]:
        self._silent = 0
        self._asked = True
        try:
            return await self._counters.settle(spent)
        finally:
            self._asked = False

    def _look(self) -> None:
        """Whoever has spent his lease is refused until the answer comes: not for long."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LOOK, self._look)
        if self._asked:
            self._silent += 1
            if self._silent > LOOKS_MAX:
                self._part("no answer for a while")
        elif loop.time() >= self._due:
            self._work.set()

    def _part(self, reason: str) -> None:
        for limiter in self._limiters.values():
            limiter.part(self.processes)
        if self.healthy:
            self.healthy = False
            self.lost += 1
            _log.warning("limits are not shared", extra={"reason": reason, "processes": self.processes})
