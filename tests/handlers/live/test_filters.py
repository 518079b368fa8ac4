"""Which followers a reading is for: the index against asking everybody."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from handlers.live import filters
from handlers.live.filters import Filter, FilterIndex
from storage.patterns import Pattern, parse_pattern

token = st.sampled_from(["a", "b", "c"])
device = st.lists(token, min_size=1, max_size=4).map(".".join)


@st.composite
def pattern(draw: st.DrawFn) -> Pattern:
    tokens = draw(st.lists(st.sampled_from(["a", "b", "c", "*"]), max_size=4))
    if draw(st.booleans()) or not tokens:
        tokens.append(">")
    return parse_pattern(".".join(tokens))


patterns = st.lists(pattern(), min_size=1, max_size=3)
metrics = st.lists(st.sampled_from(["t", "u", "v"]), max_size=2)
wishes = st.lists(st.builds(Filter, patterns, patterns, metrics), min_size=1, max_size=3)


def takes(wish: Filter, device: str, metric: str) -> bool:
    """The plain meaning of a filter."""
    return (
        any(p.matches(device) for p in wish.match)
        and any(p.matches(device) for p in wish.grants)
        and (not wish.metrics or metric in wish.metrics)
    )


@given(
    changes=st.lists(st.tuples(st.integers(0, 5), wishes), max_size=12),
    asked=st.lists(st.tuples(device, st.sampled_from(["t", "u", "v"])), min_size=1, max_size=6),
)
def test_the_index_finds_whom_asking_everybody_finds(
    changes: list[tuple[int, list[Filter]]], asked: list[tuple[str, str]]
) -> None:
    index: FilterIndex[int] = FilterIndex()
    there: dict[int, Sequence[Filter]] = {}
    for target, wanted in changes:
        if target in there:
            index.remove(target)
            del there[target]
        else:
            index.add(target, wanted)
            there[target] = wanted
        for series in asked:
            expected = {t for t, filters in there.items() if any(takes(f, *series) for f in filters)}
            found = index.find(series)
            assert set(found) == expected
            assert len(found) == len(expected)
            assert expected == {t for t, fs in there.items() if any(f.takes(*series) for f in fs)}
    for target in there:
        index.remove(target)
    assert index._root.empty
    assert len(index) == 0


@given(one=pattern(), other=pattern(), device=device)
def test_patterns_that_take_in_the_same_device_overlap(one: Pattern, other: Pattern, device: str) -> None:
    assert one.overlaps(other) == other.overlaps(one)
    if one.matches(device) and other.matches(device):
        assert one.overlaps(other)


@given(one=pattern(), other=pattern())
def test_patterns_that_overlap_have_a_device(one: Pattern, other: Pattern) -> None:
    size = max(len(one.tokens) + one.deeper, len(other.tokens) + other.deeper)
    names = []
    for place in range(size):
        given = [p.tokens[place] for p in (one, other) if place < len(p.tokens)]
        names.append(next((name for name in given if name != "*"), "x"))
    common = ".".join(names)
    assert one.overlaps(other) == (one.matches(common) and other.matches(common))


def test_what_is_remembered_is_bounded(monkeypatch: object) -> None:
    index: FilterIndex[int] = FilterIndex()
    wish = Filter([parse_pattern("a.>")], [parse_pattern(">")])
    index.add(1, [wish])
    before, filters.KNOWN_MAX = filters.KNOWN_MAX, 10
    try:
        for number in range(100):
            assert index.find((f"a.{number}", "t")) == (1,)
            assert len(index._known) <= 10
    finally:
        filters.KNOWN_MAX = before
