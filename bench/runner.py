"""Runs a plan: rounds in which every cell is measured once, in an order of their own."""

import random
import sys
import time
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from bench import acceptance, canary, environment, gallery, plans, report, summary, targets
from bench.cells import measure as measure_request
from bench.cells import settle
from bench.live.cells import measure as measure_stream
from bench.live.scenarios import LIVE
from bench.progress import Progress, now, say
from bench.results import Cell, Facts, Plan, Results, directory_name
from bench.scenarios import SCENARIOS
from bench.targets import Target, TargetError

Measure = Callable[..., Cell]
# What is wrong with a target's limit, "" if nothing.
Examine = Callable[[Target], str]


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
    """Scenarios by name, and how a cell of one of them is measured."""

    scenarios: Mapping[str, Named]
    measure: Measure


REQUESTS = Suite(SCENARIOS, measure_request)
STREAMS = Suite(LIVE, measure_stream)

# Times that a cell is measured as long as others take too much of the cores.
ATTEMPTS = 3


def suite_of(name: str) -> Suite:
    """The suite that a scenario, or a cell of it, is of."""
    return STREAMS if name.partition("@")[0] in LIVE else REQUESTS


def all_cells(known: Mapping[str, Target], *suites: Suite, named: Container[str] = ()) -> list[str]:
    """Every SCENARIO@TARGET of the suites that a description names; TargetError for an unknown scenario.

    Those of a target that has a group only where it, or its group, is named.
    """
    for target in known.values():
        if unknown := set(target.scenarios) - set(SCENARIOS) - set(LIVE):
            raise TargetError(f"{target.name} names scenarios that there are not: {sorted(unknown)}")
    return [
        f"{name}@{target.name}"
        for suite in suites or (REQUESTS,)
        for name in suite.scenarios
        for target in known.values()
        if name in target.scenarios and (not target.group or target.group in named or target.name in named)
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
    say(f"results are kept in {results.directory}")
    return results


def run(
    results: Results,
    known: Mapping[str, Target],
    measure: Measure | None = None,
    examine: Examine = acceptance.limit_complaint,
) -> int:
    """Measure what is missing (by the suites' `measure`, if None), then print the report; 0 if all counts.

    Before its first measurement each target is examined, once; if it fails, all its cells are void.
    """
    plan = results.plan
    broken = _prepare(plan, known)
    results.keep_facts(_facts(plan, known, broken))
    todo = [
        (number, name)
        for number in range(1, plan.rounds + 1)
        for name in order(plan, number)
        if not results.has(number, name)
    ]
    progress = Progress(plan, known, [name for _, name in todo])
    examined: set[str] = set()
    try:
        for place, (number, name) in enumerate(todo):
            scenario, _, target = name.partition("@")
            if target not in broken and target not in examined:
                examined.add(target)
                if complaint := examine(known[target]):
                    broken[target] = f"not verified: limit: {complaint}"
                    say(f"{target} is left out: {broken[target]}")
            began = time.monotonic()
            if place % plans.CANARY_EVERY == 0:
                _sing(results, known, broken, measure)
            if target in broken:
                cell = Cell(number, scenario, target, now(), 0.0, broken[target])
            else:
                cell = _measured(number, name, known[target], plan, measure)
            results.add(cell)
            say(progress.line(cell, time.monotonic() - began))
        _sing(results, known, broken, measure)
    except KeyboardInterrupt:
        say(f"\nstopped; go on with: --resume {results.directory}")
        return 130
    finally:
        text = summary.render(results)
        results.keep_summary(text)
        gallery.keep(results, say)
    print(text)
    return 1 if report.is_void(plan, results.final()) else 0


def _measured(number: int, name: str, target: Target, plan: Plan, measure: Measure | None = None) -> Cell:
    """A cell, measured again while others disturb it, whatever it found; the last one counts."""
    suite, scenario = suite_of(name), name.partition("@")[0]
    more = {"curve": True} if scenario in plan.curves else {}
    for _ in range(ATTEMPTS):
        settle()
        cell = (measure or suite.measure)(
            number, suite.scenarios[scenario], target, plan.warm_up, plan.seconds, **more
        )
        cores = cell.figures.cores if cell.figures is not None else None
        if cores is None or not cores.disturbed:
            break
        say(f"{cell.name}: {report.disturbance(cores)}")
    return cell


def _sing(
    results: Results, known: Mapping[str, Target], broken: Mapping[str, str], measure: Measure | None
) -> None:
    """Ask the canary, where the plan has one."""
    scenario, _, target = results.plan.canary.partition("@")
    if not scenario or target not in known or target in broken:
        return
    ask = measure or REQUESTS.measure
    for cell in canary.sing(lambda: ask(0, SCENARIOS[scenario], known[target], 1, 1), results.canaries, say):
        results.add_canary(cell)


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
            say(f"{name} is left out: {error}")
    return broken


def _facts(plan: Plan, known: Mapping[str, Target], broken: Mapping[str, str]) -> dict[str, Facts]:
    names = sorted({cell.partition("@")[2] for cell in plan.cells})
    found = targets.versions(known[name] for name in names if name not in broken)
    facts = {}
    for name in names:
        target = known.get(name)
        size = 0.0 if name in broken or target is None else targets.size(target) / 2**20
        facts[name] = Facts(
            target.title if target is not None else name,
            dict(sorted(found.get(name, {}).items())),
            size,
            broken.get(name, ""),
            target.cannot if target is not None else {},
        )
    return facts
