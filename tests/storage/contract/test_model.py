"""An engine against a naive model of the log."""

import asyncio
import functools
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage.errors import KeyReused, NotFound
from storage.models import Draft, Idempotency, Value, Write
from tests.storage.contract.model import Model
from tests.storage.contract.stores import Fresh

T = TypeVar("T")

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
    """Any history of a log; the engine and the model must tell the same of it."""

    def __init__(self, fresh: Fresh) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.stack = AsyncExitStack()
        self.patch = pytest.MonkeyPatch()
        self.store = self.run(self.stack.enter_async_context(fresh()))
        self.epoch = self.store.engine.state().epoch
        self.model = Model()
        self.clock = START
        self.started = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize(series=st.sampled_from([0, 1, 100_000]))
    def start(self, series: int) -> None:
        self.store.remember(self.patch, series)
        self.started = True

    @rule(several=st.lists(requests, min_size=1, max_size=4), passed=st.integers(0, 4))
    def append(self, several: list[tuple[list[Draft], bool, Idempotency | None]], passed: int) -> None:
        self.clock += passed
        writes = [Write(r, self.clock, 10, strict=strict, idempotency=key) for r, strict, key in several]
        first = self.model.head + 1
        expected = [self.model.append(w) for w in writes]
        appended = self.run(self.store.appended(*writes))
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
        deletion = self.store.engine.delete_device(device, readings=readings)
        if device not in self.model.devices:
            with pytest.raises(NotFound):
                self.run(deletion)
            return
        self.model.delete_device(device, readings)
        self.run(deletion)

    @rule(age=st.integers(0, 10))
    def expire(self, age: int) -> None:
        self.model.expire(self.clock - age)
        self.run(self.store.engine.sweep(self.clock - age))

    @rule()
    def sweep(self) -> None:
        self.run(self.store.engine.sweep(0))

    @rule()
    def sweep_one_step(self) -> None:
        self.run(self.store.sweep_one_step())

    @precondition(lambda self: self.started)
    @rule()
    def restart(self) -> None:
        self.run(self.store.reopen())

    @invariant()
    def the_log_is_the_models(self) -> None:
        rows = [(*row[:4], exact(row[4])) for row in self.run(self.store.rows())]
        assert rows == [(*row[:4], exact(row[4])) for row in self.model.rows()]
        state = self.store.engine.state()
        assert (state.epoch, state.head, state.floor) == (self.epoch, self.model.head, self.model.floor)
        assert self.run(self.store.devices()) == self.model.devices
        # No series without a reading was left behind by a refused write.
        assert self.run(self.store.series()) == set(self.model.stored)

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.patch.undo()
        self.runner.close()


def exact(value: Value) -> tuple[type, Value, str]:
    """The value with its type and sign: what was stored comes back as it was sent."""
    return type(value), value, repr(value)


def test_any_history_of_a_log_is_what_its_promises_say(fresh: Fresh, long: bool) -> None:
    """Accepted, duplicates, conflicts, offsets, times, keys, deletion, retention, restarts."""
    counts = settings(
        max_examples=400 if long else 60,
        stateful_step_count=15,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(functools.partial(LogMachine, fresh), settings=counts)  # type: ignore[arg-type]
