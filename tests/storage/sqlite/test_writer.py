"""What the contract of the engines does not see of the writer: its steps, its bounds, its comparisons."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.models import Idempotency, Value
from storage.sqlite.values import same_value
from storage.sqlite.writer import Writer
from tests.storage.contract.model import kind
from tests.storage.contract.test_model import VALUES
from tests.storage.sqlite.store import store
from tests.storage.writes import numbers, write


@given(st.sampled_from(VALUES), st.sampled_from(VALUES))
def test_one_is_one_point_zero_but_neither_true_nor_text(one: Value, other: Value) -> None:
    assert same_value(one, other) == (kind(one) == kind(other))
    assert same_value(1, 1.0)
    assert not same_value(1, True)
    assert not same_value("1", 1)


def test_a_sweep_goes_in_bounded_steps_and_commits_go_on_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sqlite.writer.SWEEP_ROWS", 7)
    monkeypatch.setattr("storage.sqlite.writer.SWEEP_SERIES", 3)
    with store(tmp_path) as log:
        log.stored(*(numbers(f"d{n}", "m", range(n, n + 10)) for n in range(12)))
        log.writer.delete_device("d3", readings=True)
        steps, left = 0, len(log.ask("SELECT * FROM readings"))
        while log.writer.sweep(8):
            steps += 1
            log.stored(numbers("live", "m", [1_000 + steps]))
            remaining = len(log.ask("SELECT * FROM readings WHERE ts < 1000"))
            assert left - 7 <= remaining
            left = remaining
        assert steps >= 8
        assert log.ask("SELECT * FROM readings WHERE ts < 8") == []
        kept = [(f"d{n}", ts) for n in range(12) if n != 3 for ts in range(max(n, 8), n + 10)]
        assert sorted((row[1], row[3]) for row in log.rows() if row[1] != "live") == sorted(kept)
        # d7's reading with ts 7 was the newest that went.
        assert log.writer.state.floor == 71


def test_idempotency_keys_and_revocations_are_forgotten_after_their_time(tmp_path: Path) -> None:
    day = 24 * 3600 * 1_000_000
    with store(tmp_path) as log:
        log.stored(write(("d", "m", 1, 1), received=day, idempotency=Idempotency("p", "k", b"1")))
        log.writer.forget_expired(2 * day)
        assert len(log.ask("SELECT * FROM idempotency")) == 1
        log.writer.forget_expired(2 * day + 1)
        assert log.ask("SELECT * FROM idempotency") == []


def test_a_hundred_thousand_series_are_remembered_and_no_more() -> None:
    assert Writer.SERIES_MAX == 100_000
