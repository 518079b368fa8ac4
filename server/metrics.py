"""What the gate counts, and how Prometheus reads it.

Counting is adding to plain ints: prometheus_client's own counters cost several times a hello-world
request's share. They are turned into its metric families only when somebody scrapes. Parts of the
gate below this layer keep ints of their own, which are pulled then.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Protocol

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from server.totals import Family, Merge, Sample

SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
READINGS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)

_NAME = re.compile(r"tidegate_[a-z][a-z0-9_]*", re.ASCII)
_OPENMETRICS = "application/openmetrics-text"

# A column for each registered status code and a last one for all others, found without a search.
_STATUSES = tuple(map(int, HTTPStatus))
_COLUMNS = (*map(str, _STATUSES), "other")
_COLUMN_OF = [_STATUSES.index(code) if code in _STATUSES else len(_STATUSES) for code in range(1000)]

# Families that are rendered from the arrays here.
_OWN = frozenset(
    f"tidegate_{name}"
    for name in (
        "requests",
        "request_duration_seconds",
        "commit_duration_seconds",
        "commit_readings",
        "delivery_duration_seconds",
    )
)

Read = Callable[[], float]


class CacheFigures(Protocol):
    """A cache that counts its look-ups, and the entries that had to make room."""

    hits: int
    misses: int
    evictions: int


class Histogram:
    """Counts observations up to each of `bounds` (ascending, included), and those above the last."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """The cumulated counts by upper bound, and the sum of all values."""
        counts, total = self.counts.copy(), self.total
        below = 0
        cumulated = []
        for bound, count in zip((*self.bounds, float("inf")), counts, strict=True):
            below += count
            cumulated.append(("+Inf" if bound == float("inf") else str(float(bound)), float(below)))
        return cumulated, total


class RouteFigures:
    """The answers of one route."""

    __slots__ = ("durations", "statuses")

    def __init__(self) -> None:
        self.statuses = [0] * len(_COLUMNS)
        self.durations = Histogram(SECONDS)

    def observe(self, status: int, seconds: float) -> None:
        """Count an answer, with the time from the last byte of its request."""
        self.statuses[_COLUMN_OF[status]] += 1
        # As `Histogram.observe`, on the path of every request.
        durations = self.durations
        durations.counts[bisect_left(SECONDS, seconds)] += 1
        durations.total += seconds


class _Pulled:
    """A family whose values are read where they are kept; one reader for each set of label values."""

    __slots__ = ("counter", "help", "labels", "merge", "name", "readers")

    def __init__(self, name: str, help: str, labels: tuple[str, ...], merge: Merge, *, counter: bool) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.merge = merge
        self.counter = counter
        self.readers: dict[tuple[str, ...], Read] = {}

    def family(self) -> Metric:
        """The values now."""
        kind = CounterMetricFamily if self.counter else GaugeMetricFamily
        family = kind(self.name, self.help, labels=self.labels)
        for values, read in self.readers.items():
            family.add_metric(values, float(read()))
        return family


class _Given(Collector):
    """Figures as they were given."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        for given in self._families:
            family = Metric(given.name, given.help, given.kind)
            for sample in given.samples:
                family.add_sample(sample.name, sample.labels, sample.value)
            yield family


