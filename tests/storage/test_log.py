"""Positions, and what they are worth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.log import InvalidPosition, LogState, Position, parse_position
from storage.models import Verdict


@pytest.mark.parametrize(
    ("position", "verdict"),
    [
        (Position("e", 4), Verdict.EXPIRED),
        (Position("e", 5), Verdict.OK),
        (Position("e", 9), Verdict.OK),
        (Position("e", 10), Verdict.OK),
        (Position("e", 11), Verdict.AHEAD),
        (Position("f", 7), Verdict.UNKNOWN_EPOCH),
        (Position("f", 0), Verdict.UNKNOWN_EPOCH),
        (Position("", 99), Verdict.UNKNOWN_EPOCH),
    ],
)
def test_a_position_is_served_from_the_floor_to_the_head_of_its_own_log(
    position: Position, verdict: Verdict
) -> None:
    assert LogState("e", 10, 5).judge(position) is verdict


def test_the_beginning_of_a_log_that_lost_nothing_is_a_position() -> None:
    assert LogState("e", 0, 0).judge(Position("e", 0)) is Verdict.OK
    assert LogState("e", 3, 1).judge(Position("e", 0)) is Verdict.EXPIRED


@given(st.from_regex(r"\A[a-z0-9]{1,32}\Z"), st.integers(0, 10**19 - 1))
def test_a_position_is_read_as_it_was_written(epoch: str, offset: int) -> None:
    assert parse_position(str(Position(epoch, offset))) == Position(epoch, offset)


@given(st.text(st.sampled_from("ab09-+ \n\u0661"), max_size=24) | st.text())
def test_any_text_is_one_position_or_none(text: str) -> None:
    try:
        position = parse_position(text)
    except InvalidPosition:
        return
    assert str(position) == text
