import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.keys import ConfigurationError
from auth.rate_limit import (
    FailureLimiter,
    Limiter,
    LimitExceeded,
    Limits,
    Policy,
)
from tests.clock import Clock

policies = st.builds(
    Policy,
    st.just("requests"),
    st.integers(1, 5_000),
    st.sampled_from([1, 60]),
    st.none() | st.integers(1, 300),
)
gaps = st.lists(st.floats(0, 5) | st.just(0.0), max_size=300)


def bucket(limit: int = 600, **options: int) -> tuple[Limiter, Clock]:
    clock = Clock(1_000_000.0)
    return Limiter(Policy("requests", limit, **options), clock), clock


def admitted(limiter: Limiter, key: str = "a", cost: int = 1) -> bool:
    try:
        limiter.take(key, cost)
    except LimitExceeded:
        return False
    return True


def test_a_burst_is_a_tenth_of_the_limit_and_at_least_one() -> None:
    assert [Policy("x", limit).burst for limit in (1, 9, 19, 20, 600)] == [1, 1, 1, 2, 60]
    assert Policy("x", 600, burst=5).burst == 5


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": 1, "window": 0}, {"limit": 1, "burst": 0}])
def test_a_limit_of_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="expected a limit, window and burst of at least 1"):
        Policy("x", **options)


def test_a_burst_passes_at_once_and_then_one_per_interval() -> None:
    limiter, clock = bucket(600)
    assert sum(admitted(limiter) for _ in range(200)) == 60
    for _ in range(100):
        clock.now += 0.1
        assert sum(admitted(limiter) for _ in range(3)) == 1


@given(policies, gaps)
def test_never_more_than_limit_and_burst_in_any_window(policy: Policy, gaps: list[float]) -> None:
    clock = Clock(1_000_000.0)
    limiter = Limiter(policy, clock)
    times = []
    for gap in gaps:
        clock.now += gap * policy.interval
        times += [clock.now] * sum(admitted(limiter) for _ in range(4))
    for index, start in enumerate(times):
        inside = sum(time <= start + policy.window for time in times[index:])
        assert inside <= policy.limit + policy.burst


@given(policies, gaps)
def test_whoever_keeps_to_the_rate_is_never_refused(policy: Policy, gaps: list[float]) -> None:
    clock = Clock(1_000_000.0)
    limiter = Limiter(policy, clock)
    for gap in gaps:
        clock.now += (1 + gap) * policy.interval
        limiter.take("a")


@given(policies, st.integers(1, 20_000))
def test_a_batch_larger_than_the_burst_passes_an_empty_bucket_and_puts_it_in_debt(
    policy: Policy, more: int
) -> None:
    clock = Clock(1_000_000.0)
    limiter = Limiter(policy, clock)
    cost = policy.burst + more
    fill = limiter.take("a", cost)
    assert fill == pytest.approx(cost * policy.interval)
    assert said(limiter, clock) == 0
    for next_cost in (1, cost):
        with pytest.raises(LimitExceeded) as caught:
            limiter.take("a", next_cost)
        assert limiter.peek("a") == pytest.approx(fill)
    # The whole debt must be paid before another batch; a unit may come a burst earlier.
    assert caught.value.retry_after == pytest.approx(fill)
    clock.now += fill - policy.interval * 0.5
    assert not admitted(limiter, cost=cost)
    clock.now += policy.interval * 0.5
    assert admitted(limiter, cost=cost)


def test_a_batch_larger_than_the_burst_waits_until_the_bucket_is_empty() -> None:
    limiter, clock = bucket(600)
    limiter.take("a")
    assert not admitted(limiter, cost=61)
    clock.now += 0.1
    assert admitted(limiter, cost=61)


@given(policies, st.integers(1, 400), st.integers(1, 400))
def test_after_retry_after_and_not_before_the_same_is_admitted(
    policy: Policy, first: int, second: int
) -> None:
    clock = Clock(1_000_000.0)
    limiter = Limiter(policy, clock)
    limiter.take("a", first)
    try:
        limiter.take("a", second)
    except LimitExceeded as error:
        wait = error.retry_after
        clock.now += max(0.0, wait - policy.interval * 0.1)
        if wait > policy.interval * 0.1:
            assert not admitted(limiter, cost=second)
        clock.now += min(wait, policy.interval * 0.1)
        assert admitted(limiter, cost=second)


def test_a_refusal_costs_nothing() -> None:
    limiter, clock = bucket(60)
    assert sum(admitted(limiter) for _ in range(1000)) == 6
    clock.now += 1
    assert admitted(limiter)


def test_keys_have_buckets_of_their_own() -> None:
    limiter, _ = bucket(10)
    assert admitted(limiter, "a")
    assert not admitted(limiter, "a")
    assert admitted(limiter, "b")
    assert limiter.peek("c") == 0.0


