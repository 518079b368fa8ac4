"""Latencies of rounds are put together by counts, and every target is asked at the same rates."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cells import can_curve
from bench.load import curve
from bench.load.histogram import GROWTH, counted, merged, quantile
from bench.load.open_loop import percentile
from bench.scenarios import SCENARIOS
from tests.bench.invented import opened

LATENCIES = st.lists(st.floats(1e-6, 10.0), min_size=1, max_size=200)


@given(LATENCIES, st.floats(0.0, 1.0))
def test_a_quantile_is_within_one_percent_of_what_was_measured(seconds: list[float], share: float) -> None:
    wanted = percentile(sorted(seconds), share) * 1000
    assert quantile(counted(seconds), share) == pytest.approx(wanted, rel=(GROWTH - 1) / 2 + 0.001)


@given(LATENCIES, LATENCIES)
def test_two_rounds_together_are_one_of_both(one: list[float], other: list[float]) -> None:
    assert merged([counted(one), counted(other)]) == counted([*one, *other])


def test_a_tail_of_one_round_is_not_averaged_away() -> None:
    quiet, noisy = [0.001] * 1000, [0.001] * 900 + [0.5] * 100
    together = merged([counted(quiet), counted(noisy)])
    # 5 % of all requests were slow: the mean of both p99 would be half of that.
    assert quantile(together, 0.99) == pytest.approx(500, rel=0.02)
    assert quantile(together, 0.94) == pytest.approx(1, rel=0.02)


def test_nothing_has_no_latency() -> None:
    assert quantile({}, 0.99) == 0.0


def test_what_takes_no_time_at_all_is_counted() -> None:
    assert quantile(counted([0.0]), 0.5) < 0.002


@pytest.mark.parametrize(
    ("maximum", "rates"),
    [
        (400.0, []),
        (1_200.0, [500, 1_000]),
        (12_000.0, [500, 1_000, 2_000, 5_000, 10_000]),
        (1e6, list(curve.RATES)),
    ],
)
def test_a_target_is_asked_at_the_rates_that_it_reaches(maximum: float, rates: list[int]) -> None:
    assert curve.rates(maximum) == rates


def test_a_curve_begins_with_the_slowest_rate() -> None:
    asked: list[tuple[float, float]] = []

    def run(rate: float, seconds: float) -> object:
        asked.append((rate, seconds))
        return opened(rate, random.Random(1).random() + 1)

    found = curve.measure(run, 3_000.0, 6)  # type: ignore[arg-type]
    assert asked == [(500, 2.0), (1_000, 2.0), (2_000, 2.0)]
    assert [each.planned for each in found] == [500, 1_000, 2_000]


def test_only_what_the_open_loop_can_send_has_a_curve() -> None:
    able = {name for name, scenario in SCENARIOS.items() if can_curve(scenario)}
    assert {"hello", "latest", "write", "page"} <= able
    assert not able & {
        "latest-cold",
        "batch",
        "rejected-token",
        "hello-new",
        "ws-echo",
        "start",
        "write-open",
    }
