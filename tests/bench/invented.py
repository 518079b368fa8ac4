"""Runs that nobody measured, with figures that are known."""

import random
from pathlib import Path

from bench.environment import Cores
from bench.load import curve
from bench.load.histogram import counted
from bench.load.open_loop import Open
from bench.results import Cell, Facts, Figures, Plan, Results

TITLES = {
    "tidegate": "Tidegate",
    "raw_httptools": "L1: uvloop + httptools",
    "aiohttp_asyncpg": "aiohttp + asyncpg",
    "quick_one": "Quick <one> & co.",
}
# Per second, and microseconds of CPU, by cell. Tidegate is beaten in `latest`, and by its floor.
RATES = {
    "hello@raw_httptools": 100_000.0,
    "hello@aiohttp_asyncpg": 25_000.0,
    "latest@tidegate": 60_000.0,
    "latest@aiohttp_asyncpg": 10_000.0,
    "latest@quick_one": 66_000.0,
    "write@tidegate": 30_000.0,
    "write@aiohttp_asyncpg": 3_000.0,
}
CURVES = ["latest", "write"]


def opened(rate: float, milliseconds: float, *, late: bool = False) -> Open:
    """An open loop at a rate, all of whose requests took about so long."""
    took = [milliseconds / 1000 * (1 + n / 1000) for n in range(100)]
    return Open(
        rate,
        rate,
        100,
        milliseconds,
        milliseconds,
        took[-1] * 1000,
        took[-1] * 1000,
        took[-1] * 1000,
        0.9 if late else 0.01,
        0,
        0.5,
        counted(took),
    )


def figures(name: str, rate: float) -> Figures:
    """What a cell found that reaches a rate: slow by as much as its rate is low."""
    scenario = name.partition("@")[0]
    steps = [opened(each, 1e4 / rate) for each in curve.rates(rate)] if scenario in CURVES else []
    return Figures(
        rate,
        1.0,
        2.0,
        cores=Cores(0.99, 0.6, 0.01, 0.0),
        curve=steps,
        cpu_us=1e6 / rate,
        beside_us=100.0 if name.endswith("asyncpg") else 0.0,
        start_ms=300.0,
        idle_mib=30.0,
        loaded_mib=50.0,
    )


def results(home: Path, name: str = "run", rounds: int = 5, seed: int = 1, factor: float = 1.0) -> Results:
    """A whole run; each round's rates are up to 2 % off, those of Tidegate `factor` of what they are."""
    draw = random.Random(seed)
    plan = Plan(list(RATES), rounds, 3, 1, seed, CURVES, "hello@raw_httptools")
    environment = {
        "started": "2026-11-21T08:00:00+00:00",
        "commit": "abc1234",
        "cpu": "a fast one",
        "cores": 2,
    }
    found = Results.create(home, name, plan, environment)
    found.keep_facts({each: Facts(title, {"python": "3.11.7"}) for each, title in TITLES.items()})
    for number in range(1, rounds + 1):
        for place, (cell, rate) in enumerate(RATES.items()):
            ours = factor if cell.endswith("@tidegate") else 1.0
            reached = rate * ours * draw.uniform(0.98, 1.02)
            scenario, _, target = cell.partition("@")
            started = f"2026-11-21T08:{number:02}:{place:02}+00:00"
            found.add(Cell(number, scenario, target, started, 5.0, "", figures(cell, reached)))
        song = figures("hello@raw_httptools", 100_000.0 * draw.uniform(0.99, 1.01))
        found.add_canary(
            Cell(0, "hello", "raw_httptools", f"2026-11-21T08:{number:02}:30+00:00", 2.0, "", song)
        )
    return found
