"""The tables of streams in Markdown, from their raw results alone."""

from collections.abc import Iterator, Mapping, Sequence

from bench.figures import ratios, spread
from bench.live.musts import BESIDES, BOUNDS, MUSTS, Bound
from bench.live.scenarios import LIVE
from bench.report import (
    MUST_HEAD,
    Rounds,
    by_round,
    compared,
    doubts,
    middle,
    section,
    span,
    table,
    verdict,
)
from bench.results import Cell, Figures, Plan

_MIB = 1024 * 1024
_VERIFIED = (
    "Every byte of every follower was compared: each got each reading, once, in order. The writer has two "
    "writes under way; Tidegate acknowledges after its durable commit, the others keep nothing."
)
_FAN_OUT_HEAD = (
    "scenario",
    "target",
    "per second (min - max)",
    "of Tidegate",
    "bytes each",
    "readings/commit",
    "server core",
    "load core",
)
_LATENCY_HEAD = (
    "cell",
    "deliveries/s",
    "p50 ms",
    "p99 ms (min - max)",
    "p99.9 ms",
    "disk p99 ms",
    "lag p99 ms",
    "server core",
    "memory grew MiB",
)
_MEMORY_HEAD = ("scenario", "target", "KiB each (min - max)")


def render(plan: Plan, cells: Sequence[Cell], title: Mapping[str, str]) -> str:
    """The tables of streams; `cells`: the last word on each, `title`: of the targets, by name."""
    figures = {name: by_round(cells, name) for name in plan.cells}
    done = max((cell.round for cell in cells), default=0)
    musts = [*compared(figures, MUSTS), *_bounds(figures), *_besides(figures)]
    parts = [
        f"## Streams: {done} of {plan.rounds} rounds of {plan.seconds} s, seed {plan.seed}",
        section("Musts", table(MUST_HEAD, musts)),
        section("Throughput", table(_FAN_OUT_HEAD, _fan_outs(figures, title)), _VERIFIED),
        section(
            "Latency, from when a write was due until a follower has it",
            table(_LATENCY_HEAD, _latencies(figures)),
        ),
        section("Memory of an idle follower (PSS)", table(_MEMORY_HEAD, _memory(figures, title))),
        section("Doubts", "\n".join(f"- {doubt}" for doubt in doubts(cells))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bounds(figures: Mapping[str, Rounds]) -> Iterator[tuple[str, ...]]:
    for bound in BOUNDS:
        rounds = figures.get(bound.cell, {})
        found = spread([value for each in rounds.values() if (value := _value(bound, each)) is not None])
        if found is None:
            continue
        if bound.what == "rate":
            wanted, shown = f">= {bound.limit:,.0f}/s", span(found, ",.0f", "/s")
            by = found.median / bound.limit - 1
        elif bound.what == "p99":
            sync = middle(rounds, lambda each: each.sync_p99_ms)
            wanted, shown = f"p99 <= {bound.limit} ms + the disk's {sync:.2f}", span(found, ".2f", " ms")
            by = 1 - found.median / (bound.limit + sync)
        else:
            wanted, shown = f"<= {bound.limit} KiB", span(found, ".1f", " KiB")
            by = 1 - found.median / bound.limit
        yield bound.cell, "", wanted, shown, verdict(by, bound.stretch)


def _value(bound: Bound, figures: Figures) -> float | None:
    if bound.what == "rate":
        return figures.rate
    if bound.what == "p99":
        return figures.open.p99_ms if figures.open is not None else None
    return figures.live.follower_kib if figures.live is not None else None


def _besides(figures: Mapping[str, Rounds]) -> Iterator[tuple[str, ...]]:
    for beside in BESIDES:
        ours, theirs = figures.get(beside.cell, {}), figures.get(beside.against, {})
        found = spread(ratios(_tails(ours), _tails(theirs)))
        if found is not None:
            wanted, shown = f"p99 <= {beside.factor} x", span(found, ".2f", " x")
            yield beside.cell, beside.against, wanted, shown, verdict(1 - found.median / beside.factor, False)
        grown = spread([_growth(ours[n]) - _growth(theirs[n]) for n in sorted(ours) if n in theirs])
        if grown is not None:
            wanted = f"memory <= +{beside.growth / _MIB:.0f} MiB"
            shown = f"{grown.median / _MIB:+.1f} MiB ({grown.least / _MIB:+.1f} - {grown.most / _MIB:+.1f})"
            yield beside.cell, beside.against, wanted, shown, verdict(1 - grown.median / beside.growth, False)


def _tails(rounds: Rounds) -> dict[int, float]:
    return {number: each.open.p99_ms for number, each in rounds.items() if each.open is not None}


def _growth(figures: Figures) -> int:
    return figures.live.growth if figures.live is not None else 0


def _order(name: str) -> tuple[int, str]:
    scenario, _, target = name.partition("@")
    known = list(LIVE)
    return known.index(scenario) if scenario in known else len(known), target


def _fan_outs(figures: Mapping[str, Rounds], title: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    for name in sorted(figures, key=_order):
        scenario, _, target = name.partition("@")
        known = LIVE.get(scenario)
        if known is None or known.kind == "idle" or known.shape.rate:
            continue
        rounds = figures[name]
        found = spread([each.rate for each in rounds.values()])
        if found is None:
            yield scenario, title.get(target, target), *["void", "", "", "", "", ""]
            continue
        house = {number: each.rate for number, each in figures.get(f"{scenario}@tidegate", {}).items()}
        share = spread(ratios({number: each.rate for number, each in rounds.items()}, house))
        size = middle(rounds, lambda each: each.live.size if each.live else 0.0)
        commit = middle(rounds, lambda each: each.live.commit_readings if each.live else 0.0)
        yield (
            scenario,
            title.get(target, target),
            span(found, ",.0f"),
            span(share, ".2f", " x") if share else "",
            f"{size:.0f}" if size else "",
            f"{commit:.2f}" if commit else "",
            f"{middle(rounds, _server_core):.0%}",
            f"{middle(rounds, _load_core):.0%}",
        )


def _server_core(figures: Figures) -> float:
    return figures.cores.server if figures.cores else 0.0


def _load_core(figures: Figures) -> float:
    return figures.cores.load if figures.cores else 0.0


def _latencies(figures: Mapping[str, Rounds]) -> Iterator[tuple[str, ...]]:
    for name in sorted(figures, key=_order):
        rounds = figures[name]
        opened = [each.open for each in rounds.values() if each.open is not None]
        tail = spread([each.p99_ms for each in opened])
        if tail is None:
            continue

        half, beyond, lag, rate = (
            spread(values)
            for values in (
                [each.p50_ms for each in opened],
                [each.p999_ms for each in opened],
                [each.lag_p99_ms for each in opened],
                [each.rate for each in opened],
            )
        )
        assert half is not None
        assert beyond is not None
        assert lag is not None
        assert rate is not None
        yield (
            name,
            f"{rate.median:,.0f}",
            f"{half.median:.2f}",
            span(tail, ".2f"),
            f"{beyond.median:.2f}",
            f"{middle(rounds, lambda each: each.sync_p99_ms):.2f}",
            f"{lag.median:.3f}",
            f"{middle(rounds, _server_core):.0%}",
            f"{middle(rounds, _growth) / _MIB:.1f}",
        )


def _memory(figures: Mapping[str, Rounds], title: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    for name in sorted(figures, key=_order):
        scenario, _, target = name.partition("@")
        found = spread([each.live.follower_kib for each in figures[name].values() if each.live is not None])
        if found is not None and LIVE[scenario].kind == "idle":
            yield scenario, title.get(target, target), span(found, ".1f")
