"""Limits over several processes: never more than is stated, and nobody refused who keeps to the limit."""

import asyncio
import math
import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auth.rate_limit import FailureLimiter, Limiter, LimitExceeded, Policy
from auth.shared_limits import LOOK, LOOKS_MAX, Settlement, SharedLimiter
from storage.counters import MemoryCounters, Spent
from storage.errors import Unavailable
from tests.clock import Clock
from tests.running import PATIENCE

START = 1_000_000.0


def lease(policy: Policy, processes: int) -> int:
    """As the docstring of auth.shared_limits states it."""
    return math.ceil(2 * policy.burst / processes)


def stated(policy: Policy, processes: int, batch: int = 1) -> float:
    """The most that any window may admit; `batch`: the largest one."""
    own = max(lease(policy, processes), batch)
    return policy.limit + max(policy.burst, batch) + (processes * own if processes > 1 else 0)


def most(times: list[tuple[float, int]], window: float) -> int:
    """The units admitted in the fullest window; `times`: when, and how many."""
    times = sorted(times)
    found = total = start = 0
    for now, units in times:
        total += units
        while times[start][0] < now - window:
            total -= times[start][1]
            start += 1
        found = max(found, total)
    return found


class Process:
    """A limiter whose settlements take the time that the test gives them."""

    def __init__(self, policy: Policy, account: MemoryCounters, clock: Clock, processes: int) -> None:
        self.limiter = SharedLimiter(policy, lambda: None, clock=clock)
        self.limiter.share(processes)
        self._account = account
        self._sent: list[Spent] = []
        self._fills: list[float] = []

    def take(self, cost: int = 1, key: str = "a") -> bool:
        try:
            self.limiter.take(key, cost)
        except LimitExceeded:
            return False
        return True

    def send(self, *, everything: bool = False) -> None:
        """A settlement reaches the account, if none is on its way."""
        if not self._sent:
            self._sent = self.limiter.spent(everything=everything)
            self._fills = self._account.add(self._sent)

    def hear(self) -> None:
        """Its answer arrives."""
        for one, fill in zip(self._sent, self._fills, strict=True):
            self.limiter.settled(one, fill)
        self._sent, self._fills = [], []


class Gates:
    """Processes with one account and one clock."""

    def __init__(self, policy: Policy, processes: int) -> None:
        self.clock = Clock(START)
        account = MemoryCounters(processes, self.clock)
        self.processes = [Process(policy, account, self.clock, processes) for _ in range(processes)]
        self.admitted: list[tuple[float, int]] = []

    def take(self, which: int, cost: int = 1) -> bool:
        took = self.processes[which].take(cost)
        if took:
            self.admitted.append((self.clock.now, cost))
        return took

    def settle(self) -> None:
        for process in self.processes:
            process.hear()
            process.send(everything=True)
            process.hear()


policies = st.builds(
    Policy, st.just("requests"), st.integers(1, 600), st.just(60), st.none() | st.integers(1, 60)
)


@st.composite
def stories(draw: st.DrawFn) -> tuple[Policy, int, list[tuple[str, int, int]]]:
    policy = draw(policies)
    processes = draw(st.integers(1, 6))
    which = st.integers(0, processes - 1)
    step = st.one_of(
        st.tuples(st.just("take"), which, st.integers(1, 30)),
        st.tuples(st.sampled_from(["send", "hear"]), which, st.just(0)),
        st.tuples(st.just("later"), st.just(0), st.integers(0, 60)),
    )
    return policy, processes, draw(st.lists(step, max_size=200))


@given(stories())
@settings(max_examples=300)
def test_no_window_admits_more_than_is_stated_however_late_settlements_are(
    story: tuple[Policy, int, list[tuple[str, int, int]]],
) -> None:
    policy, count, steps = story
    gates = Gates(policy, count)
    for what, which, amount in steps:
        if what == "take":
            for _ in range(amount):
                gates.take(which)
        elif what == "send":
            gates.processes[which].send()
        elif what == "hear":
            gates.processes[which].hear()
        else:
            gates.clock.now += amount * policy.interval
    assert most(gates.admitted, policy.window) <= stated(policy, count)


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("processes", [1, 2, 4, 9])
def test_a_storm_on_all_processes_stays_within_what_is_stated(processes: int, batch: int) -> None:
    policy = Policy("requests", 100)
    for seed in range(20):
        chance = random.Random(seed)
        gates = Gates(policy, processes)
        while gates.clock.now < START + 150:
            which = chance.randrange(processes)
            for _ in range(chance.randrange(12)):
                gates.take(which, batch)
            chance.choice((gates.processes[which].send, gates.processes[which].hear, str))()
            gates.clock.now += chance.choice((0.0, 0.01, 0.2))
        assert most(gates.admitted, 60) <= stated(policy, processes, batch), f"seed {seed}"


