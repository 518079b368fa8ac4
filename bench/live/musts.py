"""What the streams must reach: the table Speed of issue 4, as ratios in a run where two are compared."""

from typing import Literal

from msgspec import Struct

from bench.musts import Must


class Bound(Struct, frozen=True):
    """What `cell` finds must be at least (or at most) `limit`: its rate, the p99 in ms, or KiB a follower.

    The p99 may take what the disk takes on top, since each delivery waits for a commit.
    """

    cell: str
    what: Literal["rate", "p99", "memory"]
    limit: float
    stretch: bool = False


class Beside(Struct, frozen=True):
    """With somebody who does not read: p99 and memory of `cell` beside those of `against`.

    `factor`: by how much the p99 may be longer. `growth`: bytes by which memory may grow more.
    """

    cell: str
    against: str
    factor: float
    growth: int


_ONE, _MANY = "fanout-1@tidegate", "fanout-16@tidegate"

MUSTS = (
    Must(_ONE, "fanout-1@aiohttp_fanout", 1.2),
    Must(_ONE, "fanout-1@websockets_broadcast", 1.0),
    Must(_ONE, "fanout-1@picows_fanout", 0.9),
    Must(_MANY, "fanout-16@aiohttp_fanout", 8.0),
    Must(_MANY, "fanout-16@picows_fanout", 6.0),
    Must("sse-1@tidegate", _ONE, 0.9),
    Must("sse-16@tidegate", _MANY, 0.9),
    # The cost of a reading grows with its matches; what is left is the processor's cache.
    Must("filters-1000@tidegate_hub", "filters-10@tidegate_hub", 0.8),
    Must("filters-10000@tidegate_hub", "filters-10@tidegate_hub", 0.5),
    Must(_ONE, "fanout-1@bare_fanout", 1.0, stretch=True),
    Must(_MANY, "fanout-16@aiohttp_fanout", 15.0, stretch=True),
    Must(_MANY, "fanout-16@bare_fanout", 0.7, stretch=True),
)

BOUNDS = (
    Bound("filters-1000@tidegate_hub", "rate", 50_000.0),
    Bound("latency@tidegate", "p99", 10.0),
    Bound("latency-1000@tidegate", "p99", 10.0),
    *(Bound(f"idle-{name}@tidegate", "memory", 25.0) for name in ("1000", "5000", "sse-1000", "sse-5000")),
    Bound("latency@tidegate", "p99", 3.0, stretch=True),
    Bound("latency-1000@tidegate", "p99", 3.0, stretch=True),
    *(
        Bound(f"idle-{name}@tidegate", "memory", 14.0, stretch=True)
        for name in ("1000", "5000", "sse-1000", "sse-5000")
    ),
)

BESIDES = tuple(
    Beside(f"{name}@tidegate", "steady@tidegate", 1.5, 4 * 1024 * 1024)
    for name in ("one-slow", "one-slow-ends")
)
