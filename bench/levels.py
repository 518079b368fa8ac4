"""Which level of the gate's cache has answered, by its own figures: memory, Redis or the database."""

import http.client

from msgspec import Struct

from bench.load.wrk import Void
from bench.targets import Level

# The least share of the requests that the level has to have answered.
SHARE = 0.99
TIMEOUT = 5.0
_LABEL = '{cache="latest"}'
_HITS, _MISSES = f"tidegate_cache_hits_total{_LABEL}", f"tidegate_cache_misses_total{_LABEL}"
_SHARED = "tidegate_cache_shared_hits_total"


class Levels(Struct, frozen=True):
    """Look-ups of latest values so far, by what had them."""

    memory: float
    redis: float
    database: float


def of(url: str) -> Levels:
    """What a gate says; Void without figures of its cache."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=TIMEOUT)
    try:
        connection.request("GET", "/metrics")
        return read(connection.getresponse().read().decode())
    finally:
        connection.close()


def read(text: str) -> Levels:
    """Of Prometheus' text; Void without figures of a cache."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("tidegate_cache_"))
    found = {name: float(figure) for name, figure in lines}
    if _HITS not in found or _MISSES not in found:
        raise Void("expected figures of the cache of latest values at /metrics")
    shared = found.get(_SHARED, 0.0)
    return Levels(found[_HITS], shared, found[_MISSES] - shared)


def check(wanted: Level, before: Levels, after: Levels, requests: int) -> None:
    """Void unless the level has answered the requests between, nearly all of them."""
    grown = {name: getattr(after, name) - getattr(before, name) for name in Levels.__struct_fields__}
    if grown[wanted] < SHARE * max(requests, sum(grown.values())):
        told = ", ".join(f"{name} {count:,.0f}" for name, count in grown.items())
        raise Void(f"expected {requests:,} requests to be answered from {wanted}, found {told}")
