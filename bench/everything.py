"""Everything switched on beside nothing: what the gate does in full, by what others reach with a hello.

The gate checks the token and the limit, validates, and answers a write after its durable commit; a hello is a
tiny JSON without any of it. Pure.
"""

from collections.abc import Iterator

from msgspec import Struct

from bench.digest import Digest, Measured
from bench.figures import Spread
from bench.plans import HOUSE, is_floor, is_house

HELLO = "hello"
# What the gate does in full.
OURS = ("write", "latest")


class Greeting(Struct, frozen=True):
    """The hello of a target, and by it the gate's OURS, as far as they were measured. `floor`: no server."""

    target: str
    rate: Spread
    factors: dict[str, Spread]
    floor: bool = False


class Standing(Struct, frozen=True):
    """What the gate reaches in one of OURS, among the hellos of so many `peers`, floors left out.

    `above`: those it is faster than in each round; `even`: in some; `below`: those that are faster in each.
    """

    scenario: str
    rate: Spread
    above: list[str]
    even: list[str]
    below: list[str]

    @property
    def peers(self) -> int:
        """How many there are."""
        return len(self.above) + len(self.even) + len(self.below)


def greetings(run: Digest) -> list[Greeting]:
    """Everybody's hello but the gate's own, the fastest first; none if the gate did nothing in full."""
    found = []
    for cell in hellos(run):
        factors = {name: run.ratio(f"{name}@{HOUSE}", cell.name) for name in OURS}
        kept = {name: factor for name, factor in factors.items() if factor is not None}
        if cell.spread is not None and kept:
            found.append(Greeting(cell.target, cell.spread, kept, is_floor(cell.target)))
    return found


def hellos(run: Digest) -> list[Measured]:
    """The cells of the others' hello, the fastest first."""
    if all(kind.name != HELLO for kind in run.kinds):
        return []
    return [cell for cell in run.of(HELLO) if not is_house(cell.target)]


def standings(run: Digest) -> Iterator[Standing]:
    """Where the gate stands in each of OURS."""
    every = [each for each in greetings(run) if not each.floor]
    for name in OURS:
        ours = run.house(name)
        factors = {each.target: each.factors[name] for each in every if name in each.factors}
        if ours is None or ours.spread is None or not factors:
            continue
        above = [target for target, factor in factors.items() if factor.least > 1]
        below = [target for target, factor in factors.items() if factor.most < 1]
        even = [target for target in factors if target not in above and target not in below]
        yield Standing(name, ours.spread, above, even, below)


def told(run: Digest) -> Iterator[str]:
    """The same in words, a sentence for each of OURS."""
    for each in standings(run):
        text = (
            f"`{each.scenario}` with everything on, {each.rate.median:,.0f}/s: faster than the `hello` of "
            f"{len(each.above)} of {each.peers} others in every round"
        )
        for what, targets in (("faster in some rounds than that of", each.even), ("slower than", each.below)):
            if targets:
                names = "; ".join(run.titles[target] for target in targets)
                text += f", {what} {len(targets)} ({names})"
        yield f"{text}."