@given(policies, st.integers(1, 6), st.integers(0, 2**32))
def test_who_keeps_to_the_rate_is_never_refused_wherever_he_calls(
    policy: Policy, processes: int, seed: int
) -> None:
    chance = random.Random(seed)
    gates = Gates(policy, processes)
    for _ in range(100):
        gates.clock.now += policy.interval * (1 + chance.random() / 10)
        assert gates.take(chance.randrange(processes))
        gates.settle()


@given(policies, st.integers(1, 6), st.lists(st.floats(0, 5) | st.just(0.0), max_size=100))
def test_one_client_on_one_process_has_the_whole_limit(
    policy: Policy, processes: int, gaps: list[float]
) -> None:
    gates = Gates(policy, processes)
    alone = Limiter(policy, gates.clock)
    for gap in gaps:
        gates.clock.now += gap * policy.interval
        for _ in range(3):
            try:
                alone.take("a")
                expected = True
            except LimitExceeded:
                expected = False
            assert gates.take(0) is expected
            gates.settle()


def test_what_one_process_admitted_the_others_know_after_the_settlement() -> None:
    gates = Gates(Policy("requests", 600), 3)
    assert sum(gates.take(0) for _ in range(100)) == lease(Policy("requests", 600), 3) == 40
    gates.settle()
    assert sum(gates.take(0) for _ in range(100)) == 20
    gates.settle()
    # Another one has its lease, and then knows.
    assert sum(gates.take(1) for _ in range(100)) == 40
    gates.settle()
    assert not gates.take(1)
    gates.clock.now += 4.15
    assert gates.take(1)


def test_a_batch_larger_than_the_burst_passes_an_empty_bucket_and_is_known_everywhere() -> None:
    gates = Gates(Policy("points", 600), 2)
    assert gates.take(0, 500)
    assert not gates.take(0)
    gates.settle()
    gates.take(1)
    gates.settle()
    assert not gates.take(1)
    gates.clock.now += 44
    assert not gates.take(1)
    gates.clock.now += 1.2
    assert gates.take(1)


def test_without_the_account_each_admits_its_share_and_with_it_all_again() -> None:
    policy = Policy("requests", 240)
    gates = Gates(policy, 4)
    for process in gates.processes:
        process.limiter.part(4)
    while gates.clock.now < START + 180:
        for which in range(4):
            gates.take(which)
        gates.clock.now += 0.05
    assert most(gates.admitted, 60) <= policy.limit + policy.burst + 4
    assert len([1 for now, _ in gates.admitted if now >= START + 120]) == pytest.approx(240, abs=8)
    for process in gates.processes:
        process.limiter.share(4)
    gates.clock.now += 60
    gates.admitted.clear()
    while gates.clock.now < START + 300:
        gates.take(0)
        gates.settle()
        gates.clock.now += 0.05
    assert len(gates.admitted) == pytest.approx(240 + policy.burst, abs=2)


def test_a_share_is_at_least_one_unit() -> None:
    gates = Gates(Policy("requests", 2), 4)
    for process in gates.processes:
        process.limiter.part(4)
    assert [gates.take(which) for which in (0, 1, 2, 3, 0)] == [True] * 4 + [False]


def test_a_batch_passes_while_the_account_is_away() -> None:
    gates = Gates(Policy("points", 600), 4)
    gates.processes[0].limiter.part(4)
    assert gates.take(0, 50)
    assert not gates.take(0, 50)
    # 50 units of a quarter of the limit.
    gates.clock.now += 20
    assert gates.take(0, 50)


@given(
    policies,
    st.integers(2, 5),
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["take", "part", "share", "settle", "later"]))),
)
def test_an_account_that_comes_and_goes_admits_at_most_what_is_stated_for_each_time(
    policy: Policy, processes: int, steps: list[tuple[int, str]]
) -> None:
    gates = Gates(policy, processes)
    away, turns = False, 0
    for which, what in steps:
        if what == "take":
            for _ in range(5):
                gates.take(which % processes)
        elif what == "later":
            gates.clock.now += policy.window / 7
        elif what == "settle" and not away:
            gates.settle()
        elif what in ("part", "share") and away != (what == "part"):
            away, turns = not away, turns + 1
            for process in gates.processes:
                process.hear()
                (process.limiter.part if away else process.limiter.share)(processes)
    once_more = policy.burst + processes * (lease(policy, processes) + 1)
    assert most(gates.admitted, policy.window) <= stated(policy, processes) + turns * once_more


def test_memory_stays_bounded_whatever_keys_come() -> None:
    policy = Policy("requests", 60)
    limiter = SharedLimiter(policy, lambda: None, clock=Clock(START), keys_max=50)
    limiter.share(2)
    for number in range(10_000):
        limiter.take(str(number))
    assert len(limiter) <= 50
    assert len(limiter.spent(everything=True)) <= 50
    account = MemoryCounters(2, Clock(START), keys_max=50)
    for number in range(10_000):
        account.add([Spent("requests", str(number), 1.0)])
        assert len(account) <= 50


