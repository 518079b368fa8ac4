import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from server.metrics import READINGS, SECONDS, Histogram, Metrics

ROUTES = [("GET", "/v1/devices/{device}"), ("POST", "/v1/readings")]
OPENMETRICS = "application/openmetrics-text"


class Cache:
    hits = 7
    misses = 2
    evictions = 1


def families(metrics: Metrics) -> dict[str, Metric]:
    body, media_type = metrics.render("")
    assert media_type.startswith("text/plain; version=0.0.4")
    return {family.name: family for family in parse_text(body.decode())}


def value(metrics: Metrics, sample: str, **labels: str) -> float:
    """The value of one sample; a test fails if it is not there exactly once."""
    found = [
        candidate.value
        for family in families(metrics).values()
        for candidate in family.samples
        if candidate.name == sample and candidate.labels == labels
    ]
    assert len(found) == 1, (sample, labels, found)
    return found[0]


def busy() -> Metrics:
    metrics = Metrics(ROUTES)
    metrics.observe_request(0, 200, 0.0003)
    metrics.observe_request(0, 200, 0.004)
    metrics.observe_request(0, 404, 0.0001)
    metrics.observe_request(1, 503, 60.0)
    metrics.observe_request(metrics.unrouted, 404, 0.001)
    metrics.observe_commit(64, 0.002)
    metrics.observe_commit(50_000, 20.0)
    metrics.cache("latest", Cache())
    metrics.cache("token", Cache())
    metrics.gauge("tidegate_queue_readings", "Readings that wait.", lambda: 3)
    metrics.counter("tidegate_refusals_total", "Refusals.", lambda: 5, policy="rate")
    metrics.counter("tidegate_refusals_total", "Refusals.", lambda: 6, policy="point")
    return metrics


def test_requests_are_counted_by_method_route_and_exact_status() -> None:
    metrics = busy()
    get = {"method": "GET", "route": "/v1/devices/{device}"}
    assert value(metrics, "tidegate_requests_total", status="200", **get) == 2
    assert value(metrics, "tidegate_requests_total", status="404", **get) == 1
    assert value(metrics, "tidegate_requests_total", method="POST", route="/v1/readings", status="503") == 1


def test_requests_without_a_route_share_one_series_whatever_their_path() -> None:
    assert value(busy(), "tidegate_requests_total", method="", route="", status="404") == 1


def test_a_status_that_is_not_registered_is_counted_as_other() -> None:
    metrics = Metrics(ROUTES)
    metrics.observe_request(0, 299, 0.1)
    metrics.observe_request(0, 999, 0.1)
    labels = {"method": "GET", "route": "/v1/devices/{device}", "status": "other"}
    assert value(metrics, "tidegate_requests_total", **labels) == 2


def test_latencies_are_cumulated_by_route_and_their_count_is_the_last_bucket() -> None:
    metrics = busy()
    labels = {"method": "GET", "route": "/v1/devices/{device}"}
    name = "tidegate_request_duration_seconds"
    assert value(metrics, f"{name}_bucket", le="0.00025", **labels) == 1
    assert value(metrics, f"{name}_bucket", le="0.0005", **labels) == 2
    assert value(metrics, f"{name}_bucket", le="10.0", **labels) == 3
    assert value(metrics, f"{name}_count", **labels) == 3
    assert value(metrics, f"{name}_sum", **labels) == pytest.approx(0.0044)
    slow = {"method": "POST", "route": "/v1/readings"}
    assert value(metrics, f"{name}_bucket", le="10.0", **slow) == 0
    assert value(metrics, f"{name}_bucket", le="+Inf", **slow) == 1


def test_transactions_are_counted_by_time_and_by_readings() -> None:
    metrics = busy()
    assert value(metrics, "tidegate_commit_duration_seconds_bucket", le="0.0025") == 1
    assert value(metrics, "tidegate_commit_duration_seconds_count") == 2
    assert value(metrics, "tidegate_commit_readings_bucket", le="100.0") == 1
    assert value(metrics, "tidegate_commit_readings_bucket", le="10000.0") == 1
    assert value(metrics, "tidegate_commit_readings_sum") == 50_064


def test_what_other_parts_count_is_read_at_the_time_of_the_scrape() -> None:
    depth = 1
    metrics = Metrics(ROUTES)
    metrics.gauge("tidegate_queue_readings", "Readings that wait.", lambda: depth)
    assert value(metrics, "tidegate_queue_readings") == 1
    depth = 2
    assert value(metrics, "tidegate_queue_readings") == 2


