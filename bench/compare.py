"""`python -m bench compare A B`: what changed from one run to another, and whether it is more than noise.

A machine is in different moods on different days. So each round of a cell is taken by the others of its
round: the geometric mean of all peers (whose versions are pinned; the gate is none of them) that both runs
have in every round. One floor alone would do too, but its own noise would shift every cell at once.
"""

import statistics
from collections.abc import Iterator, Sequence

from msgspec import Struct

from bench.digest import Digest, Measured, digest
from bench.noise import LEVEL, Change, change
from bench.plans import is_house
from bench.report import section, table
from bench.results import Results

_HEAD = ("cell", "factor", "95 % interval", "p", "")
# A change below this is no news, however sure.
RELEVANT = 0.02


class Difference(Struct, frozen=True):
    """What changed in a cell. `absolute`: not by the peers. `lower`: whether less is better."""

    name: str
    change: Change
    absolute: bool
    lower: bool

    @property
    def verdict(self) -> str:
        """In words."""
        found = self.change
        if not found.possible:
            return "too few rounds to tell"
        if not found.shown:
            return "no difference shown"
        if abs(found.factor - 1) < RELEVANT:
            return "shown, but below 2 %"
        return "BETTER" if (found.factor > 1) != self.lower else "WORSE"


def differences(before: Digest, after: Digest) -> Iterator[Difference]:
    """What changed, for each cell that both have figures of, in the order of the scenarios."""
    peers = references(before, after)
    for kind in after.kinds:
        for cell in after.of(kind.name):
            old = before.cells.get(cell.name)
            if old is None:
                continue
            others = [name for name in peers if name != cell.name]
            absolute = kind.lower or not others
            names = [] if absolute else others
            found = change(_values(old, before, names), _values(cell, after, names))
            if found is not None:
                yield Difference(cell.name, found, absolute, kind.lower)


def references(before: Digest, after: Digest) -> list[str]:
    """The peers' cells that have figures in every round of both runs."""
    lower = {kind.name for kind in after.kinds if kind.lower}
    return [
        name
        for name, cell in after.cells.items()
        if not is_house(cell.target)
        and cell.scenario not in lower
        and name in before.cells
        and _rounds(before) == set(before.cells[name].rates)
        and _rounds(after) == set(cell.rates)
    ]


def _rounds(run: Digest) -> set[int]:
    return {number for cell in run.cells.values() for number in cell.rates}


def _values(cell: Measured, run: Digest, names: Sequence[str]) -> list[float]:
    """What was counted in each round, by the mood of the round if there are names to tell it."""
    return [rate / _mood(run, number, names) for number, rate in sorted(cell.rates.items())]


def _mood(run: Digest, number: int, names: Sequence[str]) -> float:
    return statistics.geometric_mean(run.cells[name].rates[number] for name in names) if names else 1.0


def _machine(before: Digest, after: Digest) -> str:
    """How much faster the peers were, all together."""
    if not (names := references(before, after)):
        return ""
    old, new = ([_mood(run, number, names) for number in sorted(_rounds(run))] for run in (before, after))
    factor = statistics.geometric_mean(new) / statistics.geometric_mean(old)
    return f"The machine, by {len(names)} cells of the peers: {factor:.3f} x."


def render(first: Results, second: Results) -> str:
    """The comparison in Markdown."""
    before, after = digest(first), digest(second)
    found = list(differences(before, after))
    shown = [each for each in found if each.change.shown]
    gone = sorted(set(_with_figures(before)) - set(_with_figures(after)))
    come = sorted(set(_with_figures(after)) - set(_with_figures(before)))
    parts = [
        f"# {second.directory.name} against {first.directory.name}",
        f"{len(found)} cells in both runs; {len(shown)} differ by more than noise "
        f"(chance alone shows about {len(found) * LEVEL:.0f}). A factor above 1 is more than before. Cells "
        "count by the peers of their own round, those with * as they are; both a permutation test and a "
        "bootstrap interval have to speak for a difference.",
        _machine(before, after),
        *_warnings(first, second),
        section("Cells", table(_HEAD, map(_line, found))),
        section("Only before", "\n".join(f"- {name}" for name in gone)),
        section("Only now", "\n".join(f"- {name}" for name in come)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _with_figures(run: Digest) -> list[str]:
    return [cell.name for cell in run.cells.values() if cell.rates]


def _warnings(first: Results, second: Results) -> Iterator[str]:
    """What makes two runs two different things."""
    for name in ("cpu", "cores", "kernel", "python", "memory"):
        old, new = first.environment.get(name), second.environment.get(name)
        if old != new:
            yield f"**Not the same {name}:** {old} before, {new} now."
    if (first.plan.seconds, first.plan.warm_up) != (second.plan.seconds, second.plan.warm_up):
        yield f"**Measurements of {first.plan.seconds} s before, of {second.plan.seconds} s now.**"


def _line(each: Difference) -> tuple[str, ...]:
    found = each.change
    mark = " *" if each.absolute else ""
    interval = f"{found.low:.3f} - {found.high:.3f}"
    return each.name + mark, f"{found.factor:.3f} x", interval, f"{found.p:.3f}", each.verdict
