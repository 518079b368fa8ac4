"""Runs a plan: rounds in which every cell is measured once, in an order of their own."""

import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from bench import environment, report, targets
from bench.cells import measure as measure_request
from bench.cells import settle
from bench.live.cells import measure as measure_stream
from bench.live.report import render as render_live
from bench.live.scenarios import LIVE
from bench.results import Cell, Plan, Results, directory_name
from bench.scenarios import SCENARIOS
from bench.targets import Target, TargetError

Measure = Callable[..., Cell]


class Named(Protocol):
    """What all kinds of scenarios have."""

    @property
    def name(self) -> str:
        """As it stands in descriptions of targets."""

    @property
    def title(self) -> str:
        """In words."""

    @property
    def unit(self) -> str:
        """What is counted."""


class Suite(Struct, frozen=True):
    """Scenarios by name, how a cell of one of them is measured, and the report of a run."""

    scenarios: Mapping[str, Named]
    measure: Measure
    render: Callable[[Plan, Sequence[Cell], Mapping[str, Target]], str]


REQUESTS = Suite(SCENARIOS, measure_request, report.render)
STREAMS = Suite(LIVE, measure_stream, render_live)

# Times that a cell is measured as long as others take too much of the cores.
ATTEMPTS = 3
# Seconds that a cell takes beyond its load: start, verification, end.
_BESIDE = 4.0


def suite_of(plan: Plan) -> Suite:
    """The suite that the cells of a plan are of."""
    return STREAMS if plan.cells and plan.cells[0].partition("@")[0] in LIVE else REQUESTS


def all_cells(known: Mapping[str, Target], suite: Suite = REQUESTS) -> list[str]:
    """Every SCENARIO@TARGET of a suite that a description names; TargetError for an unknown scenario."""
    for target in known.values():
        if unknown := set(target.scenarios) - set(SCENARIOS) - set(LIVE):
            raise TargetError(f"{target.name} names scenarios that there are not: {sorted(unknown)}")
    return [
        f"{name}@{target.name}"
        for name in suite.scenarios
        for target in known.values()
        if name in target.scenarios
    ]


def order(plan: Plan, round: int) -> list[str]:
    """The cells of a round in its own order."""
    cells = list(plan.cells)
    # Not for secrets: the same seed has to give the same order.
    random.Random(f"{plan.seed}/{round}").shuffle(cells)
    return cells


def begin(plan: Plan, *, partial: bool, home: Path = environment.RESULTS) -> Results:
    """A new run, its environment recorded."""
    record = environment.record(sys.argv)
    head, dirty = environment.commit()
    name = directory_name(head, dirty=dirty, partial=partial)
    results = Results.create(home, name, plan, record)
    print(f"results are kept in {results.directory}", file=sys.stderr)
    return results


def run(results: Results, known: Mapping[str, Target], measure: Measure | None = None) -> int:
    """Measure what is missing (by the suite's `measure`, if None), then print the report; 0 if all counts."""
    plan = results.plan
    suite = suite_of(plan)
    measure = measure or suite.measure
    broken = _prepare(plan, known)
    (results.directory / "versions.txt").write_text(_versions(plan, known, broken))
    todo = [
        (number, name)
        for number in range(1, plan.rounds + 1)
        for name in order(plan, number)
        if not results.has(number, name)
    ]
    took: list[float] = []
    try:
        for place, (number, name) in enumerate(todo):
            scenario, _, target = name.partition("@")
            if target in broken:
                cell = Cell(number, scenario, target, "", 0.0, broken[target])
            else:
                cell = _measured(measure, number, suite.scenarios[scenario], known[target], plan)
                took.append(cell.took)
            results.add(cell)
            left = len(todo) - place - 1
            _say(cell, suite, place + 1, len(todo), left * _expected(plan, took))
    except KeyboardInterrupt:
        print(f"\nstopped; go on with: --resume {results.directory}", file=sys.stderr)
        return 130
    finally:
        text = suite.render(plan, results.final(), known)
        results.keep_summary(text)
    print(text)
    return 1 if report.is_void(plan, results.final()) else 0


def _measured(measure: Measure, number: int, scenario: Named, target: Target, plan: Plan) -> Cell:
    """A cell, measured again while others disturb it, whatever it found; the last one counts."""
    for _ in range(ATTEMPTS):
        settle()
        cell = measure(number, scenario, target, plan.warm_up, plan.seconds)
        cores = cell.figures.cores if cell.figures is not None else None
        if cores is None or not cores.disturbed:
            break
        print(f"{cell.name}: {report.disturbance(cores)}", file=sys.stderr)
    return cell


def _prepare(plan: Plan, known: Mapping[str, Target]) -> dict[str, str]:
    """Make the targets' environments; by name what is wrong with those that cannot be had."""
    broken = {}
    for name in sorted({cell.partition("@")[2] for cell in plan.cells}):
        if name not in known:
            broken[name] = "there is no such target any more"
            continue
        try:
            targets.prepare(known[name])
        except (TargetError, OSError) as error:
            broken[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)
    return broken


def _versions(plan: Plan, known: Mapping[str, Target], broken: Mapping[str, str]) -> str:
    names = {cell.partition("@")[2] for cell in plan.cells} - set(broken)
    found = targets.versions(known[name] for name in sorted(names))
    return "".join(
        f"{name}: {' '.join(f'{p}=={v}' for p, v in sorted(found[name].items()))}\n" for name in found
    )


def _expected(plan: Plan, took: Sequence[float]) -> float:
    """Seconds that one cell takes."""
    return statistics.fmean(took) if took else plan.warm_up + plan.seconds + _BESIDE


def _say(cell: Cell, suite: Suite, place: int, count: int, left: float) -> None:
    """The progress line."""
    found = f"VOID: {cell.void}"
    if cell.figures is not None:
        rate = cell.figures.rate
        found = f"{rate:,.{0 if rate > 100 else 1}f} {suite.scenarios[cell.scenario].unit}"
        if cell.figures.open is not None and not cell.scenario.endswith("-ceiling"):
            found += f", p99 {cell.figures.open.p99_ms:.2f} ms"
            found += "" if cell.scenario in LIVE else " at half of it"
    remaining = f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"
    print(
        f"[{place}/{count}] round {cell.round}: {cell.name} {found}  ({remaining})",
        file=sys.stderr,
        flush=True,
    )