class Metrics(Collector):
    """The figures of one process.

    `routes`: (method, template) of every route, in the order of its index; requests that belong to
    none are counted under `unrouted`, the last index and so -1 too. Everything that labels a series is
    bound here or by `counter` and `gauge` at start: nothing that a client sends can make a new one.
    """

    def __init__(self, routes: Sequence[tuple[str, str]]) -> None:
        if len(set(routes)) != len(routes):
            raise ValueError("a route stands twice in the table")
        self._names = [*routes, ("", "")]
        self.unrouted = len(routes)
        self.routes = [RouteFigures() for _ in self._names]
        self._commits = Histogram(SECONDS)
        self._batches = Histogram(READINGS)
        self._deliveries = Histogram(SECONDS)
        self._pulled: dict[str, _Pulled] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def observe_request(self, route_index: int, status: int, seconds: float) -> None:
        """Count an answered request of the route, with the time from its last byte to the answer."""
        self.routes[route_index].observe(status, seconds)

    def observe_commit(self, readings: int, seconds: float) -> None:
        """Count a transaction that carried so many readings and took so long."""
        self._batches.observe(readings)
        self._commits.observe(seconds)

    def observe_delivery(self, seconds: float) -> None:
        """Count a batch that took so long from its commit to the last socket."""
        self._deliveries.observe(seconds)

    def counter(self, name: str, help: str, read: Read, **labels: str) -> None:
        """Show what `read` returns, a number that only grows. `name` ends with `_total`.

        A name may come again with the same help and other values of the same labels. ValueError if
        this contradicts what was bound before.
        """
        if not name.endswith("_total"):
            raise ValueError(f"the counter {name!r} does not end with _total")
        self._bind(name, help, read, labels, Merge.SUM, counter=True)

    def gauge(self, name: str, help: str, read: Read, merge: Merge = Merge.SUM, **labels: str) -> None:
        """Show what `read` returns, a number that may fall. As `counter` otherwise.

        `merge`: what becomes of it where several workers have one.
        """
        if name.endswith("_total"):
            raise ValueError(f"the gauge {name!r} ends with _total")
        self._bind(name, help, read, labels, merge, counter=False)

    def cache(self, name: str, figures: CacheFigures) -> None:
        """Show the figures of a cache, labelled with its name."""
        self.counter("tidegate_cache_hits_total", "Look-ups that hit.", lambda: figures.hits, cache=name)
        self.counter("tidegate_cache_misses_total", "That missed.", lambda: figures.misses, cache=name)
        self.counter("tidegate_cache_evictions_total", "Made room.", lambda: figures.evictions, cache=name)

    def families(self) -> list[Family]:
        """All figures, to be merged with those of other processes. As `render` otherwise."""
        return [
            Family(
                family.name,
                family.type,
                family.documentation,
                self._merge(family.name),
                [Sample(sample.name, sample.labels, sample.value) for sample in family.samples],
            )
            for family in self._registry.collect()
        ]

    def render(self, accept: str, families: list[Family] | None = None) -> tuple[bytes, str]:
        """All figures (else these) and their media type: OpenMetrics if `accept` names it, else
        Prometheus' text.

        Takes milliseconds and reads /proc: call it in a thread. The readers run there too.
        """
        registry = self._registry
        if families is not None:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(_Given(families))
        # Only the type is taken from the client: a version that is no number makes choose_encoder raise,
        # and it copies what it accepts into the answer's header.
        encode, media_type = choose_encoder(
            f"{_OPENMETRICS}; version=1.0.0" if _OPENMETRICS in accept.lower() else ""
        )
        return encode(registry), media_type

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus_client asks for them."""
        yield from self._requests()
        yield _histogram("tidegate_commit_duration_seconds", "Time of a transaction.", self._commits)
        yield _histogram("tidegate_commit_readings", "Readings of a transaction.", self._batches)
        yield _histogram(
            "tidegate_delivery_duration_seconds",
            "Time from a commit until its readings were written to the last follower's socket.",
            self._deliveries,
        )
        for pulled in self._pulled.values():
            yield pulled.family()

    def _requests(self) -> Iterator[Metric]:
        """Statuses and latencies of the routes that were asked for so far."""
        requests = CounterMetricFamily(
            "tidegate_requests_total", "Requests answered.", labels=("method", "route", "status")
        )
        durations = HistogramMetricFamily(
            "tidegate_request_duration_seconds",
            "Time from the last byte of a request to its answer.",
            labels=("method", "route"),
        )
        for name, figures in zip(self._names, self.routes, strict=True):
            for status, count in zip(_COLUMNS, figures.statuses, strict=True):
                if count:
                    requests.add_metric((*name, status), count)
            if any(figures.durations.counts):
                durations.add_metric(name, *figures.durations.buckets())
        yield requests
        yield durations

    def _merge(self, name: str) -> Merge:
        """What becomes of a family where several workers have it."""
        if name in self._pulled:
            return self._pulled[name].merge
        return Merge.WORKER if name.startswith("process_") else Merge.MAX if name not in _OWN else Merge.SUM

    def _bind(
        self, name: str, help: str, read: Read, labels: dict[str, str], merge: Merge, *, counter: bool
    ) -> None:
        # OpenMetrics calls a counter's family by its name less the ending.
        family = name.removesuffix("_total")
        if not _NAME.fullmatch(name) or family in _OWN:
            raise ValueError(f"{name!r} is taken or not a metric name with the prefix tidegate_")
        pulled = self._pulled.setdefault(family, _Pulled(name, help, tuple(labels), merge, counter=counter))
        values = tuple(labels.values())
        same = (pulled.name, pulled.help, pulled.labels) == (name, help, tuple(labels))
        if not same or values in pulled.readers:
            raise ValueError(f"{name} {labels} contradicts what was bound before")
        pulled.readers[values] = read


def _histogram(name: str, help: str, histogram: Histogram) -> Metric:
    buckets, total = histogram.buckets()
    return HistogramMetricFamily(name, help, buckets=buckets, sum_value=total)