def test_readers_of_one_name_are_told_apart_by_their_labels() -> None:
    metrics = busy()
    assert value(metrics, "tidegate_refusals_total", policy="rate") == 5
    assert value(metrics, "tidegate_refusals_total", policy="point") == 6
    assert value(metrics, "tidegate_cache_hits_total", cache="latest") == 7
    assert value(metrics, "tidegate_cache_evictions_total", cache="token") == 1


def test_the_process_tells_its_memory_and_platform() -> None:
    found = families(Metrics(ROUTES))
    assert found["process_resident_memory_bytes"].samples[0].value > 1_000_000
    assert "python_info" in found


def test_an_idle_gate_shows_its_histograms_and_no_route() -> None:
    found = families(Metrics(ROUTES))
    assert found["tidegate_requests"].samples == []
    assert found["tidegate_request_duration_seconds"].samples == []
    assert len(found["tidegate_commit_duration_seconds"].samples) == len(SECONDS) + 3


@pytest.mark.parametrize(
    ("name", "help", "labels"),
    [
        ("tidegate_refusals_total", "Refusals.", {"policy": "rate"}),
        ("tidegate_refusals_total", "Refusals.", {"other": "x"}),
        ("tidegate_refusals_total", "Refusals.", {}),
        ("tidegate_refusals_total", "Something else.", {"policy": "x"}),
        ("tidegate_queue_readings_total", "Readings that wait.", {}),
        ("tidegate_requests_total", "Requests.", {}),
        ("tidegate_events", "Not named as a counter.", {}),
        ("events_total", "Not ours.", {}),
        ("tidegate_Events_total", "Not snake case.", {}),
    ],
)
def test_a_counter_that_contradicts_another_is_refused_at_start(
    name: str, help: str, labels: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"tidegate_|events_total"):
        busy().counter(name, help, lambda: 0, **labels)


@pytest.mark.parametrize("name", ["tidegate_x_total", "tidegate_refusals", "tidegate_commit_readings"])
def test_a_gauge_is_not_named_like_a_counter_or_a_histogram(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        busy().gauge(name, "Readings.", lambda: 0)


def test_two_routes_of_one_name_are_refused_at_start() -> None:
    with pytest.raises(ValueError, match="twice"):
        Metrics([*ROUTES, ROUTES[0]])


def test_no_label_is_unbounded() -> None:
    allowed = {
        "method": {"GET", "POST", ""},
        "route": {template for _, template in ROUTES} | {""},
        "status": {str(code) for code in range(100, 600)} | {"other"},
        "le": {str(float(bound)) for bound in (*SECONDS, *READINGS)} | {"+Inf"},
        "cache": {"latest", "token"},
        "policy": {"rate", "point"},
    }
    ours = [family for name, family in families(busy()).items() if name.startswith("tidegate_")]
    assert ours
    for family in ours:
        for sample in family.samples:
            assert all(text in allowed[label] for label, text in sample.labels.items()), sample


def test_every_family_of_ours_has_help_and_a_type() -> None:
    for name, family in families(busy()).items():
        if name.startswith("tidegate_"):
            assert family.documentation.endswith("."), name
            assert family.type in ("counter", "gauge", "histogram"), name


@pytest.mark.parametrize(
    "accept",
    [
        OPENMETRICS,
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5",
        "Application/OpenMetrics-Text; version=0.0.1",
        "application/openmetrics-text; version=abc",
        "application/openmetrics-text; version=9.\u00e9\udcff",
    ],
)
def test_openmetrics_is_given_to_who_asks_and_no_version_breaks_it(accept: str) -> None:
    body, media_type = busy().render(accept)
    assert media_type.startswith("application/openmetrics-text; version=1.0.0")
    assert media_type.isascii()
    assert body.endswith(b"# EOF\n")
    found = {family.name for family in parse_openmetrics(body.decode())}  # type: ignore[no-untyped-call]
    assert {"tidegate_requests", "tidegate_cache_hits", "process_resident_memory_bytes"} <= found


@pytest.mark.parametrize("accept", ["", "*/*", "text/html", "text/plain; version=abc", "\udcff"])
def test_everybody_else_gets_the_text_format(accept: str) -> None:
    assert busy().render(accept)[1].startswith("text/plain; version=0.0.4")


def below(values: list[float], bounds: tuple[float, ...]) -> Iterator[int]:
    for bound in (*bounds, math.inf):
        yield sum(value <= bound for value in values)


@given(st.lists(st.floats(0, 100) | st.sampled_from(SECONDS)))
def test_a_bucket_holds_what_is_at_most_its_bound(values: list[float]) -> None:
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.observe(value)
    buckets, total = histogram.buckets()
    assert [count for _, count in buckets] == list(below(values, SECONDS))
    assert total == pytest.approx(sum(values))
