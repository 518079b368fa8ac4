"""The writer against a naive model of the log."""

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from storage.errors import KeyReused, NotFound, Refused
from storage.models import Draft, Idempotency, Outcome, Value, Write
from storage.sqlite.values import decode_value, same_value
from storage.sqlite.writer import Writer
from tests.storage.contract.model import Model, kind
from tests.storage.sqlite.store import Store, numbers, store, write

# Few of each, so that collisions are frequent. The clock starts at START and goes in small steps.
DEVICES = ["a", "a.b", "c"]
VALUES: list[Value] = [0, 1, 1.0, 0.5, -0.0, True, False, "1", "", "true", 2**53, -(2**53) + 0.0]
START = 1_000
drafts = st.tuples(
    st.sampled_from(DEVICES),
    st.sampled_from(["m", "n"]),
    st.none() | st.integers(START - 3, START + 12),
    st.sampled_from(VALUES),
)
keys = st.none() | st.builds(
    Idempotency, st.just("p"), st.sampled_from(["k1", "k2"]), st.sampled_from([b"x", b"y"])
)
requests = st.tuples(st.lists(drafts, min_size=1, max_size=5), st.booleans(), keys)


class LogMachine(RuleBasedStateMachine):
    """Any history of a log; the writer and the model must tell the same of it."""

    @initialize(series_max=st.sampled_from([0, 1, 100_000]))
    def start(self, series_max: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(self.folder)
        self.series_max = self.store.writer.SERIES_MAX = series_max
        self.epoch = self.store.writer.state.epoch
        self.model = Model()
        self.clock = START

    @rule(several=st.lists(requests, min_size=1, max_size=4), passed=st.integers(0, 4))
    def append(self, several: list[tuple[list[Draft], bool, Idempotency | None]], passed: int) -> None:
        self.clock += passed
        writes = [Write(r, self.clock, 10, strict=strict, idempotency=key) for r, strict, key in several]
        first = self.model.head + 1
        expected = [self.model.append(w) for w in writes]
        appended = self.store.writer.append(writes)
        assert [KeyReused if isinstance(r, KeyReused) else r for r in appended.results] == expected
        if self.model.head < first:
            assert appended.batch is None
            return
        assert appended.batch is not None
        assert (appended.batch.first, appended.batch.last) == (first, self.model.head)
        told = [(r.offset, r.device, r.metric, r.ts, exact(r.value)) for r in appended.batch.readings]
        fresh = [(*row[:4], exact(row[4])) for row in self.model.rows() if row[0] >= first]
        assert told == fresh
        assert [row[0] for row in told] == list(range(first, self.model.head + 1))

    @rule(device=st.sampled_from(DEVICES), readings=st.booleans())
    def delete(self, device: str, readings: bool) -> None:
        if device not in self.model.devices:
            with pytest.raises(NotFound):
                self.store.writer.delete_device(device, readings)
            return
        self.model.delete_device(device, readings)
        self.store.writer.delete_device(device, readings)

    @rule(age=st.integers(0, 10))
    def expire(self, age: int) -> None:
        self.model.expire(self.clock - age)
        self.store.sweep(self.clock - age)

    @rule()
    def sweep_one_step(self) -> None:
        self.store.writer.sweep(0)

    @precondition(lambda self: hasattr(self, "store"))
    @rule()
    def restart(self) -> None:
        self.store.reopen()
        self.store.writer.SERIES_MAX = self.series_max

    @invariant()
    def the_log_is_the_models(self) -> None:
        if not hasattr(self, "store"):
            return
        rows = [(*row[:4], exact(decode_value(row[4]))) for row in self.store.rows()]
        assert rows == [(*row[:4], exact(row[4])) for row in self.model.rows()]
        state = self.store.writer.state
        assert (state.epoch, state.head, state.floor) == (self.epoch, self.model.head, self.model.floor)
        seen = self.store.ask("SELECT device, last_seen, last_offset FROM devices")
        assert {row[0]: row[1:] for row in seen} == self.model.devices
        # No series without a reading was left behind by a refused write.
        series = self.store.ask("SELECT device, metric FROM series")
        assert set(series) == set(self.model.stored)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


def exact(value: Value) -> tuple[type, Value]:
    """The value with its type: what was stored comes back as it was sent."""
    return type(value), value


LogMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestAnyHistoryOfALogIsWhatItsPromisesSay(LogMachine.TestCase):  # type: ignore[misc, valid-type]
    """Accepted, duplicates, conflicts, offsets, times, keys, deletion, retention, restarts."""


@given(st.sampled_from(VALUES), st.sampled_from(VALUES))
def test_one_is_one_point_zero_but_neither_true_nor_text(one: Value, other: Value) -> None:
    assert same_value(one, other) == (kind(one) == kind(other))
    assert same_value(1, 1.0)
    assert not same_value(1, True)
    assert not same_value("1", 1)


@pytest.mark.parametrize("series_max", [0, 1, 100_000])
def test_given_times_of_a_series_only_grow_even_if_the_clock_steps_back(
    tmp_path: Path, series_max: int
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    newest: dict[tuple[str, str], int] = {}
    with store(tmp_path) as log:
        log.writer.SERIES_MAX = series_max
        for _ in range(150):
            received = START + chance.randrange(40)
            drafts: list[Draft] = [
                (chance.choice(DEVICES), "m", chance.choice([None, None, START + chance.randrange(60)]), 1)
                for _ in range(chance.randrange(1, 5))
            ]
            wanted = {(device, ts) for device, _, ts, _ in drafts}
            for reading in log.stored(write(*drafts, received=received)):
                if (reading.device, reading.ts) in wanted:
                    continue
                series = reading.device, reading.metric
                assert reading.ts >= received
                assert reading.ts > newest.get(series, 0)
                newest[series] = reading.ts


def test_a_refused_strict_write_leaves_no_series_no_device_and_no_given_time_behind(tmp_path: Path) -> None:
    with store(tmp_path) as log:
        log.stored(write(("a", "m", 5, 1), ("a", "n", None, 1), received=10))
        before = log.ask("SELECT * FROM series"), log.ask("SELECT * FROM devices"), log.rows()
        refused = write(
            ("a", "n", None, 2), ("new", "m", None, 1), ("a", "fresh", 1, 1), ("a", "m", 5, 2), strict=True
        )
        assert log.append(refused) == [Outcome(0, 0, (3,), 2)]
        assert (log.ask("SELECT * FROM series"), log.ask("SELECT * FROM devices"), log.rows()) == before
        assert [r.ts for r in log.stored(write(("a", "n", None, 3), received=11))] == [11]


def poison(path: Path) -> None:
    """From now on the database refuses the number 666."""
    connection = apsw.Connection(str(path))
    connection.execute(
        "CREATE TRIGGER poison BEFORE INSERT ON readings WHEN new.value = 666 "
        "BEGIN SELECT raise(ABORT, 'poisoned'); END"
    )
    connection.close()


@pytest.mark.parametrize("culprits", [{0}, {63}, {20}, {3, 4, 40}])
def test_one_poisoned_reading_among_64_writers_spoils_only_its_own_write(
    tmp_path: Path, culprits: set[int]
) -> None:
    with store(tmp_path) as log:
        log.stored(numbers("d", "m", [1]))
        poison(log.path)
        writes = [
            write(("d", "m", 2 * n + 10, 1), ("d", "m", 2 * n + 11, 666 if n in culprits else n))
            for n in range(64)
        ]
        appended = log.writer.append(writes)
        assert {n for n, result in enumerate(appended.results) if isinstance(result, Refused)} == culprits
        good = [result for result in appended.results if isinstance(result, Outcome)]
        assert [(r.accepted, r.offset) for r in good] == [(2, 3 + 2 * n) for n in range(64 - len(culprits))]
        assert [row[0] for row in log.rows()] == list(range(1, log.writer.state.head + 1))
        assert appended.batch is not None
        assert (appended.batch.first, appended.batch.last) == (2, log.writer.state.head)
        assert [r.offset for r in appended.batch.readings] == list(range(2, log.writer.state.head + 1))


def test_only_poisoned_writes_store_nothing_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with store(tmp_path) as log:
        poison(log.path)
        appended = log.writer.append([numbers("d", "m", [n], 666) for n in range(5)])
        assert appended.batch is None
        assert all(isinstance(result, Refused) for result in appended.results)
        assert log.ask("SELECT * FROM devices") == log.ask("SELECT * FROM series") == []
        assert [r.offset for r in log.stored(numbers("d", "m", [1]))] == [1]


def test_a_value_that_no_column_holds_is_refused_alone(tmp_path: Path) -> None:
    with store(tmp_path) as log:
        bad: list[Any] = ["\ud800", 2**64, object()]
        results = log.append(*(numbers("d", "m", [n], value) for n, value in enumerate([1, *bad, 2])))
        assert [type(result) for result in results] == [Outcome, Refused, Refused, Refused, Outcome]
        assert [row[0] for row in log.rows()] == [1, 2]


def test_identities_of_a_deleted_device_can_be_written_anew_before_they_are_swept(tmp_path: Path) -> None:
    with store(tmp_path) as log:
        log.stored(numbers("d", "m", range(10)), numbers("e", "m", range(3)))
        log.writer.delete_device("d", readings=True)
        assert [row[1] for row in log.rows()] == ["e"] * 3
        assert log.append(numbers("d", "m", range(10), value=2)) == [Outcome(10, 0, (), 23)]
        log.sweep(0)
        assert len(log.ask("SELECT * FROM readings")) == 13
        assert log.ask("SELECT * FROM doomed") == []
        assert log.writer.state.floor == 0


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


def test_the_memory_of_series_is_bounded(tmp_path: Path) -> None:
    with store(tmp_path) as log:
        log.writer.SERIES_MAX = 5
        for n in range(30):
            log.stored(numbers(f"d{n}", "m", [1]))
            assert len(log.writer._series) <= 6
        assert Writer.SERIES_MAX == 100_000
