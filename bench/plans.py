"""What a run measures, and how long that takes: the full run, its quick form, and a choice of both."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence

from bench.acceptance import must_limit
from bench.cells import can_curve
from bench.live.scenarios import LIVE
from bench.load import curve
from bench.results import Plan, ResultsError
from bench.scenarios import SCENARIOS
from bench.targets import POSTGRESQL, Target

HOUSE = "tidegate"
FLOOR = "raw_httptools"
# The gate on the database that peers have: its like-for-like beside them.
HOUSE_ON_POSTGRESQL = "tidegate_postgres"
# Targets that are no servers, but what is physically there to be had: by their names, for runs of before had
# others.
_FLOORS = ("raw_", "bare_", "psql_")
# Peers that are asked everything of EIGHT: what a team would choose from, and the fastest of each kind.
CHOSEN = (
    "aiohttp_asyncpg",
    "aiohttp_aiopg",
    "fastapi_asyncpg",
    "starlette_asyncpg",
    "litestar_granian",
    "blacksheep_granian",
    "sanic_asyncpg",
    "falcon_granian",
    "fastify",
    "go_nethttp",
)
EIGHT = ("hello", "latest", "latest-cold", "write", "write-cold", "batch", "page", "rejected-token")
# What the gate is held to beside them (bench/musts.py).
OPEN = ("latest-open", "write-open")
# What all others are asked.
ALL = ("hello", "write")
_UNNAMED = "its description does not name it"
# Scenarios whose latency is also taken at fixed rates.
CURVES = ("latest", "write")

ROUNDS, WARM_UP = 5, 1
MINUTES = 90.0
# A closed measurement lasts as long as fits into the time, within these seconds.
SECONDS_MOST, SECONDS_LEAST = 5, 2

# Seconds that a cell takes beside its load: start, verification, end; a fresh PostgreSQL; joining of a crowd.
_BESIDE, _DATABASE, _CROWD = 1.2, 1.2, 4.0
# And to see once of a target that it keeps its limit.
_LIMIT = 0.3
# Rates of a curve that a target reaches, about.
_STEPS = 4
_AT_ONCE = ("memory", "start", "size")
# Cells between two of the canary, and what it is.
CANARY_EVERY = 12
CANARY = f"hello@{FLOOR}"
# What the open loop's client keeps to by itself.
CEILING = "hello-ceiling@raw_constant"


def is_house(target: str) -> bool:
    """Whether a target is the gate, or a part of it."""
    return target.startswith(HOUSE)


def is_floor(target: str) -> bool:
    """Whether a target is no server, but does less than the contract asks."""
    return target.startswith(_FLOORS)


def full(names: Sequence[str]) -> list[str]:
    """Of all cells those of a full run: the gate (on both databases) and CHOSEN on EIGHT, others on ALL."""
    return [name for name in names if _wanted(*_parts(name))]


def _wanted(scenario: str, target: str) -> bool:
    if target == HOUSE:
        return scenario in (*EIGHT, *OPEN)
    if target in (*CHOSEN, HOUSE_ON_POSTGRESQL):
        return scenario in EIGHT
    if f"{scenario}@{target}" == CEILING:
        return True
    # A loop takes part in what it is the floor of.
    return scenario in (*ALL, "batch") if target.startswith("bare_") else scenario in ALL


def quick(names: Sequence[str]) -> list[str]:
    """Of all cells those of a quick run: everybody on ALL."""
    return [name for name in names if _parts(name)[0] in ALL]


def select(
    names: Sequence[str],
    known: Mapping[str, Target],
    scenarios: Sequence[str],
    targets: Sequence[str],
) -> list[str]:
    """Of all cells those of these scenarios and targets (none given: any); ResultsError."""
    _refuse_unknown("scenario", scenarios, [*SCENARIOS, *LIVE])
    _refuse_unknown("target", targets, known)
    found = [
        name
        for name in names
        if (not scenarios or _parts(name)[0] in scenarios) and (not targets or _parts(name)[1] in targets)
    ]
    if not found:
        reasons = [
            f"{target} has no {scenario}: {known[target].cannot.get(scenario, _UNNAMED)}"
            for target in targets
            for scenario in scenarios
        ]
        raise ResultsError("nothing to measure; " + "; ".join(reasons))
    return found


def _refuse_unknown(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 3)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise ResultsError(f"no {kind} is named {name}{hint}; there are: {' '.join(names)}")


def curves(cells: Iterable[str], wanted: Iterable[str] = CURVES) -> list[str]:
    """The scenarios of the cells that are also asked at fixed rates."""
    scenarios = {_parts(name)[0] for name in cells}
    return [name for name in wanted if name in scenarios and can_curve(SCENARIOS[name])]


def seconds_of(plan: Plan, name: str, known: Mapping[str, Target]) -> float:
    """About how long a cell takes."""
    scenario, target = _parts(name)
    load = plan.warm_up + plan.seconds
    if scenario in LIVE:
        return _CROWD + load
    beside = _start_seconds(known.get(target))
    kind = SCENARIOS[scenario].load if scenario in SCENARIOS else "closed"
    if kind in _AT_ONCE:
        return beside
    if kind == "open":
        return beside + load + plan.seconds
    if kind == "ceiling":
        return beside + 8 * plan.warm_up
    return beside + load + (_STEPS * curve.step(plan.seconds) if scenario in plan.curves else 0.0)


def duration(plan: Plan, known: Mapping[str, Target]) -> float:
    """About how many seconds a run takes, its canary included, environments already made."""
    once = sum(seconds_of(plan, name, known) for name in plan.cells)
    canaries = plan.rounds * len(plan.cells) // CANARY_EVERY + 2 if plan.canary else 0
    return plan.rounds * once + canaries * canary_seconds() + limits_seconds(plan, known)


def limits_seconds(plan: Plan, known: Mapping[str, Target]) -> float:
    """About how long it takes to see that each target of a run keeps its limit."""
    targets = {_parts(name)[1] for name in plan.cells} & set(known)
    return sum(_start_seconds(known[name]) + _LIMIT for name in targets if must_limit(known[name]))


def _start_seconds(target: Target | None) -> float:
    """From the start of a target, and of its database, to its end, verified on the way."""
    return _BESIDE + (_DATABASE if target is not None and target.database == POSTGRESQL else 0.0)


def canary_seconds() -> float:
    """About how long the canary takes."""
    return _BESIDE + 2.0


def fitting(plan: Plan, known: Mapping[str, Target], minutes: float, seconds: int | None) -> Plan:
    """The plan, measuring for as long as fits into the minutes, or `seconds`; ResultsError if none."""
    given = range(SECONDS_MOST, SECONDS_LEAST - 1, -1) if seconds is None else (seconds,)
    for each in given:
        tried = Plan(plan.cells, plan.rounds, each, plan.warm_up, plan.seed, plan.curves, plan.canary)
        if duration(tried, known) <= minutes * 60:
            return tried
    raise ResultsError(
        f"{len(plan.cells)} cells in {plan.rounds} rounds of {tried.seconds} s take about "
        f"{duration(tried, known) / 60:.0f} minutes, more than {minutes:.0f}: "
        "ask for fewer --targets, --scenarios or --rounds, or allow more --minutes"
    )


def described(plan: Plan, known: Mapping[str, Target]) -> str:
    """The plan in words, with its time."""
    names = {_parts(name)[1] for name in plan.cells}
    minutes = math.ceil(duration(plan, known) / 60)
    return (
        f"{_some(len(plan.cells), 'cell')} of {_some(len(names), 'target')}, "
        f"{_some(plan.rounds, 'round')} of {plan.seconds} s: about {_some(minutes, 'minute')} "
        f"(seed {plan.seed})"
    )


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _parts(name: str) -> tuple[str, str]:
    scenario, _, target = name.partition("@")
    return scenario, target
