"""Where somebody beats the gate: said plainly, scenario by scenario, before anything else is praised."""

import itertools
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Struct

from bench.digest import Digest, Kind, Measured, Point
from bench.figures import ratios, spread
from bench.plans import HOUSE, is_floor, is_house

# Less than this is no win, whatever the rounds say.
RELEVANT = 0.02


class Win(Struct, frozen=True):
    """Somebody better than the gate at `what`: by `factor` (always above 1), in so many of `rounds`.

    `rounds` is 0 where only medians are compared. `floor`: it is no server. `more`: so many others are better
    as well, by less; counted only where what is compared is a cost.
    """

    scenario: str
    target: str
    what: str
    factor: float
    ours: str
    theirs: str
    won: int = 0
    rounds: int = 0
    floor: bool = False
    more: int = 0

    @property
    def remark(self) -> str:
        """What belongs behind its name."""
        return (f" and {self.more} more" if self.more else "") + (" (floor)" if self.floor else "")

    @property
    def sure(self) -> bool:
        """Whether it was better in every round."""
        return self.rounds == 0 or self.won == self.rounds


def wins(run: Digest, target: str = HOUSE) -> list[Win]:
    """Everything that somebody does better than the gate, by scenario: what is counted, then what it costs.

    `target`: the gate's, on one of its databases. The gate does not beat itself.
    """
    found: list[Win] = []
    for kind in run.kinds:
        house = run.house(kind.name, target)
        if house is None:
            continue
        peers = [peer for peer in run.of(kind.name) if not is_house(peer.target)]
        found += sorted(
            (win for peer in peers for win in (*_counted(kind, house, peer), *_tail(kind, house, peer))),
            key=lambda win: (win.what, -win.factor),
        )
        found += _joined(win for peer in peers for win in _costs(kind, house, peer))
    return found


def _joined(found: Iterable[Win]) -> Iterator[Win]:
    """Of each cost the clearest win, servers and floors apart: most who do less also take less."""
    ordered = sorted(found, key=lambda win: (win.what, win.floor, -win.factor))
    for _, some in itertools.groupby(ordered, lambda win: (win.what, win.floor)):
        first, *others = some
        yield msgspec.structs.replace(first, more=len(others))


def _counted(kind: Kind, house: Measured, peer: Measured) -> Iterator[Win]:
    theirs, ours = peer.rates, house.rates
    found = ratios(ours, theirs) if kind.lower else ratios(theirs, ours)
    together = spread(found)
    both = house.spread, peer.spread
    if together is None or together.median <= 1 + RELEVANT or both[0] is None or both[1] is None:
        return
    yield Win(
        kind.name,
        peer.target,
        kind.unit,
        together.median,
        f"{both[0].median:,.0f}",
        f"{both[1].median:,.0f}",
        sum(each > 1 for each in found),
        len(found),
        is_floor(peer.target),
    )


def _tail(kind: Kind, house: Measured, peer: Measured) -> Iterator[Win]:
    """At the highest load that both were asked at."""
    both = common(house, peer)
    if not both:
        return
    ours, theirs = both[-1]
    if ours.p99.median > theirs.p99.median * (1 + RELEVANT):
        yield Win(
            kind.name,
            peer.target,
            f"p99 ms at {ours.planned:,.0f}/s",
            ours.p99.median / theirs.p99.median,
            f"{ours.p99.median:.2f}",
            f"{theirs.p99.median:.2f}",
            floor=is_floor(peer.target),
        )


def common(house: Measured, peer: Measured) -> list[tuple[Point, Point]]:
    """The loads that both were asked at, by a client that was not late itself."""
    theirs = {each.planned: each for each in peer.curve if not each.late}
    return [(each, theirs[each.planned]) for each in house.curve if each.planned in theirs and not each.late]


def _costs(kind: Kind, house: Measured, peer: Measured) -> Iterator[Win]:
    if kind.lower:
        return
    for what, ours, theirs in (
        ("CPU us each, database included", house.cpu_us + house.beside_us, peer.cpu_us + peer.beside_us),
        ("MiB after the load", house.loaded_mib, peer.loaded_mib),
    ):
        if theirs and ours > theirs * (1 + RELEVANT):
            form = ",.1f"
            yield Win(
                kind.name,
                peer.target,
                what,
                ours / theirs,
                f"{ours:{form}}",
                f"{theirs:{form}}",
                floor=is_floor(peer.target),
            )
