"""How often somebody may call: the generic cell rate algorithm (GCRA).

https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm, the virtual scheduling form. Per key one
number is kept, the theoretical arrival time (TAT) of the next unit, were all evenly spaced. How far
it lies in the future is the fill of the bucket, in seconds.
"""

import ipaddress
import time
from collections.abc import Callable, Iterable

from auth.keys import ConfigurationError

KEYS_MAX = 100_000


class Policy:
    """So many units in a window of seconds, and at most `burst` at once (default: a tenth, at least 1).

    `name`: as clients see it, printable ASCII without quotes. `interval`: seconds between two units.
    `depth`: the fill that a burst reaches, in seconds. `field`: an item of `RateLimit-Policy`
    (draft-ietf-httpapi-ratelimit-headers).
    """

    __slots__ = ("burst", "depth", "field", "interval", "limit", "name", "window")

    def __init__(self, name: str, limit: int, window: int = 60, burst: int | None = None) -> None:
        self.name = name
        self.limit = limit
        self.window = window
        self.burst = max(1, limit // 10) if burst is None else burst
        if limit < 1 or window < 1 or self.burst < 1:
            raise ConfigurationError(f"the limit {name!r}; expected a limit, window and burst of at least 1")
        self.interval = window / limit
        self.depth = self.burst * self.interval
        self.field = f'"{name}";q={limit};w={window}'


# Part of an interval: what rounding may cost must refuse nobody, and admits no unit more per window.
TOLERANCE = 1e-3


class LimitExceeded(Exception):
    """Not now. `retry_after`: seconds until the same would be admitted; `fill`: of the bucket."""

    def __init__(self, policy: Policy, retry_after: float, fill: float) -> None:
        super().__init__(f"the limit {policy.name!r} of {policy.limit} in {policy.window} s is exceeded")
        self.policy = policy
        self.retry_after = retry_after
        self.fill = fill


class Limiter:
    """A bucket per key, all under one policy. `clock`: monotonic, seconds. `depth`: the fill that is
    admitted; `arrivals`: the TAT of each key.

    Beyond `keys_max` keys the empty buckets are forgotten, and should all be in use the emptier half:
    memory stays bounded under a flood of keys, and who is deepest in debt stays known.
    """

    def __init__(
        self,
        policy: Policy,
        clock: Callable[[], float] = time.monotonic,
        keys_max: int = KEYS_MAX,
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._keys_max = keys_max
        self._interval = policy.interval
        self._burst = policy.burst
        self._tolerance = policy.interval * TOLERANCE
        self.depth = policy.depth + self._tolerance
        # Per key the time of the clock at which its bucket is empty.
        self.arrivals: dict[str, float] = {}
        # How often it said no.
        self.refused = 0

    def __len__(self) -> int:
        return len(self.arrivals)

    def take(self, key: str, cost: int = 1) -> float:
        """Admit `cost` units and return the fill after them; LimitExceeded takes nothing.

        More units than a burst are admitted when the bucket is empty, and put it in debt.
        """
        now = self._clock()
        arrivals = self.arrivals
        arrival = arrivals.get(key, 0.0)
        # A conditional, not max(): calls count here.
        after = (arrival if arrival > now else now) + cost * self._interval  # noqa: FURB136
        fill = after - now
        if fill > self.depth and (cost <= self._burst or arrival > now + self._tolerance):
            raise self._excess(max(arrival - now, 0.0), cost)
        arrivals[key] = after
        if len(arrivals) > self._keys_max:
            self._forget(now)
        return fill

    def charge(self, key: str, cost: int = 1) -> None:
        """Take units that were used already, up to a debt of one window."""
        now = self._clock()
        arrival = max(self.arrivals.get(key, now), now) + cost * self._interval
        self.arrivals[key] = min(arrival, now + self.policy.depth + self.policy.window)
        if len(self.arrivals) > self._keys_max:
            self._forget(now)

    def peek(self, key: str) -> float:
        """The fill now; 0.0 for an empty bucket."""
        now = self._clock()
        return max(0.0, self.arrivals.get(key, now) - now)

    def check(self, key: str) -> None:
        """LimitExceeded if one more unit would not be admitted; takes nothing."""
        fill = self.peek(key)
        if fill + self._interval > self.depth:
            raise self._excess(fill, 1)

    def _excess(self, fill: float, cost: int) -> LimitExceeded:
        self.refused += 1
        room = self.depth - self._tolerance - cost * self._interval if cost <= self._burst else 0.0
        return LimitExceeded(self.policy, fill - room, fill)

    def _forget(self, now: float) -> None:
        """Drop the empty buckets; if that is not half of them, the emptier half."""
        median = sorted(self.arrivals.values())[len(self.arrivals) // 2]
        least = max(now, median)
        for key in [key for key, arrival in self.arrivals.items() if arrival <= least]:
            del self.arrivals[key]


class Limits:
    """Several limits of one account, as its answers show them. `clock`: that of the limiters.

    `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers.
    """

    def __init__(self, limiters: Iterable[Limiter], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = ""
        # Per limit: TATs, what an empty bucket says, what another one begins with, depth, units a second.
        self._rows: list[tuple[dict[str, float], str, str, float, float]] = []
        policies, comma = "", ""
        for limiter in limiters:
            policy = limiter.policy
            policies += comma + policy.field
            item = f'{comma}"{policy.name}";r='
            empty = f"{item}{policy.burst};t=0"
            self._rows.append((limiter.arrivals, empty, item, limiter.depth, 1.0 / policy.interval))
            self._start = f"RateLimit-Policy: {policies}\r\nRateLimit: "
            comma = ", "

    def lines(self, account: str) -> str:
        """The header lines, "" if there is no limit.

        r: units that would be admitted at once; t: seconds until the bucket is empty, rounded up.
        """
        text = self._start
        if not text:
            return ""
        now = self._clock()
        for arrivals, empty, item, depth, rate in self._rows:
            fill = arrivals.get(account, 0.0) - now
            if fill <= 0.0:
                text += empty
            else:
                left, seconds = int((depth - fill) * rate), int(fill)
                text += f"{item}{left if left > 0 else 0};t={seconds + (seconds < fill)}"  # noqa: FURB136
        return text + "\r\n"


class FailureLimiter:
    """Counts failures per address, an IPv6 one by its /64; whoever succeeds pays nothing."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def check(self, address: str) -> None:
        """LimitExceeded if the address has failed too often."""
        self._limiter.check(_network(address))

    def record(self, address: str) -> None:
        """Count a failure, also one that ran beside others when the limit was reached."""
        self._limiter.charge(_network(address))


def _network(address: str) -> str:
    """What stands for one subscriber: an IPv4 address, or the /64 that an IPv6 host may choose from."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return found.packed[:8].hex()
    return str(found)
