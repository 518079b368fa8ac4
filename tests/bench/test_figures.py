"""Medians and ratios are what they are called."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import Spread, ratios, spread

RATES = st.dictionaries(st.integers(1, 9), st.floats(1.0, 1e6))


def test_a_spread_is_median_least_and_greatest() -> None:
    assert spread([5.0, 1.0, 3.0]) == Spread(3.0, 1.0, 5.0, 3)
    assert spread([4.0, 2.0]) == Spread(3.0, 2.0, 4.0, 2)
    assert spread([]) is None


def test_ratios_are_taken_within_rounds_and_not_of_medians() -> None:
    # The machine was half as fast in the second round, for both.
    assert ratios({1: 100.0, 2: 50.0, 3: 90.0}, {1: 200.0, 2: 100.0, 3: 100.0}) == [0.5, 0.5, 0.9]


def test_a_round_that_lacks_one_of_them_is_left_out() -> None:
    assert ratios({1: 100.0, 3: 90.0}, {2: 100.0, 3: 45.0}) == [2.0]
    assert ratios({1: 100.0}, {1: 0.0}) == []


@given(RATES)
def test_who_is_compared_with_himself_is_equal(rates: dict[int, float]) -> None:
    assert ratios(rates, rates) == [1.0] * len(rates)


@given(RATES, st.floats(0.1, 10.0))
def test_a_factor_in_every_round_is_the_median_ratio(rates: dict[int, float], factor: float) -> None:
    found = spread(ratios({number: rate * factor for number, rate in rates.items()}, rates))
    assert found is None or found.median == pytest.approx(factor)
