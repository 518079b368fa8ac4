"""Results outlive the run that wrote them, and cells are found by name."""

from pathlib import Path

import pytest

from bench.results import CELLS, Cell, Figures, Plan, Results, ResultsError, chosen, directory_name

PLAN = Plan(["write@tidegate", "hello@raw_constant"], rounds=2, seconds=1, warm_up=1, seed=7)
NAMES = ["hello@raw_constant", "hello@aiohttp_app", "write@tidegate", "write-cold@tidegate"]


def cell(round: int, name: str = "write@tidegate", void: str = "", rate: float = 10.0) -> Cell:
    scenario, _, target = name.partition("@")
    return Cell(round, scenario, target, "2026-11-21", 1.0, void, None if void else Figures(rate))


def test_what_was_measured_is_there_again(tmp_path: Path) -> None:
    results = Results.create(tmp_path, "run", PLAN, {"cpu": "a fast one"})
    results.add(cell(1))
    results.add(cell(2, void="it hung up"))
    again = Results.read(results.directory)
    assert (again.plan, again.cells) == (PLAN, results.cells)
    assert again.has(1, "write@tidegate")
    assert not again.has(1, "hello@raw_constant")


def test_a_void_cell_gets_another_chance_and_its_last_word_counts(tmp_path: Path) -> None:
    results = Results.create(tmp_path, "run", PLAN, {})
    results.add(cell(1, void="it hung up"))
    assert not results.has(1, "write@tidegate")
    results.add(cell(1, rate=20.0))
    assert results.has(1, "write@tidegate")
    assert [each.figures for each in results.final()] == [Figures(20.0)]


def test_a_line_that_was_cut_off_is_dropped_and_measured_again(tmp_path: Path) -> None:
    results = Results.create(tmp_path, "run", PLAN, {})
    results.add(cell(1))
    results.add(cell(2))
    path = results.directory / CELLS
    path.write_bytes(path.read_bytes()[:-5])
    again = Results.read(results.directory)
    assert again.cells == [cell(1)]
    again.add(cell(2))
    assert Results.read(results.directory).cells == [cell(1), cell(2)]


def test_a_directory_without_results_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no results"):
        Results.read(tmp_path)


def test_no_run_overwrites_another(tmp_path: Path) -> None:
    first, second = (Results.create(tmp_path, "run", PLAN, {}).directory for _ in range(2))
    assert (first.name, second.name) == ("run", "run-2")


def test_only_a_whole_run_of_a_commit_is_named_like_one() -> None:
    assert directory_name("abc1234", dirty=False, partial=False).endswith("-abc1234")
    assert directory_name("abc1234", dirty=True, partial=True).endswith("-abc1234-dirty-partial")


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["*"], NAMES),
        (["write"], ["write@tidegate"]),
        (["write*"], ["write@tidegate", "write-cold@tidegate"]),
        (["@aiohttp_app", "write"], ["hello@aiohttp_app", "write@tidegate"]),
        (["hello@raw_*"], ["hello@raw_constant"]),
    ],
)
def test_cells_are_chosen_by_scenario_by_target_or_by_both(patterns: list[str], found: list[str]) -> None:
    assert chosen(NAMES, patterns) == found


def test_a_name_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ResultsError, match="no cell is named wirte; there are: hello@raw_constant"):
        chosen(NAMES, ["hello", "wirte"])
