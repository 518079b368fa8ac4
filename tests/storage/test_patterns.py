import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.models import is_device
from storage.patterns import InvalidPattern, Selection, parse_pattern

# Few words, some the beginning of others, so that matches and near misses are frequent.
WORDS = ["a", "ab", "a-", "_", "B7", "plant"]
devices = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(".".join)
patterns = st.builds(
    lambda words, rest: ".".join(words + rest),
    st.lists(st.sampled_from([*WORDS, "*"]), min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
) | st.just(">")
several = st.lists(patterns, max_size=4)


def naive(pattern: list[str], device: list[str]) -> bool:
    """The definition, one token after the other."""
    if pattern == [">"]:
        return len(device) >= 1
    if not pattern or not device:
        return not pattern and not device
    return pattern[0] in ("*", device[0]) and naive(pattern[1:], device[1:])


@given(patterns, devices)
def test_a_pattern_matches_what_its_definition_says(pattern: str, device: str) -> None:
    assert parse_pattern(pattern).matches(device) == naive(pattern.split("."), device.split("."))


@given(patterns, devices)
def test_every_matching_device_starts_with_the_prefix(pattern: str, device: str) -> None:
    parsed = parse_pattern(pattern)
    assert not parsed.matches(device) or device.startswith(parsed.prefix)


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [
        (">", ""),
        ("*", ""),
        ("*.a", ""),
        ("a", "a"),
        ("a.b", "a.b"),
        ("a.>", "a."),
        ("a.*.b", "a."),
        ("a.b.*.b.>", "a.b."),
        ("a.a.*", "a.a."),
    ],
)
def test_the_prefix_is_as_long_as_the_pattern_allows(pattern: str, prefix: str) -> None:
    assert parse_pattern(pattern).prefix == prefix


@given(st.text(st.sampled_from("aB0_-.*> /\n\0é"), max_size=9) | st.text(max_size=200))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    filled = text.replace("*", "x").replace(">", "x.y")
    try:
        parsed = parse_pattern(text)
    except InvalidPattern:
        return
    assert parsed.matches(filled)
    assert is_device(filled[:-2] if text.endswith(">") else filled)


@pytest.mark.parametrize(
    "text",
    ["", ".", "a.", ".a", "a..b", ">.a", "a.>.b", "a*", "*a", "**", "a>", "a b", "é", "a\n", "x" * 129],
)
def test_what_is_not_a_pattern_is_refused(text: str) -> None:
    with pytest.raises(InvalidPattern):
        parse_pattern(text)


@given(several, several, devices)
def test_a_selection_takes_what_is_asked_for_and_granted(
    match: list[str], grants: list[str], device: str
) -> None:
    def any_of(wanted: list[str]) -> bool:
        return any(naive(pattern.split("."), device.split(".")) for pattern in wanted)

    selection = Selection(map(parse_pattern, match), map(parse_pattern, grants))
    expected = any_of(grants) and (not match or any_of(match))
    assert selection.takes_device(device) == expected
    assert selection.takes_device(device) == expected


@given(several, several, devices)
def test_exactly_one_prefix_of_a_selection_covers_each_of_its_devices(
    match: list[str], grants: list[str], device: str
) -> None:
    selection = Selection(map(parse_pattern, match), map(parse_pattern, grants))
    covering = [prefix for prefix in selection.prefixes() if device.startswith(prefix)]
    assert len(covering) <= 1
    assert covering or not selection.takes_device(device)


def test_a_wish_for_everything_searches_no_more_than_the_grants() -> None:
    selection = Selection([parse_pattern(">")], [parse_pattern("acme.>"), parse_pattern("beta.*.x")])
    assert selection.prefixes() == ["acme.", "beta."]
    assert Selection([parse_pattern("acme.>")], []).prefixes() == []


def test_a_selection_takes_only_its_metrics() -> None:
    selection = Selection([], [parse_pattern(">")], ["temperature"])
    assert selection.takes("a", "temperature")
    assert not selection.takes("a", "humidity")


def test_the_memory_of_a_selection_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Selection, "KNOWN_MAX", 3)
    selection = Selection([], [parse_pattern("d1")])
    assert [selection.takes_device(f"d{n}") for n in range(10)] == [n == 1 for n in range(10)]
    assert len(selection._known) <= 3