# -- the settlement -------------------------------------------------------------------------------


class Account(MemoryCounters):
    """An account that can be away. `asked`: how often; `calls`: how many keys each settlement had."""

    def __init__(self) -> None:
        super().__init__(2)
        self.asked = 0
        self.away = False
        self.silent = asyncio.Event()
        self.silent.set()
        self.calls: list[int] = []

    async def settle(self, spent: Sequence[Spent]) -> list[float]:
        self.asked += 1
        await self.silent.wait()
        if self.away:
            raise Unavailable("away")
        self.calls.append(len(spent))
        return await super().settle(spent)


async def test_failures_of_an_address_count_on_all_processes() -> None:
    account = Account()
    policy = Policy("logins", 10, burst=10)
    settlements = [Settlement(account) for _ in range(2)]
    limiters = [FailureLimiter(settlement.limiter(policy, capped=True)) for settlement in settlements]
    for settlement in settlements:
        await settlement.beat()
    for number in range(10):
        limiters[number % 2].check("192.0.2.1")
        limiters[number % 2].record("192.0.2.1")
        await settlements[number % 2].settle()
    for limiter, settlement in zip(limiters, settlements, strict=True):
        limiter.record("192.0.2.1")
        await settlement.settle()
        with pytest.raises(LimitExceeded) as caught:
            limiter.check("192.0.2.1")
        assert caught.value.retry_after < 60 + 60
    for _ in range(500):
        limiters[0].record("192.0.2.1")
    await settlements[0].settle()
    limiters[1].record("192.0.2.1")
    await settlements[1].settle()
    with pytest.raises(LimitExceeded) as caught:
        limiters[1].check("192.0.2.1")
    # A debt ends at one window over the burst, however many fail.
    assert caught.value.retry_after <= 60 + 60


class Looked(Settlement):
    """A settlement that counts its looks."""

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        self.looks = 0

    def _look(self) -> None:
        self.looks += 1
        super()._look()


async def until(settlement: Settlement, *, healthy: bool) -> None:
    while settlement.healthy is not healthy:
        await asyncio.sleep(0.001)


async def test_what_is_admitted_is_settled_soon_and_a_little_rest_within_a_beat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("auth.shared_limits.BEAT", 0.05)
    account = Account()
    settlement = Settlement(account)
    limiter = settlement.limiter(Policy("requests", 6000))
    task = asyncio.create_task(settlement.run())
    try:
        async with asyncio.timeout(PATIENCE):
            await until(settlement, healthy=True)
            started = time.monotonic()
            for _ in range(600):
                limiter.take("a")
            limiter.take("b")
            while settlement.settled < 2:
                await asyncio.sleep(0.001)
    finally:
        task.cancel()
        await asyncio.wait((task,))
    fill = account.add([Spent("requests", "a", 0.0)])[0]
    assert 6.0 - (time.monotonic() - started) <= fill <= 6.0 + 1e-6
    assert account.add([Spent("requests", "b", 0.0)])[0] >= 0.0


async def test_an_account_that_goes_and_comes_back_changes_who_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("auth.shared_limits.BEAT", 0.02)
    account = Account()
    settlement = Settlement(account)
    limiter = settlement.limiter(Policy("requests", 600))
    task = asyncio.create_task(settlement.run())
    try:
        async with asyncio.timeout(PATIENCE):
            for _ in range(3):
                await until(settlement, healthy=True)
                limiter.take("shared")
                account.away = True
                await until(settlement, healthy=False)
                limiter.take("alone")
                assert limiter.spent(everything=True) == []
                account.away = False
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def test_an_account_that_is_silent_is_not_waited_for() -> None:
    assert LOOK * (LOOKS_MAX + 1) <= 0.5
    account = Account()
    settlement = Looked(account)
    limiter = settlement.limiter(Policy("requests", 600, burst=4))
    task = asyncio.create_task(settlement.run())
    try:
        async with asyncio.timeout(PATIENCE):
            for _ in range(2):
                await until(settlement, healthy=True)
                account.silent.clear()
                asked = account.asked
                limiter.take("a")
                while account.asked == asked:
                    await asyncio.sleep(0)
                looks = settlement.looks
                await until(settlement, healthy=False)
                assert settlement.looks - looks <= LOOKS_MAX + 1
                # Whoever had spent his lease would be refused as long as the answer is awaited.
                limiter.take("b")
                limiter.take("b")
                account.silent.set()
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def test_very_many_keys_are_settled_in_pieces() -> None:
    account = Account()
    settlement = Settlement(account)
    limiter = settlement.limiter(Policy("requests", 600))
    await settlement.beat()
    for number in range(1_201):
        limiter.take(str(number))
    await settlement.settle(everything=True)
    assert account.calls == [0, 500, 500, 201]
