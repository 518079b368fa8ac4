"""The summary of a run in Markdown: limits first, then where the gate is beaten, then all tables."""

from collections.abc import Iterator, Sequence

from bench import beaten, canary, everything, report
from bench.digest import Digest, Measured, ceilings, digest
from bench.live import report as live
from bench.live.scenarios import LIVE
from bench.plans import HOUSE, HOUSE_ON_POSTGRESQL
from bench.report import section, span, table
from bench.results import Cell, Plan, Results

_WIN_HEAD = ("scenario", "who", "what", "better by", "Tidegate", "they", "rounds")
_COST_HEAD = ("scenario", "target", "CPU us", "database us", "MiB idle", "MiB loaded", "start ms")
_CURVE_HEAD = ("scenario", "target", "offered/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "p99 of rounds")
_WIN_NOTE = "Of those who take less CPU or memory for the same the clearest, and how many more there are."
_EVERYTHING_NOTE = (
    "`write`: token, limit, validation, 200 after a durable commit. `latest`: token, limit, from memory. "
    "`hello`: a tiny JSON, nothing is checked."
)
_RATIO_NOTE = (
    "Ratios are medians of the rounds' ratios, in brackets the least and the greatest. Floors are no "
    "servers: they do less than the contract asks, and show what is to be had."
)


def render(results: Results) -> str:
    """The whole summary, as far as the run got."""
    plan, final, run = results.plan, results.final(), digest(results)
    requests, streams = _parts(plan)
    parts = [
        f"# {results.directory.name}",
        _head(results),
        section("Where Tidegate is beaten", _beaten(run, HOUSE)),
        section("Where Tidegate on PostgreSQL is beaten", _beaten(run, HOUSE_ON_POSTGRESQL)),
        section("Everything switched on, beside everybody's hello", _everything(run), _EVERYTHING_NOTE),
        section("Beside Tidegate", _beside(run, HOUSE), _RATIO_NOTE),
        section("Beside Tidegate on PostgreSQL", _beside(run, HOUSE_ON_POSTGRESQL)),
        section("Latency at fixed offered loads", table(_CURVE_HEAD, _curves(run))),
        section("CPU and memory", table(_COST_HEAD, _costs(run))),
        section("What the generators reach", "\n".join(f"- {line}" for line in ceilings(run))),
        section("The machine", _machine(results)),
        section("Not measured", "\n".join(f"- {line}" for line in _missing(results))),
    ]
    titles = results.titles()
    if requests.cells:
        parts.append(report.render(requests, _of(final, requests), titles).strip())
    if streams.cells:
        parts.append(live.render(streams, _of(final, streams), titles).strip())
    return "\n\n".join(part for part in parts if part) + "\n"


def _parts(plan: Plan) -> tuple[Plan, Plan]:
    """The plan's requests, and its streams."""
    streams = [name for name in plan.cells if name.partition("@")[0] in LIVE]
    requests = [name for name in plan.cells if name not in streams]
    return (
        Plan(requests, plan.rounds, plan.seconds, plan.warm_up, plan.seed, plan.curves, plan.canary),
        Plan(streams, plan.rounds, plan.seconds, plan.warm_up, plan.seed),
    )


def _of(cells: Sequence[Cell], plan: Plan) -> list[Cell]:
    names = set(plan.cells)
    return [cell for cell in cells if cell.name in names]


def _head(results: Results) -> str:
    env, plan = results.environment, results.plan
    when = f"{env.get('started', 'at an unknown time')}, commit {env.get('commit', 'unknown')}"
    what = f"{env.get('cpu', 'an unknown CPU')}, {env.get('cores', '?')} cores, {env.get('kernel', '')}"
    good = sum(1 for cell in results.final() if not cell.void)
    return (
        f"{report.LIMITS}\n\n"
        f"{when}{', with local changes' if env.get('dirty') else ''}; {what}. {good} of "
        f"{plan.rounds * len(plan.cells)} measurements count: {plan.rounds} rounds of {plan.seconds} s after "
        f"{plan.warm_up} s of warm-up, seed {plan.seed}."
    )


def _beaten(run: Digest, target: str) -> str:
    """Empty only where the gate took part in nothing."""
    if not any(run.house(kind.name, target) for kind in run.kinds):
        return ""
    if not (found := beaten.wins(run, target)):
        return "Nowhere in this run."
    rows = [
        (
            win.scenario,
            run.titles[win.target] + win.remark,
            win.what,
            f"{win.factor:.2f} x",
            win.ours,
            win.theirs,
            f"{win.won} of {win.rounds}" if win.rounds else "medians",
        )
        for win in found
    ]
    return f"{table(_WIN_HEAD, rows)}\n\n{_WIN_NOTE}"


def _everything(run: Digest) -> str:
    """What Tidegate does in full, by what the others reach without any checks."""
    rows = [
        (
            run.titles[each.target] + (" (floor)" if each.floor else ""),
            span(each.rate, ",.0f"),
            *(
                span(each.factors[name], ".2f", " x") if name in each.factors else ""
                for name in everything.OURS
            ),
        )
        for each in everything.greetings(run)
    ]
    told = "\n".join(f"- {line}" for line in everything.told(run))
    head = ("hello of", "hello/s", *(f"Tidegate's {name} by it" for name in everything.OURS))
    return "\n\n".join(part for part in (told, table(head, rows)) if part)


def _beside(run: Digest, target: str) -> str:
    """What Tidegate reaches by what each other target does, on the same scenario."""
    kinds = [kind for kind in run.kinds if run.house(kind.name, target) and len(run.of(kind.name)) > 1]
    peers = list(dict.fromkeys(cell.target for kind in kinds for cell in run.of(kind.name)))
    rows = []
    for peer in peers:
        if peer != target:
            found = [run.ratio(f"{kind.name}@{target}", f"{kind.name}@{peer}") for kind in kinds]
            rows.append((run.titles[peer], *(span(each, ".2f", " x") if each else "" for each in found)))
    return table((f"{run.titles[target]} by", *(kind.name for kind in kinds)), rows) if kinds else ""


def _curves(run: Digest) -> Iterator[tuple[str, ...]]:
    for cell in _ordered(run):
        for point in cell.curve:
            tail = span(point.p99, ".2f")
            late = f", client late in {point.late}" if point.late else ""
            figures = (point.p50_ms, point.p99_ms, point.p999_ms, point.max_ms)
            yield (
                cell.scenario,
                run.titles[cell.target],
                f"{point.planned:,.0f}",
                *(f"{each:.2f}" for each in figures),
                tail + late,
            )


def _costs(run: Digest) -> Iterator[tuple[str, ...]]:
    for cell in _ordered(run):
        if cell.loaded_mib:
            yield (
                cell.scenario,
                run.titles[cell.target],
                f"{cell.cpu_us:,.1f}",
                f"{cell.beside_us:,.1f}" if cell.beside_us else "",
                f"{cell.idle_mib:.0f}",
                f"{cell.loaded_mib:.0f}",
                f"{cell.start_ms:,.0f}",
            )


def _ordered(run: Digest) -> Iterator[Measured]:
    for kind in run.kinds:
        yield from run.of(kind.name)


def _machine(results: Results) -> str:
    """What the canary says of it."""
    songs = [each for each in results.canaries if each.figures is not None]
    if not songs:
        return ""
    usual = canary.norm(songs)
    off = [each for each in songs if canary.is_off(each, songs)]
    doubtful = canary.doubtful(results.final(), songs)
    least, most = min(map(canary.rate, songs)) / usual, max(map(canary.rate, songs)) / usual
    return (
        f"The canary ({results.plan.canary}, 1 s) was asked {len(songs)} times: {usual:,.0f}/s, between "
        f"{least - 1:+.1%} and {most - 1:+.1%} of it. It was off by more than {canary.OFF:.0%} {len(off)} "
        f"times; {len(doubtful)} of {len(results.final())} measurements stand beside such a one."
    )


def _missing(results: Results) -> Iterator[str]:
    for name, facts in sorted(results.facts.items()):
        if facts.broken:
            yield f"{name}: {facts.broken}"
        for scenario, why in sorted(facts.cannot.items()):
            yield f"{scenario}@{name}: {why}"