@given(st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1)), max_size=300))
def test_memory_stays_bounded_whatever_keys_come(calls: list[tuple[int, float]]) -> None:
    clock = Clock()
    limiter = Limiter(Policy("x", 60), clock, keys_max=8)
    for key, gap in calls:
        clock.now += gap
        admitted(limiter, str(key))
        assert len(limiter) <= 8


def test_a_flood_of_new_keys_does_not_clear_who_is_deepest_in_debt() -> None:
    clock = Clock()
    limiter = Limiter(Policy("x", 60), clock, keys_max=100)
    limiter.take("offender", 50)
    for number in range(10_000):
        limiter.take(str(number))
        assert len(limiter) <= 100
    assert limiter.peek("offender") == 50.0


def test_empty_buckets_go_first() -> None:
    clock = Clock()
    limiter = Limiter(Policy("x", 60), clock, keys_max=10)
    for number in range(10):
        limiter.take(f"old{number}")
    clock.now += 2
    limiter.take("new", 3)
    assert len(limiter) == 1
    assert limiter.peek("new") == 3.0


def test_the_fields_say_what_is_left_and_when_all_is_back() -> None:
    limiter, clock = bucket(600)
    points = Limiter(Policy("points", 6000), clock)
    assert Limits([], clock).lines("a") == ""
    one, both = Limits([limiter], clock), Limits([limiter, points], clock)
    limiter.take("a")
    assert one.lines("a") == 'RateLimit-Policy: "requests";q=600;w=60\r\nRateLimit: "requests";r=59;t=1\r\n'
    assert both.lines("a") == (
        'RateLimit-Policy: "requests";q=600;w=60, "points";q=6000;w=60\r\n'
        'RateLimit: "requests";r=59;t=1, "points";r=600;t=0\r\n'
    )
    points.take("a", 5)
    assert both.lines("a").endswith('"requests";r=59;t=1, "points";r=595;t=1\r\n')
    assert both.lines("b").endswith('"requests";r=60;t=0, "points";r=600;t=0\r\n')
    clock.now += 100
    assert one.lines("a").endswith('"requests";r=60;t=0\r\n')


def said(limiter: Limiter, clock: Clock) -> int:
    """The r of a limit for "a"."""
    return int(Limits([limiter], clock).lines("a").rpartition(";r=")[2].partition(";")[0])


@given(policies, st.integers(0, 600))
def test_what_is_said_to_remain_is_exactly_what_is_admitted(policy: Policy, used: int) -> None:
    clock = Clock(1_000_000.0)
    limiter = Limiter(policy, clock)
    if used:
        limiter.take("a", used)
    remaining = said(limiter, clock)
    assert sum(admitted(limiter) for _ in range(policy.burst + 1)) == remaining


def test_a_refusal_says_which_limit_and_how_long() -> None:
    limiter, clock = bucket(60)
    for _ in range(6):
        limiter.take("a")
    with pytest.raises(LimitExceeded, match="'requests' of 60 in 60 s") as caught:
        limiter.take("a")
    assert caught.value.policy is limiter.policy
    assert caught.value.retry_after == pytest.approx(1.0)
    assert said(limiter, clock) == 0


# -- failures per address -------------------------------------------------------------------------


def failures() -> tuple[FailureLimiter, Clock]:
    clock = Clock()
    return FailureLimiter(Limiter(Policy("logins", 10, burst=5), clock)), clock


def test_an_address_that_fails_too_often_must_wait_and_success_costs_nothing() -> None:
    limiter, clock = failures()
    for _ in range(100):
        limiter.check("192.0.2.1")
    for _ in range(5):
        limiter.check("192.0.2.1")
        limiter.record("192.0.2.1")
    with pytest.raises(LimitExceeded) as caught:
        limiter.check("192.0.2.1")
    assert caught.value.retry_after == pytest.approx(6.0)
    limiter.check("192.0.2.2")
    clock.now += caught.value.retry_after
    limiter.check("192.0.2.1")


def test_failures_side_by_side_all_count_but_lock_nobody_out_for_long() -> None:
    limiter, _ = failures()
    for _ in range(8):
        limiter.record("192.0.2.1")
    with pytest.raises(LimitExceeded) as caught:
        limiter.check("192.0.2.1")
    assert caught.value.retry_after == pytest.approx(24.0)
    for _ in range(1000):
        limiter.record("192.0.2.1")
    with pytest.raises(LimitExceeded) as caught:
        limiter.check("192.0.2.1")
    assert caught.value.retry_after == pytest.approx(66.0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "unix", False),
    ],
)
def test_an_ipv6_address_counts_by_its_64(one: str, other: str, same: bool) -> None:
    limiter, _ = failures()
    for _ in range(5):
        limiter.record(one)
    if same:
        with pytest.raises(LimitExceeded):
            limiter.check(other)
    else:
        limiter.check(other)


def test_failures_of_very_many_addresses_stay_bounded() -> None:
    limiter = Limiter(Policy("logins", 10, burst=5), Clock(), keys_max=50)
    for number in range(1000):
        FailureLimiter(limiter).record(f"2001:db8:{number:x}::1")
        assert len(limiter) <= 50
