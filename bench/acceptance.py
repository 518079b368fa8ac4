"""Whether a target keeps the contract: every check of its scenarios, on one process of it, and the limit.

A measurement verifies again, a fresh process for its one scenario; here all is asked of one. The limit is
checked once a run, before anything of the target is measured.
"""

import functools
from collections.abc import Callable, Iterator

from msgspec import Struct

from bench import cells, contract
from bench.live.cells import check as check_live
from bench.live.scenarios import LIVE, Scenario
from bench.processes import Server, running
from bench.scenarios import SCENARIOS
from bench.targets import Target, TargetError
from bench.verify import Unverified

LIMIT = "limit"
# Scenarios that a target which keeps the contract takes part in, or says why not.
EXPECTED = (
    "hello",
    "hello-new",
    "latest",
    "write",
    "batch",
    "page",
    "rejected-token",
    "rejected-body",
    "ws-echo",
    "memory-idle",
    "start",
    "size",
)


class Finding(Struct, frozen=True):
    """What came of one check: the scenarios that it is for, and what is wrong ("" if nothing)."""

    scenarios: tuple[str, ...]
    complaint: str = ""

    def __str__(self) -> str:
        return f"{', '.join(self.scenarios)}: {self.complaint or 'good'}"


def examine(target: Target) -> Iterator[Finding]:
    """Check all that a target says it does, and its limit; TargetError if it does not start."""
    if target.kind == "loop":
        yield from _looped(target)
        return
    streams = any(name in LIVE for name in target.scenarios)
    # All but the streams ask so little that they stay below the low limit, which spares a start.
    together = target.limited and not streams
    with running(target, contract.LOW_LIMIT if together else contract.LIMIT) as server:
        for names, check in _checks(target):
            yield Finding(names, _complaint(functools.partial(check, server)))
        if together:
            yield _limit(server)
    if must_limit(target) and not together:
        yield Finding((LIMIT,), limit_complaint(target))


def must_limit(target: Target) -> bool:
    """Whether a target has to have a limit: it says so, or takes writes."""
    return target.kind == "server" and (target.limited or "write" in target.scenarios)


def limit_complaint(target: Target) -> str:
    """What is wrong with the limit of a target, on a process of its own; "" if it is kept, or not needed."""
    if not must_limit(target):
        return ""
    if not target.limited:
        return "expected `limited = true` in target.toml, and 429 beyond {limit} a minute"
    return _complaint(functools.partial(_limited, target))


def _limited(target: Target) -> None:
    with running(target, contract.LOW_LIMIT) as server:
        cells.check_limit(server)


def _looped(target: Target) -> Iterator[Finding]:
    """A loop has nothing to ask: it is run, and its rows are counted."""
    for name in target.scenarios:
        if name in SCENARIOS:
            yield Finding((name,), cells.measure(0, SCENARIOS[name], target, 0, 1).void)


def _limit(server: Server) -> Finding:
    return Finding((LIMIT,), _complaint(functools.partial(cells.check_limit, server)))


def absent(target: Target) -> list[str]:
    """The scenarios of requests that a target neither takes part in nor gives a reason for."""
    if target.variant_of:
        return []
    told = {*target.scenarios, *target.cannot}
    return [name for name in EXPECTED if name not in told]


def _checks(target: Target) -> list[tuple[tuple[str, ...], Callable[[Server], None]]]:
    """Each different check once, with the scenarios that share it."""
    shared: dict[object, list[str]] = {}
    for name in target.scenarios:
        if name in SCENARIOS:
            shared.setdefault(SCENARIOS[name].check, []).append(name)
    requests = [
        (tuple(names), functools.partial(cells.check, SCENARIOS[names[0]])) for names in shared.values()
    ]
    streams = [
        ((name,), functools.partial(_check_stream, LIVE[name])) for name in target.scenarios if name in LIVE
    ]
    return [*requests, *streams]


def _check_stream(scenario: Scenario, server: Server) -> None:
    check_live(scenario, server.url)


def _complaint(check: Callable[[], None]) -> str:
    try:
        check()
    except (Unverified, TargetError) as error:
        return str(error)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return ""
