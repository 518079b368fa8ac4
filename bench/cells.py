"""Measures one cell: a fresh process, verified, warmed up, loaded, its rows counted."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.client import HTTPException

import msgspec
import psycopg2
from msgspec import Struct

from bench import contract, disk, levels, servers, targets, verify
from bench.client import Client
from bench.environment import Cores, CoreWatch, group_cpu
from bench.live import memory
from bench.load import curve as offered
from bench.load import echo, open_loop, wrk
from bench.load.open_loop import Open
from bench.load.wrk import Ask, Void
from bench.processes import Beside, Server, needed, run_loop, running, serving
from bench.results import Cell, Figures
from bench.scenarios import Scenario
from bench.targets import Target, TargetError

# Number of the first batch of the warm-up, and of what is measured.
_WARM_UP_FIRST, _FIRST = 0, 1_000_000
_MILLISECONDS, _MICROSECONDS = 1_000, 1_000_000
# Seconds between two looks at the memory of a server under load.
_LOOKS = 0.2
# Requests per second that the open loop plans at most, and between two steps of the search for its ceiling.
RATE_MAX, RATE_STEP, RATE_END = 50_000.0, 10_000, 150_000


class Loop(Struct, frozen=True):
    """What a target that measures itself prints. `readings`: of a batch, where the scenario does not say."""

    batches: int
    seconds: float
    warm_up_batches: int
    readings: int = 1


def measure(
    round: int, scenario: Scenario, target: Target, warm_up: int, seconds: int, curve: bool = False
) -> Cell:
    """Measure; a cell that went wrong is void and says why. `curve`: also latency against offered load."""

    def figures() -> Figures:
        if target.kind == "loop":
            return _loop(scenario, target, warm_up, seconds)
        with running(target) as server:
            idle = _memory(server)
            check(scenario, server)
            found = _served(scenario, server, warm_up, seconds, curve)
            return msgspec.structs.replace(
                found, start_ms=server.start * _MILLISECONDS, idle_mib=idle, loaded_mib=_memory(server)
            )

    return cell(round, scenario.name, target, figures)


def cell(round: int, scenario: str, target: Target, take: Callable[[], Figures]) -> Cell:
    """The cell of what `take` measures; void where that goes wrong."""
    started, began = datetime.now(UTC), time.monotonic()
    void, figures = "", None
    try:
        figures = take()
    except verify.Unverified as error:
        void = f"not verified: {error}"
    except (Void, TargetError) as error:
        void = str(error)
    except (OSError, HTTPException, ValueError, LookupError, psycopg2.Error) as error:
        void = f"{type(error).__name__}: {error}"
    return Cell(
        round,
        scenario,
        target.name,
        started.isoformat(timespec="seconds"),
        time.monotonic() - began,
        void,
        figures,
    )


def check(scenario: Scenario, server: Server) -> None:
    """Verify a target for a scenario; Unverified."""
    _ask(scenario.check, server)


def check_limit(server: Server) -> None:
    """Verify that a target which was started with LOW_LIMIT limits its principals; Unverified."""
    _ask(verify.limited, server)


def _ask(checked: Callable[[verify.Subject], None], server: Server) -> None:
    client = Client(server.url, contract.token())
    try:
        checked(
            verify.Subject(
                client, server.rows, server.url, server.faults, server.pending, server.target.hello
            )
        )
    except (HTTPException, LookupError, psycopg2.Error) as error:
        raise verify.Unverified(f"{type(error).__name__}: {error}") from error
    finally:
        client.close()


def _served(scenario: Scenario, server: Server, warm_up: int, seconds: int, curve: bool) -> Figures:
    if scenario.load in _AT_ONCE:
        return Figures(_AT_ONCE[scenario.load](server))
    if scenario.load == "echo":
        return _echoed(scenario, server, warm_up, seconds)
    ask = _ask_of(scenario, server.target)
    if scenario.load == "ceiling":
        return _ceiling(scenario, server, ask, warm_up)
    wrk.run(server.url, ask, scenario.connections, warm_up, _WARM_UP_FIRST)
    if scenario.load == "memory-loaded":
        return _loaded(scenario, server, ask, seconds)
    syncs = _syncs(scenario)
    before, wanted = server.rows(), server.target.levels.get(scenario.name)
    known = levels.of(server.url) if wanted else None
    meter = Meter(server)
    closed = wrk.run(server.url, ask, scenario.connections, seconds, _FIRST)
    cpu, beside, cores = meter.read(closed.requests * scenario.readings)
    if wanted and known is not None:
        levels.check(wanted, known, levels.of(server.url), closed.requests)
    _still_refused(scenario, server)
    answered = closed.requests * scenario.readings

    def at(rate: float, seconds: float) -> Open:
        return open_loop.run(server.url, _request(ask), scenario.connections, seconds, rate)

    half = at(min(closed.rate / 2, RATE_MAX), seconds) if scenario.load == "open" else None
    steps = offered.measure(at, closed.rate, seconds) if curve and can_curve(scenario) else []
    answered += sum(each.requests for each in (*steps, *([half] if half else [])))
    stored = _stored(scenario, server, before, answered) if scenario.stores else 0
    return Figures(
        rate=closed.rate * scenario.readings,
        p50_ms=closed.p50_ms,
        p99_ms=closed.p99_ms,
        open=half,
        sync_p99_ms=open_loop.percentile(sorted(syncs + _syncs(scenario)), 0.99) * _MILLISECONDS,
        answered=answered if scenario.stores else 0,
        stored=stored,
        cores=cores,
        curve=steps,
        cpu_us=cpu,
        beside_us=beside,
    )


def can_curve(scenario: Scenario) -> bool:
    """Whether the open loop can ask it: it sends the same request again, and takes 200 for an answer."""
    ask = scenario.ask
    varies = ask.cold or ask.batches or ask.devices
    return scenario.load == "closed" and ask.status == 200 and not (varies or ask.closes)


class Meter:
    """Watches a target from its making on: its CPU, its database's, and the cores."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._watch = CoreWatch(server.cpu)
        self._own, self._all = group_cpu(server.group), server.cpu()

    def read(self, count: int) -> tuple[float, float, Cores]:
        """Microseconds of the target's CPU for each of `count`, of what runs beside it, and the cores."""
        own, every = group_cpu(self._server.group) - self._own, self._server.cpu() - self._all
        each = _MICROSECONDS / max(1, count)
        return own * each, max(0.0, every - own) * each, self._watch.read()


