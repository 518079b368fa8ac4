"""Measures one cell of the streams: a fresh process, verified, then under load, with every byte verified."""

import http.client
import time
from urllib.parse import urlsplit

import msgspec

from bench import contract, disk
from bench.cells import Loop, cell
from bench.environment import CoreWatch
from bench.live import load, memory
from bench.live.crowd import Crowd, Load, Writer
from bench.live.figures import Live
from bench.live.scenarios import Scenario
from bench.load.open_loop import percentile
from bench.load.wrk import Void
from bench.processes import Server, run_loop, running
from bench.results import Cell, Figures
from bench.targets import Target
from bench.verify import Unverified

# Readings of each write of a verification, and how many follow it.
CHECKED, FOLLOWERS = (1, 1, 1, 16, 2, 1, 16), 3
# Seconds after which a server with idle followers has settled.
SETTLE = 1.5
# How far the readings of a transaction may be from those of a write, as a share of them.
MERGED = 0.05


def measure(round: int, scenario: Scenario, target: Target, warm_up: int, seconds: int) -> Cell:
    """Measure; a cell that went wrong is void and says why."""

    def figures() -> Figures:
        if scenario.kind == "loop":
            return _loop(scenario, target, warm_up, seconds)
        with running(target) as server:
            check(scenario, server.url)
            idle = scenario.kind == "idle"
            return _idle(scenario, server) if idle else _loaded(scenario, server, warm_up, seconds)

    return cell(round, scenario.name, target, figures)


def check(scenario: Scenario, url: str) -> None:
    """Verify a target for a scenario: a few followers, writes of one and of several readings. Unverified."""
    address, shape = _address(url), scenario.shape
    writer = Writer(*address, shape.padding)
    loaded = Load(Crowd(*address, shape.transport, shape.padding), writer)
    try:
        loaded.crowd.join(FOLLOWERS)
        for count in CHECKED:
            writer.write(count)
            loaded.finish()
        # What comes twice comes late.
        loaded.turn(0.2)
        if lacking := loaded.crowd.lacking(writer.written):
            raise Unverified(lacking)
    finally:
        loaded.close()


def _address(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0, contract.token()


def _loaded(scenario: Scenario, server: Server, warm_up: int, seconds: int) -> Figures:
    host, port, token = _address(server.url)
    shape = scenario.shape
    syncs = disk.sync_times() if shape.rate else []
    before = _commits(server)
    done = load.run(load.Task(shape, host, port, token, server.group, warm_up, seconds))
    after = _commits(server)
    syncs += disk.sync_times() if shape.rate else []
    merged = 0.0
    if before is not None and after is not None and after[0] > before[0]:
        merged = (after[1] - before[1]) / (after[0] - before[0])
        if not shape.rate and abs(merged / shape.readings - 1) > MERGED:
            raise Void(f"expected {shape.readings} readings a commit, there were {merged:.2f}")
    return Figures(
        rate=done.rate,
        open=done.open,
        sync_p99_ms=percentile(sorted(syncs), 0.99) * 1000,
        cores=done.cores,
        live=Live(done.deliveries, done.size, merged, done.memory[1] - done.memory[0]),
    )


def _commits(server: Server) -> tuple[float, float] | None:
    """Transactions so far, and their readings, where the server has such a metric."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        # It is no HTTP server but for streams.
        return None
    finally:
        connection.close()
    return read_commits(text) if answer.status == 200 else None


def read_commits(text: str) -> tuple[float, float] | None:
    """Count and sum of the transactions' readings, in Prometheus' text; None without them."""
    found = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("tidegate_commit_readings_")
    )
    try:
        return float(found["tidegate_commit_readings_count"]), float(found["tidegate_commit_readings_sum"])
    except KeyError:
        return None


def _idle(scenario: Scenario, server: Server) -> Figures:
    """What a follower costs that gets nothing, above the process as it was before any.

    Others on the cores do not matter here. What the heap had free before hides some of the cost, which is
    less among many followers.
    """
    before = memory.proportional(server.group)
    crowd = Crowd(*_address(server.url), scenario.shape.transport)
    try:
        crowd.join(scenario.shape.followers)
        time.sleep(SETTLE)
        after = memory.proportional(server.group)
    finally:
        crowd.close()
    kib = (after - before) / 1024 / scenario.shape.followers
    return Figures(rate=kib, live=Live(follower_kib=kib))


def _loop(scenario: Scenario, target: Target, warm_up: int, seconds: int) -> Figures:
    watch = CoreWatch(float)
    looped = run_loop(target, warm_up, seconds, scenario=scenario.name)
    found = msgspec.json.decode(looped.output, type=Loop)
    return Figures(rate=found.batches * found.readings / found.seconds, cores=watch.read())
