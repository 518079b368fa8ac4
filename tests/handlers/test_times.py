import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.times import (
    InvalidTime,
    Stamp,
    column,
    parse_duration,
    parse_time,
    rfc3339,
    to_datetime,
    to_ms,
    to_us,
)
from storage.models import TS_END

micros = st.integers(0, TS_END - 1)
offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59)


@settings(deadline=None)
@given(micros)
def test_what_is_written_is_read_back(ts: int) -> None:
    assert parse_time(rfc3339(ts)) == ts
    assert rfc3339(ts) == to_datetime(ts).isoformat().replace("+00:00", "Z")
    assert to_us(ts) == ts
    assert parse_time(to_ms(ts)) == ts - ts % 1000


@settings(deadline=None)
@given(
    st.lists(micros | st.integers(0, 2**32 * 1_000_000 + 1)), st.sampled_from([to_datetime, rfc3339, to_ms])
)
def test_a_column_of_times_is_each_of_them(many: list[int], style: Stamp) -> None:
    assert list(column(style)(many)) == [style(ts) for ts in many]
    for ts in many:
        # Alone, so that a late one does not have the others written the slow way.
        assert list(column(style)([ts])) == [style(ts)]


@settings(deadline=None)
@given(st.datetimes(datetime(1970, 1, 3), datetime(9999, 12, 29)), offsets)
def test_any_offset_names_the_same_moment(moment: datetime, minutes: int) -> None:
    there = moment.replace(tzinfo=UTC).astimezone(timezone(timedelta(minutes=minutes)))
    assert rfc3339(parse_time(there.isoformat())) == moment.isoformat() + "Z"


@settings(deadline=None)
@given(st.text() | st.from_regex(r"\A\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z"))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidTime):
        assert 0 <= parse_time(text) < TS_END


@settings(deadline=None)
@given(st.integers())
def test_any_integer_is_a_time_or_refused(number: int) -> None:
    try:
        assert parse_time(number) == number * 1000
        assert 0 <= number < TS_END // 1000
    except InvalidTime:
        assert not 0 <= number < TS_END // 1000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
        ("1970-01-01T00:00:00.9999999Z", "1970-01-01T00:00:00.999999Z"),
        ("1970-01-01T00:00:00.0000019Z", "1970-01-01T00:00:00.000001Z"),
        ("2024-02-29t23:59:59.5z", "2024-02-29T23:59:59.500000Z"),
        ("2024-01-01T00:00:00.123456789012345678901234567890Z", "2024-01-01T00:00:00.123456Z"),
        ("9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59.999999Z"),
        ("2024-01-01 01:00:00-00:00", "2024-01-01T01:00:00Z"),
        ("1970-01-01T01:00:00+01:00", "1970-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59+00:01", "9999-12-31T23:58:59Z"),
    ],
)
def test_times_are_cut_to_the_microsecond_and_never_rounded(text: str, shown: str) -> None:
    assert rfc3339(parse_time(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1000",
        "2024-01-01",
        "2024-01-01T00:00:00",
        "2024-01-01T00:00Z",
        "2024-01-01T00:00:00,5Z",
        "2024-01-01T00:00:00.Z",
        "2024-01-01T24:00:00Z",
        "2024-01-01T00:60:00Z",
        "2024-01-01T00:00:60Z",
        "2024-01-01T00:00:00+24:00",
        "2024-01-01T00:00:00+05:60",
        "2024-01-01T00:00:00+0500",
        "2023-02-29T00:00:00Z",
        "2024-13-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "1969-12-31T23:59:59.999999Z",
        "1970-01-01T00:59:59+01:00",
        "9999-12-31T23:30:00-01:00",
        "10000-01-01T00:00:00Z",
        "+2024-01-01T00:00:00Z",
        "2024-01-01T00:00:00Z ",
        "2024-01-01T00:00:00Z\n",
        "\uff12024-01-01T00:00:00Z",
    ],
)
def test_what_is_not_rfc_3339_with_an_offset_in_1970_to_9999_is_refused(text: str) -> None:
    with pytest.raises(InvalidTime):
        parse_time(text)


def test_durations_have_a_unit_and_a_bound() -> None:
    assert [parse_duration(f"2{unit}") for unit in ("ms", "s", "m", "h", "d", "w")] == [
        2_000,
        2_000_000,
        120_000_000,
        7_200_000_000,
        172_800_000_000,
        1_209_600_000_000,
    ]
    for text in ("", "1", "0s", "-1s", "1.5h", "1 h", "1H", "1y", "01s", "9999999999w", "1s\n", "\uff11s"):
        with pytest.raises(InvalidTime):
            parse_duration(text)


@settings(deadline=None)
@given(st.text(alphabet="0123456789mshdw. -", max_size=14))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidTime):
        assert 0 < parse_duration(text) < TS_END
