"""`python -m bench.plots DIRECTORY` draws the plots of a run as SVG files that are the same each time.

Throughput of each scenario with every round in it, what Tidegate does in full beside the others' hello,
latency against offered load, what each target reaches of the floor, memory and CPU. Tidegate has a colour of
its own everywhere.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import LogLocator

from bench import everything
from bench.digest import FLOOR, Digest, Kind, Measured, Point, digest, middle
from bench.plans import HOUSE, is_floor, is_house
from bench.results import Results

HOUSE_COLOUR, PEER_COLOUR, FLOOR_COLOUR = "#0b7285", "#adb5bd", "#e9ecef"
# Of the gate on another database.
SECOND_COLOUR = "#74b8c4"
DOT_COLOUR, TEXT_COLOUR = "#343a40", "#212529"
# Curves of others, told apart by anybody (Okabe and Ito 2008).
CURVES = ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2", "#999999", "#f0e442")
# Ids in the files depend on nothing but what stands there (svg.hashsalt).
STYLE = Path(__file__).parent / "web" / "plots.mplstyle"
_BAR, _MARGIN = 0.26, 1.1


def draw(results: Results, home: Path) -> list[Path]:
    """All plots of a run into a directory; the files."""
    with context(STYLE):
        return _draw(results, home)


def _draw(results: Results, home: Path) -> list[Path]:
    run = digest(results)
    home.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    for kind in run.kinds:
        cells = run.of(kind.name)
        if cells:
            figures[f"throughput-{kind.name}"] = throughput(run, kind, cells)
        if curved := [cell for cell in cells if cell.curve]:
            figures[f"latency-{kind.name}"] = latency(run, kind, curved)
    more = {
        "everything-on": everything_on(run),
        "floor": of_floor(run),
        "memory": memory(run),
        "cpu": cpu(run),
    }
    figures |= {name: figure for name, figure in more.items() if figure is not None}
    for old in home.glob("*.svg"):
        old.unlink()
    return [_save(figure, home / f"{name}.svg") for name, figure in figures.items()]


def throughput(run: Digest, kind: Kind, cells: Sequence[Measured]) -> Figure:
    """Bars of medians, the best on top; a line from the least to the greatest, a dot for each round."""
    less = ", less is better" if kind.lower else ""
    figure, axes = _sheet(len(cells), f"{kind.title}\n{kind.unit}{less}")
    _bars(axes, cells)
    _names(axes, run, cells)
    return figure


def everything_on(run: Digest) -> Figure | None:
    """What the gate does in full among the others' hello, floors left out; None where one of both lacks."""
    ours = [cell for name in everything.OURS if (cell := run.house(name)) is not None]
    others = [cell for cell in everything.hellos(run) if not is_floor(cell.target)]
    if not ours or not others:
        return None
    cells = sorted([*ours, *others], key=lambda cell: -middle(cell.rates.values()))
    figure, axes = _sheet(
        len(cells),
        "Tidegate with everything on, beside what others reach with a bare hello: requests/s, one core each\n"
        "write: JWT, limit, validation, durable commit · latest: JWT, limit · hello: a tiny JSON, no checks",
    )
    _bars(axes, cells)
    _names(axes, run, cells, lambda cell: f"{run.titles[cell.target]}: {cell.scenario}")
    return figure


