"""A difference is called one when it is there, and noise is called noise: statistics against known data."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.noise import LEVEL, bootstrap, change, permutation

VALUES = st.lists(st.floats(1.0, 1e6), min_size=2, max_size=6)


def test_the_permutation_test_counts_the_splits_that_are_as_far_apart() -> None:
    # 20 splits of six values into threes: {1,2,3} | {4,5,6} and its mirror image are the farthest.
    assert permutation([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], random.Random(1)) == (2 / 20, 2 / 20)
    # Means of 2 and 3: 1,2,3 | 2,3,4 has 20 splits, of which those of one apart or more were counted by hand:
    # sums of three of {1,2,2,3,3,4} that are at most 6 or at least 9, 7 of each.
    p, least = permutation([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], random.Random(1))
    sums = [a + b + c for a, b, c in ((1, 2, 2), (1, 2, 3), (1, 2, 3), (1, 2, 3), (1, 2, 3))]
    assert all(total <= 6 for total in sums)
    assert (p, least) == (10 / 20, 2 / 20)


def test_many_rounds_are_drawn_and_agree_with_what_is_exact() -> None:
    draw = random.Random(5)
    old = [draw.gauss(0, 1) for _ in range(8)]
    new = [draw.gauss(0.9, 1) for _ in range(8)]
    exact, _ = permutation(old, new, random.Random(1))
    drawn, _ = permutation([*old, *old], [*new, *new], random.Random(1))
    assert drawn < exact
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.noise.SPLITS", 6_000)
        approximate, _ = permutation(old, new, random.Random(1))
    assert approximate == pytest.approx(exact, abs=0.02)


def test_the_bootstrap_s_interval_is_that_of_theory() -> None:
    draw = random.Random(3)
    old, new = ([draw.gauss(mean, 1) for _ in range(200)] for mean in (0.0, 0.5))
    low, high = bootstrap(old, new, random.Random(1))
    wide = 2 * 1.96 * math.sqrt(2 / 200)
    assert high - low == pytest.approx(wide, rel=0.12)
    assert low < sum(new) / 200 - sum(old) / 200 < high


def test_a_change_that_is_there_is_shown_with_its_factor() -> None:
    draw = random.Random(11)
    before = [1000 * draw.uniform(0.99, 1.01) for _ in range(5)]
    after = [900 * draw.uniform(0.99, 1.01) for _ in range(5)]
    found = change(before, after)
    assert found is not None
    assert found.shown
    assert found.factor == pytest.approx(0.9, rel=0.01)
    assert found.low < 0.9 < found.high < 1.0
    assert found.least_p == 2 / math.comb(10, 5)


def test_noise_is_rarely_called_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.noise.RESAMPLES", 400)
    draw = random.Random(2026)
    runs = 200
    shown = 0
    for _ in range(runs):
        before, after = ([draw.lognormvariate(0, 0.05) for _ in range(5)] for _ in range(2))
        found = change(before, after)
        assert found is not None
        shown += found.shown
    # About 5 % are to be expected; 20 of 200 would be wrong with a probability above 99.9 %.
    assert shown / runs <= 2 * LEVEL


def test_three_rounds_can_show_nothing() -> None:
    found = change([1.0, 1.01, 1.02], [2.0, 2.01, 2.02])
    assert found is not None
    assert not found.possible
    assert not found.shown


def test_without_values_there_is_no_change() -> None:
    assert change([], [1.0]) is None
    assert change([1.0, 0.0], [1.0]) is None


@settings(max_examples=20)
@given(VALUES)
def test_a_run_beside_itself_has_not_changed(values: list[float]) -> None:
    found = change(values, values)
    assert found is not None
    assert found.factor == pytest.approx(1.0)
    assert not found.shown


@settings(max_examples=20)
@given(VALUES, VALUES)
def test_backwards_the_factor_is_the_reciprocal(old: list[float], new: list[float]) -> None:
    there, back = change(old, new), change(new, old)
    assert there is not None
    assert back is not None
    assert there.factor * back.factor == pytest.approx(1.0)
    assert there.p == pytest.approx(back.p)
