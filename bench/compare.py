"""`python -m bench compare A B`: what changed from one run to another, and whether it is more than noise.

Each cell is taken by the floor of its own round (uvloop + httptools, on the same machine in the same
minutes), so that two runs on a machine in different moods can be compared. Where a run lacks the floor, or
the cell is the floor, what was counted is compared as it is, and marked.
"""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from bench.digest import FLOOR, Digest, digest
from bench.figures import ratios
from bench.noise import LEVEL, Change, change
from bench.report import section, table
from bench.results import Results

_HEAD = ("cell", "factor", "95 % interval", "p", "")
# A change below this is no news, however sure.
RELEVANT = 0.02


class Difference(Struct, frozen=True):
    """What changed in a cell. `absolute`: not by the floor. `lower`: whether less is better."""

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
    for kind in after.kinds:
        for cell in after.of(kind.name):
            old = before.cells.get(cell.name)
            if old is None:
                continue
            absolute = cell.name == FLOOR or kind.lower or not (_floor(before) and _floor(after))
            found = change(
                _values(old.rates, {} if absolute else _floor(before), absolute),
                _values(cell.rates, {} if absolute else _floor(after), absolute),
            )
            if found is not None:
                yield Difference(cell.name, found, absolute, kind.lower)


def _floor(run: Digest) -> Mapping[int, float]:
    cell = run.cells.get(FLOOR)
    return cell.rates if cell is not None else {}


def _values(rates: Mapping[int, float], floor: Mapping[int, float], absolute: bool) -> list[float]:
    return list(rates.values()) if absolute else ratios(rates, floor)


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
        "count by the floor of their own round, those with * as they are; both a permutation test and a "
        "bootstrap interval have to speak for a difference.",
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