def _bars(axes: Axes, cells: Sequence[Measured]) -> None:
    for place, cell in enumerate(cells):
        rates = sorted(cell.rates.values())
        axes.barh(place, middle(rates), color=_colour(cell), height=0.7)
        axes.plot([rates[0], rates[-1]], [place, place], color=DOT_COLOUR, linewidth=1)
        axes.plot(rates, [place] * len(rates), ".", color=DOT_COLOUR, markersize=4)
        axes.annotate(
            f"{middle(rates):,.0f}",
            (rates[-1], place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_xlim(0, max(max(cell.rates.values()) for cell in cells) * 1.15)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def latency(run: Digest, kind: Kind, cells: Sequence[Measured]) -> Figure:
    """p50 and p99 against offered load, both on logarithmic axes; the gate is drawn last, on top.

    Of the others those that do most, as many as there are colours; the page has them all.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    picks: dict[str, Callable[[Point], float]] = {"p50": lambda p: p.p50_ms, "p99": lambda p: p.p99_ms}
    others = [cell for cell in cells if not is_house(cell.target)]
    colours = {cell.target: colour for cell, colour in zip(others, CURVES, strict=False)}
    house = [cell for cell in cells if is_house(cell.target)]
    shown = [*others[: len(colours)], *sorted(house, key=lambda each: each.target == HOUSE)]
    for axes, (name, pick) in zip(both, picks.items(), strict=True):
        for cell in shown:
            colour = colours.get(cell.target) or _colour(cell)
            _curve(axes, cell.curve, [pick(each) for each in cell.curve], run, cell, colour)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("offered, requests/s")
        axes.set_title(name, loc="left")
        axes.grid(visible=True, which="major", color=FLOOR_COLOUR)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
        axes.set_xticks(sorted({point.planned for cell in shown for point in cell.curve}))
        axes.tick_params(axis="x", labelrotation=45)
    both[0].set_ylabel("ms, from when a request was due")
    fastest = f" (the {len(colours)} fastest of {len(others)} others)" if len(colours) < len(others) else ""
    figure.suptitle(kind.title + fastest, x=0.01, ha="left", fontsize=10)
    handles, labels = both[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _curve(
    axes: Axes,
    points: Sequence[Point],
    values: Sequence[float],
    run: Digest,
    cell: Measured,
    colour: str,
) -> None:
    house = is_house(cell.target)
    axes.plot(
        [each.planned for each in points],
        values,
        marker="o",
        markersize=4 if house else 3,
        linewidth=2.2 if house else 1.2,
        color=colour,
        label=run.titles[cell.target],
    )


def of_floor(run: Digest) -> Figure | None:
    """What the gate reaches of the floor in every scenario of requests; None without a floor."""
    kinds = [kind for kind in run.kinds if not (kind.lower or kind.stream) and kind.unit == "requests/s"]
    rows = [
        (kind.name, found)
        for kind in kinds
        if (found := run.ratio(f"{kind.name}@{HOUSE}", FLOOR)) is not None
    ]
    if not rows:
        return None
    figure, axes = _sheet(len(rows), f"Tidegate, as a share of {run.titles[FLOOR.partition('@')[2]]}")
    for place, (_, found) in enumerate(rows):
        axes.barh(place, found.median, color=HOUSE_COLOUR, height=0.7)
        axes.plot([found.least, found.most], [place, place], color=DOT_COLOUR, linewidth=1)
        axes.annotate(
            f"{found.median:.2f} x",
            (found.most, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.axvline(1, color=PEER_COLOUR, linewidth=1)
    axes.set_xlim(0, 1.1)
    return figure


def memory(run: Digest) -> Figure | None:
    """Memory idle and after the load, of the scenario that most take part in; None where none was taken."""
    cells = _most(run, lambda cell: bool(cell.loaded_mib), lambda cell: cell.loaded_mib)
    if not cells:
        return None
    figure, axes = _sheet(len(cells), f"memory (PSS), MiB: idle, and after the load of {cells[0].scenario}")
    for place, cell in enumerate(cells):
        axes.barh(place, cell.loaded_mib, color=_colour(cell), height=0.7)
        axes.plot([cell.idle_mib], [place], "|", color=DOT_COLOUR, markersize=9)
        _label(axes, cell.loaded_mib, place, f"{cell.idle_mib:.0f} → {cell.loaded_mib:.0f}")
    _names(axes, run, cells)
    axes.set_xlim(0, max(cell.loaded_mib for cell in cells) * 1.2)
    return figure


def cpu(run: Digest) -> Figure | None:
    """Microseconds of CPU for each request, the database's behind; None where none was taken."""
    cells = _most(run, lambda cell: bool(cell.cpu_us), lambda cell: cell.cpu_us + cell.beside_us)
    if not cells:
        return None
    figure, axes = _sheet(len(cells), f"CPU per request of {cells[0].scenario}, µs (hatched: database)")
    for place, cell in enumerate(cells):
        axes.barh(place, cell.cpu_us, color=_colour(cell), height=0.7)
        if cell.beside_us:
            axes.barh(
                place,
                cell.beside_us,
                left=cell.cpu_us,
                color=FLOOR_COLOUR,
                edgecolor=PEER_COLOUR,
                hatch="////",
                height=0.7,
            )
        _label(axes, cell.cpu_us + cell.beside_us, place, f"{cell.cpu_us + cell.beside_us:,.0f}")
    _names(axes, run, cells)
    axes.set_xlim(0, max(cell.cpu_us + cell.beside_us for cell in cells) * 1.15)
    return figure


def _most(run: Digest, has: Callable[[Measured], bool], cost: Callable[[Measured], float]) -> list[Measured]:
    """The cells of the scenario of requests in which most targets, the gate among them, have something."""
    best: list[Measured] = []
    for kind in run.kinds:
        cells = [cell for cell in run.of(kind.name) if has(cell) and not kind.stream]
        if len(cells) > len(best) and any(cell.target == HOUSE for cell in cells):
            best = cells
    return sorted(best, key=cost)


def _sheet(bars: int, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, _MARGIN + _BAR * bars), layout="constrained")
    axes = figure.subplots()
    # Over the names too: a title of the axes would be cut off.
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    axes.set_ylim(bars - 0.4, -0.6)
    return figure, axes


def _names(
    axes: Axes, run: Digest, cells: Sequence[Measured], name: Callable[[Measured], str] | None = None
) -> None:
    axes.set_yticks(range(len(cells)), [name(cell) if name else run.titles[cell.target] for cell in cells])
    axes.tick_params(axis="y", length=0)
    for label, cell in zip(axes.get_yticklabels(), cells, strict=True):
        if is_house(cell.target):
            label.set_fontweight("bold")


def _label(axes: Axes, value: float, place: float, text: str) -> None:
    axes.annotate(text, (value, place), xytext=(5, 0), textcoords="offset points", va="center")


def _colour(cell: Measured) -> str:
    if cell.target == HOUSE:
        return HOUSE_COLOUR
    if is_house(cell.target):
        return SECOND_COLOUR
    return FLOOR_COLOUR if is_floor(cell.target) else PEER_COLOUR


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m bench.plots", description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    drawn = draw(Results.read(directory), directory / "plots")
    print(f"{len(drawn)} plots in {directory / 'plots'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
