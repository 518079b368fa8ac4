"""What is measured of the streams: a table of scenarios. A target names those it takes part in."""

from typing import Literal

from msgspec import Struct

from bench.live.crowd import Transport
from bench.live.load import Shape

# load: a crowd and a writer. idle: followers that get nothing. loop: the target measures itself.
Kind = Literal["load", "idle", "loop"]

FOLLOWERS = 1_000
# A batch and its values in `steady`, so large that one who does not read is over all bounds soon.
_STEADY = Shape(FOLLOWERS, 16, rate=25.0, padding=1_000)


class Scenario(Struct, frozen=True):
    """One thing to measure. `shape`: the load, or how many followers are idle."""

    name: str
    title: str
    unit: str
    shape: Shape = Shape(0)
    kind: Kind = "load"


def _fan_outs() -> list[Scenario]:
    sse, unit = Transport.SSE, "deliveries/s"
    return [
        Scenario("fanout-1", "WebSocket, 1,000 followers, 1 reading a commit", unit, Shape(FOLLOWERS)),
        Scenario("fanout-16", "the same, 16 readings a commit", unit, Shape(FOLLOWERS, 16)),
        Scenario("sse-1", "SSE, 1,000 followers, 1 reading a commit", unit, Shape(FOLLOWERS, 1, sse)),
        Scenario("sse-16", "the same, 16 readings a commit", unit, Shape(FOLLOWERS, 16, sse)),
        Scenario(
            "ceiling-1",
            "what the load generator can take in by itself, the server idle",
            unit,
            Shape(FOLLOWERS, drain=True),
        ),
        Scenario("ceiling-16", "the same, 16 readings a commit", unit, Shape(FOLLOWERS, 16, drain=True)),
    ]


def _idle() -> list[Scenario]:
    return [
        Scenario(
            f"idle-{mark}{count}",
            f"memory (PSS) of each of {count:,} idle followers, {transport.value}",
            "KiB",
            Shape(count, transport=transport),
            "idle",
        )
        for transport, mark in ((Transport.WEBSOCKET, ""), (Transport.SSE, "sse-"))
        for count in (1_000, 5_000)
    ]


def _filters() -> list[Scenario]:
    different = [
        Scenario(
            f"filters-{count}",
            f"the hub alone, {count:,} different filters, 10 followers a reading",
            "readings/s",
            kind="loop",
        )
        for count in (10, 100, 1_000, 10_000)
    ]
    return [
        *different,
        Scenario(
            "filters-1000-cold",
            "filters-1000, each reading of a device never seen before",
            "readings/s",
            kind="loop",
        ),
        Scenario("filters-1000-batch", "filters-1000, 100 readings a commit", "readings/s", kind="loop"),
    ]


LIVE = {
    scenario.name: scenario
    for scenario in (
        *_fan_outs(),
        Scenario(
            "latency",
            "10,000 deliveries/s: 100 followers, 100 commits/s of 1 reading",
            "deliveries/s",
            Shape(100, rate=100.0),
        ),
        Scenario(
            "latency-1000",
            "10,000 deliveries/s: 1,000 followers, 10 commits/s of 1 reading",
            "deliveries/s",
            Shape(FOLLOWERS, rate=10.0),
        ),
        Scenario("steady", "1,000 followers, 25 commits/s of 16 KB", "deliveries/s", _STEADY),
        Scenario(
            "one-slow",
            "the same, and one more that stops reading (drop_oldest)",
            "deliveries/s",
            Shape(FOLLOWERS, 16, rate=25.0, padding=1_000, stuck=1, overflow="drop_oldest"),
        ),
        Scenario(
            "one-slow-ends",
            "the same, and one more that stops reading (disconnect)",
            "deliveries/s",
            Shape(FOLLOWERS, 16, rate=25.0, padding=1_000, stuck=1, overflow="disconnect"),
        ),
        *_idle(),
        *_filters(),
    )
}