def _ask_of(scenario: Scenario, target: Target) -> Ask:
    """The target's request, with a token that is made anew: a run may last longer than one lives."""
    tokens = {"": "", contract.BAD_TOKEN: contract.forged_token()}
    token = tokens[scenario.ask.token] if scenario.ask.token in tokens else contract.token()
    path = target.hello.path if scenario.ask.path == contract.HELLO else scenario.ask.path
    return msgspec.structs.replace(scenario.ask, token=token, path=path)


def _echoed(scenario: Scenario, server: Server, warm_up: int, seconds: int) -> Figures:
    echo.run(server.url, scenario.connections, warm_up)
    meter = Meter(server)
    closed = echo.run(server.url, scenario.connections, seconds)
    cpu, beside, cores = meter.read(closed.requests)
    return Figures(closed.rate, closed.p50_ms, closed.p99_ms, cores=cores, cpu_us=cpu, beside_us=beside)


def _loaded(scenario: Scenario, server: Server, ask: Ask, seconds: int) -> Figures:
    """The most memory that was seen while the load went on."""
    with ThreadPoolExecutor(1) as thread:
        load = thread.submit(wrk.run, server.url, ask, scenario.connections, seconds, _FIRST)
        most = 0.0
        while not load.done():
            most = max(most, _memory(server))
            time.sleep(_LOOKS)
    load.result()
    return Figures(most)


def _memory(server: Server) -> float:
    return memory.proportional(server.group) / 2**20


_AT_ONCE: dict[str, Callable[[Server], float]] = {
    "memory": _memory,
    "start": lambda server: server.start * _MILLISECONDS,
    "size": lambda server: targets.size(server.target) / 2**20,
}


def _still_refused(scenario: Scenario, server: Server) -> None:
    """Errors are counted by wrk, but not told apart: one more has to be that of the first."""
    ask = _ask_of(scenario, server.target)
    if ask.status < wrk.REFUSED:
        return
    client = Client(server.url, ask.token)
    try:
        answer = client.ask(ask.method, ask.path, ask.body)
    finally:
        client.close()
    if answer.status != ask.status:
        raise Void(f"expected {ask.status} after the load, got {answer}")


def _ceiling(scenario: Scenario, server: Server, ask: Ask, seconds: int) -> Figures:
    """The highest rate that the open loop's client keeps to by itself, and what it found at that one."""
    request, best = _request(ask), None
    watch = CoreWatch(server.cpu)
    for rate in range(RATE_STEP, RATE_END, RATE_STEP):
        opened = open_loop.run(server.url, request, scenario.connections, seconds, rate)
        if opened.late:
            break
        best = opened
    if best is None:
        raise Void(f"the open loop's client cannot even keep to {RATE_STEP} requests/s")
    return Figures(best.planned, open=best, cores=watch.read())


def _request(ask: Ask) -> bytes:
    return contract.request(ask.method, ask.path, ask.token, ask.body)


def _syncs(scenario: Scenario) -> list[float]:
    """What the disk takes, where the scenario is judged by it."""
    return disk.sync_times() if scenario.load == "open" and scenario.stores else []


def _stored(scenario: Scenario, server: Server, before: int, answered: int) -> int:
    """The rows that the load has added; Void unless they are those that were answered."""
    stored = server.rows() - before
    # What was under way when wrk stopped counting is stored too, here and after the warm-up.
    slack = 2 * scenario.connections * scenario.readings
    if not answered <= stored <= answered + slack:
        raise Void(f"{answered} readings were answered, but {stored} stored")
    return stored


def _loop(scenario: Scenario, target: Target, warm_up: int, seconds: int) -> Figures:
    # The load core makes nothing here: the loop has the server's core and its own bodies.
    # The loop is a child that has ended when the watch is read.
    watch = CoreWatch(float)
    with needed(target) as beside:
        before = _with_tables(scenario, target, beside) if target.tables else 0
        looped = run_loop(target, warm_up, seconds, beside=beside)
        faults = servers.faults(beside.database, target.table) if beside.database else []
    if faults:
        raise verify.Unverified(f"expected a durable database, found {', '.join(faults)}")
    found = msgspec.json.decode(looped.output, type=Loop)
    answered = found.batches * scenario.readings
    inserted = answered + found.warm_up_batches * scenario.readings
    stored = looped.stored - before
    if stored != inserted:
        raise Void(f"{inserted} readings were inserted, but {stored} stored")
    return Figures(
        rate=answered / found.seconds,
        answered=answered,
        stored=stored,
        cores=watch.read(),
        beside_us=looped.cpu * _MICROSECONDS / max(1, inserted),
    )


def _with_tables(scenario: Scenario, target: Target, beside: Beside) -> int:
    """Have another target make the tables of a loop, and show what it does on them; the rows that are there.

    Its devices and series are known then.
    """
    with serving(targets.load()[target.tables], beside) as server:
        check(scenario, server)
        return server.rows()


def settle() -> None:
    """Between two cells: what the last one left to be written is written now, not in the next one's time."""
    os.sync()
