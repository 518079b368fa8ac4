"""Promise 9: with a part away the gate says so quickly, stays alive, and is back as soon as the part is."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.reliability.cluster import Node
from tests.reliability.following import Clients, Trace
from tests.reliability.record import Wish
from tests.running import PATIENCE, GateProcess, Reply, samples
from tests.servers.postgres import PostgresServer, postgres
from tests.servers.programs import free_port
from tests.servers.redis import redis
from tests.watching import own_time, percentile_99

# Seconds within which an answer must come, and the gate be back.
PROMPT = 2.0
# Of scheduling on a busy machine; what is measured is whole seconds or nothing.
GRACE = 0.5
# So often something is broken; the quickest counts, since a machine that is busy only adds time.
FAULTS = 3
LAG = 0.05
READING = {"metric": "m", "value": 1}


@asynccontextmanager
async def node(home: Path, **environment: str) -> AsyncIterator[Node]:
    """A node of one process."""
    found = Node(home, free_port(), **{"WORKERS": "1", **environment})
    try:
        await found.start()
        yield found
    finally:
        await found.close()


async def timed(gate: GateProcess, method: str, path: str, content: object = None) -> tuple[Reply, float]:
    """An answer, and the seconds it took."""
    begun = time.perf_counter()
    answer = await gate.call(method, path, content)
    return answer, time.perf_counter() - begun


async def until_status(gate: GateProcess, path: str, status: int, within: float) -> float:
    """The seconds until a path answers so."""
    begun = time.perf_counter()
    async with asyncio.timeout(within):
        while (await gate.get(path)).status != status:
            await asyncio.sleep(0.02)
    return time.perf_counter() - begun


async def lags(gate: GateProcess, stop: asyncio.Event) -> list[float]:
    """How long /livez took, again and again, less what the machine took from both sides."""
    found = []
    async with aiohttp.ClientSession() as session:
        while not stop.is_set():
            begun = own_time(gate.process.pid)
            async with session.get(f"{gate.url}/livez") as answer:
                assert answer.status == 200
            found.append(own_time(gate.process.pid) - begun)
            await asyncio.sleep(0.005)
    return sorted(found)


def unforeseen(log: Path) -> list[str]:
    """Lines of the log that nobody foresaw."""
    return [line for line in log.read_text().splitlines() if "Traceback" in line or '"level":"error"' in line]


async def expect_away(gate: GateProcess) -> float:
    """Reads and writes are refused with advice; the process lives, traffic should not come.

    The seconds that the slowest answer took.
    """
    asked = (
        ("POST", "/v1/devices/a.b/readings", READING),
        ("GET", "/v1/devices/never.seen/latest", None),
        ("GET", "/v1/devices/a.b/readings", None),
        ("GET", "/v1/devices", None),
    )
    answers = await asyncio.gather(*(timed(gate, *one) for one in asked * 5))
    for answer, _ in answers:
        assert answer.status == 503, answer
        assert int(answer.headers["Retry-After"]) > 0
    assert (await gate.get("/livez")).status == 200
    answer, seconds = await timed(gate, "GET", "/readyz")
    assert answer.status == 503, answer
    return max(seconds, *(each for _, each in answers))


async def working(gate: GateProcess) -> None:
    """It writes and reads."""
    answer = await gate.write("a.b", READING)
    assert answer.status == 200, answer
    answer = await gate.get("/v1/devices/a.b/readings")
    assert answer.status == 200, answer


@pytest.mark.parametrize("how", ["fast", "immediate"])
async def test_with_postgresql_away_there_is_503_at_once_and_it_is_back_as_soon_as_the_database(
    tmp_path: Path, how: str
) -> None:
    async with (
        postgres(tmp_path) as database,
        node(tmp_path / "node", DATABASE_URL=database.url) as one,
    ):
        gate = one.gate
        await working(gate)
        slowest, back = [], []
        for _ in range(FAULTS):
            await database.stop("fast" if how == "fast" else "immediate")
            slowest.append(await expect_away(gate))
            await database.start()
            back.append(await until_status(gate, "/readyz", 200, PATIENCE))
            await working(gate)
        assert min(slowest) < PROMPT + GRACE, slowest
        assert min(back) < PROMPT + GRACE, back
        assert unforeseen(one.log) == []


async def test_a_frozen_postgresql_freezes_nothing_else(tmp_path: Path) -> None:
    async with (
        postgres(tmp_path) as database,
        node(tmp_path / "node", DATABASE_URL=database.url) as one,
    ):
        gate, stop = one.gate, asyncio.Event()
        await working(gate)
        probing = asyncio.create_task(lags(gate, stop))
        slowest, back = [], []
        for _ in range(FAULTS):
            database.freeze()
            try:
                slowest.append(max(await expect_away(gate), await expect_away(gate)))
            finally:
                database.thaw()
            back.append(await until_status(gate, "/readyz", 200, PATIENCE))
            await working(gate)
            if max(min(slowest), min(back)) < PROMPT + GRACE:
                break
        assert min(slowest) < PROMPT + GRACE, slowest
        assert min(back) < PROMPT + GRACE, back
        stop.set()
        found = await probing
        assert percentile_99(found) < LAG, found[-10:]
        assert unforeseen(one.log) == []


async def test_a_gate_waits_at_its_start_for_no_database_for_ever(tmp_path: Path) -> None:
    """It ends with a message that names what is wrong, so that who started it may try again."""
    url = f"postgresql://postgres@127.0.0.1:{free_port()}/none"
    with pytest.raises(AssertionError):
        async with node(tmp_path / "node", DATABASE_URL=url):
            pass
    said = (tmp_path / "node.log").read_text()
    assert "tidegate:" in said
    assert "Traceback" not in said


@asynccontextmanager
async def two_nodes(tmp_path: Path, database: PostgresServer, url: str) -> AsyncIterator[list[Node]]:
    """Two nodes of one process each."""
    shared = {"DATABASE_URL": database.url, "REDIS_URL": url}
    async with node(tmp_path / "one", **shared) as one, node(tmp_path / "two", **shared) as two:
        yield [one, two]


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_with_redis_away_writes_reads_and_streams_go_on_and_the_other_node_is_healed(
    tmp_path: Path, how: str
) -> None:
    async with (
        postgres(tmp_path) as database,
        redis(tmp_path) as server,
        two_nodes(tmp_path, database, server.url) as nodes,
    ):
        here, there = (each.gate for each in nodes)
        await working(here)
        traces = [Trace(Wish(["a.>"]), "earliest", until=-1) for _ in nodes]
        async with contextlib.AsyncExitStack() as stack:
            for each, trace in zip(nodes, traces, strict=True):
                clients = await stack.enter_async_context(Clients(each.place))
                await clients.connect("json", trace)
            if how == "killed":
                await server.kill()
            else:
                server.freeze()
            for value in range(100, 120):
                answer, seconds = await timed(
                    here, "POST", "/v1/devices/a.c/readings", {"metric": "m", "value": value}
                )
                assert answer.status == 200, answer
                assert seconds < PROMPT
            async with asyncio.timeout(PATIENCE):
                while not all(any(row.value == 119 for row in trace.record) for trace in traces):
                    await asyncio.sleep(0.02)
            for gate in (here, there):
                async with asyncio.timeout(PATIENCE):
                    while (answer := await gate.get("/readyz")).status == 200:
                        if "degraded" in answer.body.decode():
                            break
                        await asyncio.sleep(0.05)
                assert answer.status == 200, answer
            if how == "killed":
                await server.start()
            else:
                server.thaw()
            for gate in (here, there):
                async with asyncio.timeout(PATIENCE):
                    while "degraded" in (await gate.get("/readyz")).body.decode():
                        await asyncio.sleep(0.05)
            await here.write("a.c", {"metric": "m", "value": -1})
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(trace.ended.wait() for trace in traces))
        records = [[row.value for row in trace.record] for trace in traces]
        assert records[0] == records[1] == [1, *range(100, 120), -1]
        assert [unforeseen(each.log) for each in nodes] == [[], []]


@pytest.mark.parametrize("account", ["in Redis", "in the parent"])
async def test_a_limit_holds_over_four_workers_with_the_stated_slack(
    tmp_path: Path, account: str, long: bool
) -> None:
    """100 a minute: never more than the limit, the burst and a lease for each (auth/shared_limits.py).

    In any window, up to the whole time, which is over two minutes with `--long`.
    """
    limit, burst, workers = 100, 10, 4
    lease = -(-2 * burst // workers)
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(postgres(tmp_path))
        environment = {"DATABASE_URL": database.url, "WORKERS": str(workers), "RATE_LIMIT": str(limit)}
        if account == "in Redis":
            environment["REDIS_URL"] = (await stack.enter_async_context(redis(tmp_path))).url
        one = await stack.enter_async_context(node(tmp_path / "node", **environment))
        token = one.gate.token(subject="limited")
        end = time.perf_counter() + (130 if long else 5)
        # When each that was let in was asked, and when it was answered.
        admitted: list[tuple[float, float]] = []
        refused = 0
        while (asked := time.perf_counter()) < end:
            # A connection each: all workers get some.
            headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
            async with one.gate.session.get(f"{one.gate.url}/v1/devices", headers=headers) as answer:
                if answer.status == 200:
                    admitted.append((asked, time.perf_counter()))
                else:
                    assert answer.status == 429
                    refused += 1
        metrics = samples((await one.gate.get("/metrics")).body)
    assert refused
    assert len(admitted) >= burst
    # Where the account was silent for a while, as on a busy machine, more is allowed.
    extra = 2 * metrics["tidegate_limits_lost_total"] * (burst + workers * (lease + 1))
    for first, (begun, _) in enumerate(admitted):
        for last, (_, over) in enumerate(admitted[first:], first):
            most = limit / 60 * (over - begun) + burst + workers * lease + extra
            assert last - first + 1 <= most, (first, last, over - begun)
