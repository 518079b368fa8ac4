"""A run as reports need it: what each target reached in each scenario, all rounds together."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from bench.figures import Spread, ratios, spread
from bench.live.scenarios import LIVE
from bench.load import histogram
from bench.load.open_loop import Open
from bench.plans import HOUSE
from bench.results import Cell, Figures, Plan, Results
from bench.scenarios import SCENARIOS

# What others stand beside: uvloop + httptools that answers a constant.
FLOOR = "hello@raw_httptools"


class Point(Struct, frozen=True):
    """Latencies in milliseconds at one offered load (per second), of all rounds' requests together.

    `p99`: of each round, its spread. `late`: rounds in which the client itself did not keep to the plan.
    """

    planned: float
    rate: float
    rounds: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    p99: Spread
    late: int


class Measured(Struct, frozen=True):
    """A cell of all rounds: what was counted, by round; medians of the rest; why rounds are void."""

    scenario: str
    target: str
    rates: dict[int, float]
    voids: list[str]
    cpu_us: float = 0.0
    beside_us: float = 0.0
    start_ms: float = 0.0
    idle_mib: float = 0.0
    loaded_mib: float = 0.0
    server_core: float = 0.0
    load_core: float = 0.0
    curve: list[Point] = []

    @property
    def name(self) -> str:
        """SCENARIO@TARGET."""
        return f"{self.scenario}@{self.target}"

    @property
    def spread(self) -> Spread | None:
        """Of what was counted; None if every round is void."""
        return spread(list(self.rates.values()))


class Kind(Struct, frozen=True):
    """A scenario as a reader sees it. `lower`: whether less is better."""

    name: str
    title: str
    unit: str
    lower: bool
    stream: bool


class Digest(Struct, frozen=True):
    """A whole run. `titles`: of the targets, by name."""

    plan: Plan
    kinds: list[Kind]
    titles: dict[str, str]
    cells: dict[str, Measured]

    def of(self, scenario: str) -> list[Measured]:
        """The cells of a scenario that have figures, the best first."""
        kind = next(each for each in self.kinds if each.name == scenario)
        found = [each for each in self.cells.values() if each.scenario == scenario and each.rates]
        return sorted(found, key=lambda each: middle(each.rates.values()), reverse=not kind.lower)

    def ratio(self, name: str, against: str) -> Spread | None:
        """What a cell reached by what another one did, within rounds; None if one has no figures."""
        if name not in self.cells or against not in self.cells:
            return None
        return spread(ratios(self.cells[name].rates, self.cells[against].rates))

    def house(self, scenario: str, target: str = HOUSE) -> Measured | None:
        """The gate in a scenario; `target`: on one of its databases."""
        cell = self.cells.get(f"{scenario}@{target}")
        return cell if cell is not None and cell.rates else None


def ceilings(run: Digest) -> Iterator[str]:
    """What the load generators reach by themselves: no figure near that says much of a server."""
    for name, what in (
        ("hello@raw_constant", "wrk, in a closed loop on a server that only writes constant bytes"),
        ("hello-ceiling@raw_constant", "the open loop's client, before it is late itself"),
    ):
        cell = run.cells.get(name)
        if cell is not None and cell.spread is not None:
            found = cell.spread
            yield f"{what}: {found.median:,.0f} ({found.least:,.0f} - {found.most:,.0f}) requests/s"


def digest(results: Results) -> Digest:
    """What a run found, as far as it got."""
    plan, final = results.plan, results.final()
    titles = {name: facts.title for name, facts in results.facts.items()}
    for name in plan.cells:
        titles.setdefault(name.partition("@")[2], name.partition("@")[2])
    return Digest(plan, _kinds(plan), titles, {name: _measured(name, final) for name in plan.cells})


def middle(values: Iterable[float]) -> float:
    """The median; 0 of none."""
    every = list(values)
    return statistics.median(every) if every else 0.0


def _kinds(plan: Plan) -> list[Kind]:
    wanted = {name.partition("@")[0] for name in plan.cells}
    requests = [
        Kind(each.name, each.title, each.unit, each.lower, stream=False)
        for each in SCENARIOS.values()
        if each.name in wanted
    ]
    streams = [
        Kind(each.name, each.title, each.unit, each.kind == "idle", stream=True)
        for each in LIVE.values()
        if each.name in wanted
    ]
    gone = sorted(wanted - {each.name for each in (*requests, *streams)})
    return [*requests, *streams, *(Kind(name, name, "", lower=False, stream=False) for name in gone)]


def _measured(name: str, final: Sequence[Cell]) -> Measured:
    scenario, _, target = name.partition("@")
    cells = [cell for cell in final if cell.name == name]
    found = {cell.round: cell.figures for cell in cells if cell.figures is not None}
    return Measured(
        scenario,
        target,
        {number: each.rate for number, each in found.items()},
        [f"round {cell.round}: {cell.void}" for cell in cells if cell.void],
        cpu_us=_median(found, _cpu_us),
        beside_us=_median(found, lambda each: each.beside_us),
        start_ms=_median(found, lambda each: each.start_ms),
        idle_mib=_median(found, lambda each: each.idle_mib),
        loaded_mib=_median(found, lambda each: each.loaded_mib),
        server_core=_median(found, lambda each: each.cores.server if each.cores else 0.0),
        load_core=_median(found, lambda each: each.cores.load if each.cores else 0.0),
        curve=_curve(found.values()),
    )


def _median(found: Mapping[int, Figures], pick: Callable[[Figures], float]) -> float:
    return middle(pick(each) for each in found.values())


def _cpu_us(figures: Figures) -> float:
    """Of a stream's cell, and of older runs, only how busy the core was is known."""
    if figures.cpu_us or figures.cores is None or not figures.rate:
        return figures.cpu_us
    return figures.cores.server / figures.rate * 1e6


def _curve(found: Iterable[Figures]) -> list[Point]:
    steps: dict[float, list[Open]] = {}
    for figures in found:
        for each in figures.curve:
            steps.setdefault(each.planned, []).append(each)
    return [_point(planned, steps[planned]) for planned in sorted(steps)]


def _point(planned: float, steps: Sequence[Open]) -> Point:
    together = histogram.merged(each.histogram for each in steps)
    slowest = max(each.max_ms for each in steps)
    # A bucket's end may lie behind the slowest.
    half, most, tail, beyond = (
        min(histogram.quantile(together, share), slowest) for share in (0.5, 0.9, 0.99, 0.999)
    )
    tails = spread([each.p99_ms for each in steps])
    assert tails is not None
    return Point(
        planned,
        middle(each.rate for each in steps),
        len(steps),
        half,
        most,
        tail,
        beyond,
        slowest,
        tails,
        sum(each.late for each in steps),
    )
