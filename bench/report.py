"""The tables of requests in Markdown: what must be reached, every cell, what is in doubt."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from bench.environment import Cores
from bench.figures import Spread, ratios, spread
from bench.musts import COSTS, DEADLINES, L1, MUSTS, Cost, Must
from bench.results import Cell, Figures, Plan
from bench.scenarios import SCENARIOS

# From this on the load generator, and not the server, may have been the limit.
LOADED = 0.97

LIMITS = (
    "One machine with two cores: the server has one, the load generator the other, over loopback. A database "
    "runs on the generator's core; what it takes there is shown. "
    "Compare ratios, which are taken within each round; absolute figures are this machine's."
)
_OVERLOAD = "p99 is that of a closed loop with all connections busy: an overload's, not a service's."


def render(plan: Plan, cells: Sequence[Cell], titles: Mapping[str, str]) -> str:
    """The tables of requests; `cells`: the last word on each, `titles`: of the targets, by name."""
    figures = {name: by_round(cells, name) for name in plan.cells}
    parts = [
        section("Musts", table(MUST_HEAD, _musts(figures))),
        section("Cells", table(_CELL_HEAD, _cells(figures, titles)), _OVERLOAD),
        section("Open loop at half of the own maximum", table(_OPEN_HEAD, _opens(figures))),
        section("Doubts", "\n".join(f"- {doubt}" for doubt in doubts(cells))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def is_void(plan: Plan, cells: Sequence[Cell]) -> bool:
    """Whether something of the plan was not measured, or does not count."""
    good = sum(1 for cell in cells if not cell.void)
    return good < plan.rounds * len(plan.cells)


Rounds = Mapping[int, Figures]
_UNMEASURED = "NOT MEASURED"
MUST_HEAD = ("what", "beside", "wanted", "found", "")
_CELL_HEAD = ("scenario", "target", "per second (min - max)", "of L1", "p99 ms", "server core", "load core")
_OPEN_HEAD = ("cell", "planned/s", "p50 ms", "p99 ms (min - max)", "p99.9 ms", "disk p99 ms", "lag p99 ms")


def by_round(cells: Iterable[Cell], name: str) -> Rounds:
    """What a cell found, by round."""
    return {cell.round: cell.figures for cell in cells if cell.name == name and cell.figures is not None}


def rates(rounds: Rounds) -> dict[int, float]:
    """The rate of each round."""
    return {number: figures.rate for number, figures in rounds.items()}


def _musts(figures: Mapping[str, Rounds]) -> list[tuple[str, ...]]:
    return [*compared(figures, MUSTS), *_costs(figures, COSTS), *_deadlines(figures)]


def compared(figures: Mapping[str, Rounds], musts: Iterable[Must]) -> Iterator[tuple[str, ...]]:
    """A line for each of the musts whose two cells are in the plan."""
    for must in musts:
        wanted = f">= {must.factor:.2f} x"
        if (found := _ratio(figures, must, lambda each: each.rate)) is not None:
            by = found.median / must.factor - 1
            yield must.cell, must.against, wanted, span(found, ".2f", " x"), verdict(by, must.stretch)
        elif must.cell in figures and must.against in figures:
            yield must.cell, must.against, wanted, "", _UNMEASURED


def _costs(figures: Mapping[str, Rounds], costs: Iterable[Cost]) -> Iterator[tuple[str, ...]]:
    for cost in costs:
        wanted = f"CPU of each <= {cost.factor:.2f} x"
        if (found := _ratio(figures, cost, lambda each: each.cpu_us)) is not None:
            by = 1 - found.median / cost.factor
            yield cost.cell, cost.against, wanted, span(found, ".2f", " x"), verdict(by, cost.stretch)
        elif cost.cell in figures and cost.against in figures:
            yield cost.cell, cost.against, wanted, "", _UNMEASURED


def _ratio(
    figures: Mapping[str, Rounds], must: Must | Cost, pick: Callable[[Figures], float]
) -> Spread | None:
    """Of what its two cells found, within rounds; None without a round that has both."""
    ours, theirs = (
        {number: pick(each) for number, each in figures.get(name, {}).items()}
        for name in (must.cell, must.against)
    )
    return spread(ratios(ours, theirs))


def _deadlines(figures: Mapping[str, Rounds]) -> Iterator[tuple[str, ...]]:
    for deadline in DEADLINES:
        rounds = figures.get(deadline.cell, {})
        found = spread([each.open.p99_ms for each in rounds.values() if each.open is not None])
        sync = spread([each.sync_p99_ms for each in rounds.values() if each.sync_p99_ms])
        if found is not None:
            wanted, most = f"p99 <= {deadline.milliseconds} ms", deadline.milliseconds
            if sync is not None:
                wanted, most = f"{wanted} + the disk's {sync.median:.2f}", most + sync.median
            by = 1 - found.median / most
            yield deadline.cell, "", wanted, span(found, ".2f", " ms"), verdict(by, deadline.stretch)


def verdict(by: float, stretch: bool) -> str:
    """Whether something was reached, and by what share."""
    word = "met" if by >= 0 else "missed"
    return f"{'stretch ' if stretch else ''}{word if by >= 0 or stretch else word.upper()} by {abs(by):.0%}"


def _cells(figures: Mapping[str, Rounds], titles: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    floor = rates(figures.get(L1, {}))
    for name in sorted(figures, key=_order):
        scenario, _, target = name.partition("@")
        found = spread(list(rates(figures[name]).values()))
        title = titles.get(target, target)
        if found is None:
            yield scenario, title, "void", "", "", "", ""
            continue
        of_floor = spread(ratios(rates(figures[name]), floor)) if _counts_requests(scenario) else None
        tail = middle(figures[name], lambda each: each.p99_ms)
        yield (
            scenario,
            title,
            span(found, ",.0f"),
            span(of_floor, ".2f", " x") if of_floor else "",
            f"{tail:.1f}" if tail else "",
            f"{middle(figures[name], lambda each: each.cores.server if each.cores else 0.0):.0%}",
            f"{middle(figures[name], lambda each: each.cores.load if each.cores else 0.0):.0%}",
        )


def _order(name: str) -> tuple[int, str]:
    scenario, _, target = name.partition("@")
    known = list(SCENARIOS)
    return known.index(scenario) if scenario in known else len(known), target


def _counts_requests(scenario: str) -> bool:
    known = SCENARIOS.get(scenario)
    return known is not None and known.readings == 1 and known.load != "ceiling"


def _opens(figures: Mapping[str, Rounds]) -> Iterator[tuple[str, ...]]:
    for name in sorted(figures, key=_order):
        opened = [each.open for each in figures[name].values() if each.open is not None]
        tail = spread([each.p99_ms for each in opened])
        if tail is None:
            continue
        planned = statistics.median(each.planned for each in opened)
        half = statistics.median(each.p50_ms for each in opened)
        beyond = statistics.median(each.p999_ms for each in opened)
        lag = statistics.median(each.lag_p99_ms for each in opened)
        sync = middle(figures[name], lambda each: each.sync_p99_ms)
        yield (
            name,
            f"{planned:,.0f}",
            f"{half:.2f}",
            span(tail, ".2f"),
            f"{beyond:.2f}",
            f"{sync:.2f}" if sync else "",
            f"{lag:.3f}",
        )


def doubts(cells: Iterable[Cell]) -> Iterator[str]:
    """What a reader has to know before believing a figure."""
    for cell in cells:
        where = f"round {cell.round}, {cell.name}"
        figures = cell.figures
        if cell.void:
            yield f"{where} is void: {cell.void}"
        if figures is None:
            continue
        if figures.cores is not None and figures.cores.disturbed:
            yield f"{where}: {disturbance(figures.cores)}"
        if figures.cores is not None and figures.cores.load > LOADED > figures.cores.server:
            yield f"{where}: the load generator was busier than the server, which may be faster than shown"
        opened = figures.open
        if opened is not None and opened.late:
            yield (
                f"{where}: the open loop reached {opened.rate:,.0f}/s of {opened.planned:,.0f}/s, "
                f"its client was late by {opened.lag_p99_ms:.2f} ms itself (p99)"
            )


def disturbance(cores: Cores) -> str:
    """What others took while something was measured, in words."""
    return f"others took {cores.foreign:.0%} of a core, the host {cores.steal:.0%} of the time"


def middle(rounds: Rounds, pick: Callable[[Figures], float]) -> float:
    """The median of something over the rounds; 0 of none."""
    found = spread([pick(figures) for figures in rounds.values()])
    return found.median if found else 0.0


def span(found: Spread, form: str, unit: str = "") -> str:
    """A median with the least and the greatest beside it."""
    return f"{found.median:{form}}{unit} ({found.least:{form}} - {found.most:{form}})"


def section(title: str, content: str, note: str = "") -> str:
    """A part of a report; empty without content."""
    if not content:
        return ""
    return f"## {title}\n\n{content}" + (f"\n\n{note}" if note else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as text; empty without rows."""
    lines = [head, *rows]
    if len(lines) == 1:
        return ""
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([texts[0], rule, *texts[1:]])
