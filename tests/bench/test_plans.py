"""A run says before how long it takes, measures what was asked for, and fits into its time."""

import pytest

from bench import plans, runner
from bench.progress import Progress
from bench.results import Cell, Figures, Plan, ResultsError
from bench.targets import load

KNOWN = load()
EVERY = runner.all_cells(KNOWN, runner.REQUESTS, runner.STREAMS)


def plan(*cells: str, rounds: int = 5, seconds: int = 3) -> Plan:
    return Plan(list(cells), rounds, seconds, 1, 7)


def test_a_full_run_asks_the_chosen_everything_and_all_others_hello_and_write() -> None:
    cells = plans.full(EVERY)
    assert set(cells) <= set(EVERY)
    by_target: dict[str, set[str]] = {}
    for name in cells:
        scenario, _, target = name.partition("@")
        by_target.setdefault(target, set()).add(scenario)
    assert set(plans.CHOSEN) <= set(KNOWN)
    for target in plans.CHOSEN:
        assert by_target[target] == set(plans.EIGHT), target
    assert by_target[plans.HOUSE] == {*plans.EIGHT, *plans.OPEN}
    assert by_target[plans.HOUSE_ON_POSTGRESQL] == set(plans.EIGHT)
    others = set(by_target) - {*plans.CHOSEN, plans.HOUSE, plans.HOUSE_ON_POSTGRESQL, "bare_sqlite"}
    assert by_target["raw_constant"] == {"hello", "hello-ceiling"}
    assert all(by_target[target] <= set(plans.ALL) for target in others - {"raw_constant"})
    # Everybody who can is there.
    assert {name.partition("@")[2] for name in EVERY if name.startswith("hello@")} <= set(by_target)


def test_ten_are_chosen_for_eight_scenarios() -> None:
    assert len(set(plans.CHOSEN)) == 10
    assert len(set(plans.EIGHT)) == 8


def test_a_full_run_fits_into_an_hour_and_a_half() -> None:
    cells = plans.full(EVERY)
    whole = Plan(cells, plans.ROUNDS, 1, plans.WARM_UP, 7, plans.curves(cells), plans.CANARY)
    found = plans.fitting(whole, KNOWN, plans.MINUTES, None)
    assert found.rounds >= 5
    assert found.seconds >= plans.SECONDS_LEAST
    assert plans.duration(found, KNOWN) <= plans.MINUTES * 60
    assert "minutes" in plans.described(found, KNOWN)


def test_a_short_run_takes_a_minute_not_none() -> None:
    words = plans.described(plan("hello@raw_constant"), {})
    assert words.startswith("1 cell of 1 target, ")
    assert "about 1 minute (" in words


def test_measurements_are_as_long_as_fits() -> None:
    cells = [f"hello@raw_{n}" for n in range(10)]
    long, short = (plans.fitting(plan(*cells), {}, minutes, None) for minutes in (60, 4))
    assert long.seconds == plans.SECONDS_MOST
    assert plans.SECONDS_LEAST <= short.seconds < long.seconds


def test_what_does_not_fit_is_refused_with_its_time() -> None:
    with pytest.raises(ResultsError, match=r"take about 18 minutes, more than 5: ask for fewer --targets"):
        plans.fitting(plan(*(f"hello@raw_{n}" for n in range(30))), {}, 5, 5)


def test_a_cell_with_a_database_a_curve_or_a_crowd_takes_longer() -> None:
    simple = plans.seconds_of(plan(), "hello@raw_httptools", KNOWN)
    assert plans.seconds_of(plan(), "hello@fastapi_asyncpg", KNOWN) > simple
    curved = Plan([], 5, 3, 1, 7, ["write"])
    assert plans.seconds_of(curved, "write@tidegate", KNOWN) > plans.seconds_of(
        plan(), "write@tidegate", KNOWN
    )
    assert plans.seconds_of(plan(), "fanout-1@tidegate", KNOWN) > simple
    assert plans.seconds_of(plan(), "start@tidegate", KNOWN) < simple


def test_the_limit_of_each_target_counts_once_in_a_run_s_time() -> None:
    cells = ["hello@raw_httptools", "write@tidegate"]
    times = [plans.duration(plan(*cells, rounds=rounds), KNOWN) for rounds in (1, 2)]
    once = sum(plans.seconds_of(plan(), name, KNOWN) for name in cells)
    assert times[1] - times[0] == pytest.approx(once)
    # Of raw_httptools there is none to check.
    assert times[0] - once == pytest.approx(plans.limits_seconds(plan("write@tidegate"), KNOWN))
    assert plans.limits_seconds(plan("write@tidegate"), KNOWN) > 0
    assert plans.limits_seconds(plan("hello@raw_httptools"), KNOWN) == 0


def test_cells_are_chosen_by_targets_and_scenarios() -> None:
    assert plans.select(EVERY, KNOWN, ["write"], ["tidegate"]) == ["write@tidegate"]
    assert set(plans.select(EVERY, KNOWN, [], ["raw_constant"])) == {
        name for name in EVERY if name.endswith("@raw_constant")
    }
    assert all(name.startswith("fanout-1@") for name in plans.select(EVERY, KNOWN, ["fanout-1"], []))


@pytest.mark.parametrize(
    ("scenarios", "targets", "complaint"),
    [
        (["wirte"], [], "no scenario is named wirte (did you mean write"),
        ([], ["tidgate"], "no target is named tidgate (did you mean tidegate"),
        ([], ["xyzzy"], "no target is named xyzzy; there are: "),
        (["ws-echo"], ["tidegate"], "nothing to measure; tidegate has no ws-echo: its WebSockets follow"),
        (["fanout-1"], ["raw_constant"], "raw_constant has no fanout-1: its description does not name it"),
    ],
)
def test_a_wrong_name_is_refused_with_what_was_meant(
    scenarios: list[str], targets: list[str], complaint: str
) -> None:
    with pytest.raises(ResultsError) as caught:
        plans.select(EVERY, KNOWN, scenarios, targets)
    assert complaint in str(caught.value)


def test_progress_learns_how_long_cells_take() -> None:
    names = ["hello@raw_httptools", "latest@tidegate"] * 2
    progress = Progress(plan(*names[:2], rounds=2), KNOWN, names)
    guessed = progress.left()
    took = 2 * plans.seconds_of(plan(), names[0], KNOWN)
    line = progress.line(Cell(1, "hello", "raw_httptools", "2026-11-21", 1.0, "", Figures(123_456.0)), took)
    assert line.startswith("[1/4] round 1: hello@raw_httptools 123,456 requests/s  (")
    # Cells take twice as long as the plan thought: those to come, too.
    assert progress.left() == pytest.approx(2 * guessed - took)
    progress.line(Cell(1, "latest", "tidegate", "2026-11-21", 1.0, "nothing was answered"), 1.0)
    assert progress.left() == pytest.approx(took + 1.0)
    assert "VOID: it hung up" in progress.line(Cell(2, "hello", "raw_httptools", "", 1.0, "it hung up"), 1.0)
