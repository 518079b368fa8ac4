"""The page of a run: one HTML file with everything in it, where a reader picks peers and scenarios."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench import beaten, everything, report
from bench.digest import FLOOR, ceilings, digest
from bench.plans import HOUSE, HOUSE_ON_POSTGRESQL, is_floor, is_house
from bench.results import Results

WEB = Path(__file__).parent / "web"
METHOD = (
    "Each measurement is a fresh process that is verified first: statuses, headers, bodies, bad tokens, bad "
    "values, rows that are really in its database; one wrong answer voids it.",
    "Every round measures everything once, in an order of its own; ratios are taken within rounds, so that a "
    "slow minute of the machine is slow for both.",
    "Throughput is a closed loop of 64 connections. Latency is an open loop at fixed rates, counted from "
    "when each request was due, whether or not the server kept up.",
    "CPU is that of all processes of a target; memory is its share (PSS).",
)


def render(results: Results) -> str:
    """The whole page."""
    parts = {
        "NAME": _text(results.directory.name),
        "STYLE": (WEB / "page.css").read_text().strip(),
        "SCRIPT": (WEB / "page.js").read_text().strip(),
        "DATA": _data(results),
    }
    page = (WEB / "page.html").read_text()
    for name, text in parts.items():
        page = page.replace(f"@@{name}@@", text)
    return page


def _data(results: Results) -> str:
    """What the script draws from, as JSON that ends no element."""
    run = digest(results)
    data = {
        "house": HOUSE,
        "second": HOUSE_ON_POSTGRESQL,
        "floor": FLOOR,
        "floors": [name for name in run.titles if is_floor(name)],
        "houses": [name for name in run.titles if is_house(name)],
        "limits": report.LIMITS,
        "plan": run.plan,
        "environment": {
            name: value for name, value in results.environment.items() if value not in ("", None)
        },
        "kinds": [kind for kind in run.kinds if run.of(kind.name)],
        "titles": dict(sorted(run.titles.items(), key=lambda item: (item[0] != HOUSE, item[1].lower()))),
        "facts": results.facts,
        "cells": [
            {**msgspec.structs.asdict(cell), "name": cell.name, "rates": sorted(cell.rates.items())}
            for cell in run.cells.values()
        ],
        "wins": beaten.wins(run),
        "winsOnPostgresql": beaten.wins(run, HOUSE_ON_POSTGRESQL),
        "told": list(everything.told(run)),
        "greetings": everything.greetings(run),
        "method": [*METHOD, *(f"At most: {line}." for line in ceilings(run)), *_canary(results)],
        "doubts": list(report.doubts(results.final())),
    }
    # "<" may begin a tag, and these two end a line in a script.
    return (
        msgspec.json.encode(data)
        .decode()
        .replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _canary(results: Results) -> Iterator[str]:
    if results.canaries:
        rates = sorted(cell.figures.rate for cell in results.canaries if cell.figures is not None)
        if rates:
            yield (
                f"A canary ({results.plan.canary}) was asked {len(rates)} times between the others: "
                f"{rates[0]:,.0f} to {rates[-1]:,.0f} per second."
            )


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
