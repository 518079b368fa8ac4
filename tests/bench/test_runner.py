"""A run measures each cell once a round, survives what goes wrong, and goes on where it was."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import gallery, report, runner
from bench.environment import Cores
from bench.load.open_loop import Open
from bench.results import SUMMARY, Cell, Figures, Plan, Results
from bench.scenarios import SCENARIOS, Scenario
from bench.targets import Target

L1, OURS = "hello@raw_httptools", "latest@tidegate"
KNOWN = {
    name: Target(name, [], ["hello", "latest", "write-open"], "house", name=name)
    for name in ("tidegate", "raw_httptools")
}
PLAN = Plan([L1, OURS], rounds=2, seconds=1, warm_up=1, seed=7)
Log = list[tuple[int, str]]


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gallery._draw", lambda directory: None)


class Bench:
    """Measures nothing, but says so as a bench does; `figures` gives what it found, or raises."""

    def __init__(self, figures: Callable[[int, str], Figures | str]) -> None:
        self.measured: Log = []
        self.curved: Log = []
        self._figures = figures

    def __call__(
        self,
        round: int,
        scenario: Scenario,
        target: Target,
        warm_up: int,
        seconds: int,
        curve: bool = False,
    ) -> Cell:
        name = f"{scenario.name}@{target.name}"
        self.measured.append((round, name))
        if curve:
            self.curved.append((round, name))
        found = self._figures(round, name)
        void = found if isinstance(found, str) else ""
        figures = found if isinstance(found, Figures) else None
        return Cell(round, scenario.name, target.name, "2026-11-21", 1.0, void, figures)


def test_every_cell_is_measured_once_a_round_in_an_order_that_the_seed_gives(tmp_path: Path) -> None:
    plan = Plan([f"{name}@tidegate" for name in SCENARIOS], 3, 1, 1, seed=3)
    orders = [runner.order(plan, number) for number in (1, 2, 3)]
    assert all(sorted(order) == sorted(plan.cells) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert orders == [runner.order(plan, number) for number in (1, 2, 3)]
    assert runner.order(Plan(plan.cells, 3, 1, 1, seed=4), 1) != orders[0]


def test_a_whole_run_tells_what_is_met(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(lambda number, name: Figures(number * (80.0 if name == OURS else 100.0)))
    results = Results.create(tmp_path, "run", PLAN, {})
    assert runner.run(results, KNOWN, bench) == 0
    assert sorted(bench.measured) == [(1, L1), (1, OURS), (2, L1), (2, OURS)]
    said = capsys.readouterr()
    assert "0.80 x (0.80 - 0.80)" in said.out
    assert "met by 14%" in said.out
    assert "stretch missed by 6%" in said.out
    assert "[4/4] round 2: " in said.err
    assert "(0 s left)" in said.err
    assert (results.directory / SUMMARY).read_text() == said.out[:-1]
    assert "<!doctype html>" in (results.directory / gallery.PAGE).read_text()


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(round: int, name: str) -> Figures:
        if round == 2:
            raise KeyboardInterrupt
        return Figures(10.0)

    results = Results.create(tmp_path, "run", PLAN, {})
    assert runner.run(results, KNOWN, Bench(interrupted)) == 130
    assert f"--resume {results.directory}" in capsys.readouterr().err
    bench = Bench(lambda number, name: Figures(10.0))
    assert runner.run(Results.read(results.directory), KNOWN, bench) == 0
    assert sorted(bench.measured) == [(2, L1), (2, OURS)]


def test_a_void_cell_is_told_and_fails_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(lambda number, name: "it cheats" if (number, name) == (2, OURS) else Figures(10.0))
    assert runner.run(Results.create(tmp_path, "run", PLAN, {}), KNOWN, bench) == 1
    assert "round 2, latest@tidegate is void: it cheats" in capsys.readouterr().out


def test_a_target_that_does_not_keep_its_limit_is_examined_once_and_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []

    def examine(target: Target) -> str:
        events.append(f"examine {target.name}")
        return "expected 429" if target.name == "tidegate" else ""

    def found(round: int, name: str) -> Figures:
        events.append(name)
        return Figures(10.0)

    bench = Bench(found)
    results = Results.create(tmp_path, "run", PLAN, {})
    assert runner.run(results, KNOWN, bench, examine) == 1
    assert bench.measured == [(1, L1), (2, L1)]
    assert sorted(events[: events.index(L1) + 1]) in (
        ["examine raw_httptools", L1],
        ["examine raw_httptools", "examine tidegate", L1],
    )
    assert events.count("examine raw_httptools") == events.count("examine tidegate") == 1
    voids = {cell.name: cell.void for cell in results.final()}
    assert voids == {L1: "", OURS: "not verified: limit: expected 429"}
    said = capsys.readouterr()
    assert "tidegate is left out: not verified: limit: expected 429" in said.err
    assert "round 2, latest@tidegate is void: not verified: limit" in said.out
    # Who is mended is examined again, and measured.
    assert runner.run(Results.read(results.directory), KNOWN, bench, lambda target: "") == 0


def test_a_disturbed_cell_is_measured_again_but_not_for_ever(tmp_path: Path) -> None:
    disturbed = [True, False] + [True] * 3

    def found(round: int, name: str) -> Figures:
        foreign = 0.5 if name == OURS and disturbed.pop(0) else 0.0
        return Figures(10.0, cores=Cores(1.0, 0.5, foreign, 0.0))

    results = Results.create(tmp_path, "run", PLAN, {})
    bench = Bench(found)
    assert runner.run(results, KNOWN, bench) == 0
    assert [bench.measured.count((number, OURS)) for number in (1, 2)] == [2, runner.ATTEMPTS]
    assert "round 2, latest@tidegate: others took 50% of a core" in (results.directory / SUMMARY).read_text()


def test_a_target_that_cannot_be_had_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.targets.HOME", tmp_path / "targets")
    home = tmp_path / "targets" / "raw_httptools"
    home.mkdir(parents=True)
    (home / "requirements.txt").write_text("uvloop==0.23.0\n")
    (home / ".venv").write_text("in the way of a virtual environment")
    known = {**KNOWN, "raw_httptools": Target("L1", [], ["hello"], name="raw_httptools")}
    bench = Bench(lambda number, name: Figures(10.0))
    results = Results.create(tmp_path, "run", Plan([L1, OURS], 1, 1, 1, 1), {})
    assert runner.run(results, known, bench) == 1
    assert bench.measured == [(1, OURS)]
    voids = {each.name: each.void for each in results.final()}
    assert voids[OURS] == ""
    assert voids[L1].startswith("raw_httptools cannot be installed")


def test_only_scenarios_of_the_plan_s_curves_are_asked_at_fixed_rates(tmp_path: Path) -> None:
    bench = Bench(lambda number, name: Figures(10.0))
    plan = Plan([L1, OURS], 1, 1, 1, 1, curves=["latest"])
    assert runner.run(Results.create(tmp_path, "run", plan, {}), KNOWN, bench) == 0
    assert bench.curved == [(1, OURS)]


def test_the_canary_is_asked_at_the_start_now_and_then_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.plans.CANARY_EVERY", 2)
    bench = Bench(lambda number, name: Figures(100.0))
    results = Results.create(tmp_path, "run", Plan([OURS], 3, 1, 1, 1, canary=L1), {})
    assert runner.run(results, KNOWN, bench) == 0
    names = [name for _, name in bench.measured]
    assert names == [L1, OURS, OURS, L1, OURS, L1]
    assert len(Results.read(results.directory).canaries) == 3
    # It is no cell of the plan, and counts as none.
    assert all(cell.name == OURS for cell in results.final())


def test_streams_and_requests_go_into_one_run(tmp_path: Path) -> None:
    bench = Bench(lambda number, name: Figures(10.0))
    results = Results.create(tmp_path, "run", Plan([OURS, "fanout-1@tidegate"], 1, 1, 1, 1), {})
    assert runner.run(results, KNOWN, bench) == 0
    text = (results.directory / SUMMARY).read_text()
    assert "## Streams: 1 of 1 rounds" in text
    assert "## Cells" in text


@pytest.mark.parametrize(("p99", "verdict"), [(3.5, "met by 12%"), (4.4, "MISSED by 10%")])
def test_a_write_may_take_what_the_disk_takes_on_top(p99: float, verdict: str) -> None:
    opened = Open(100.0, 100.0, 500, 1.0, 2.0, p99, 5.0, 6.0, 0.01, 0, 0.5)
    figures = Figures(200.0, open=opened, sync_p99_ms=1.0)
    cell = Cell(1, "write-open", "tidegate", "2026-11-21", 1.0, "", figures)
    text = report.render(Plan(["write-open@tidegate"], 1, 1, 1, 1), [cell], {})
    assert "p99 <= 3.0 ms + the disk's 1.00" in text
    assert verdict in text


def test_latencies_of_a_client_that_was_late_itself_are_in_doubt() -> None:
    opened = Open(100.0, 90.0, 500, 1.0, 2.0, 3.0, 4.0, 5.0, 0.7, 0, 0.5)
    cell = Cell(1, "latest-open", "tidegate", "2026-11-21", 1.0, "", Figures(200.0, open=opened))
    text = report.render(Plan(["latest-open@tidegate"], 1, 1, 1, 1), [cell], {})
    assert "its client was late by 0.70 ms itself" in text
