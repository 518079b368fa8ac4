"""Promises 1 to 4 over several processes: whatever dies, nothing acknowledged is lost, doubled or moved."""

import asyncio
import contextlib
import random
from itertools import count
from pathlib import Path
from uuid import UUID

import aiohttp
import pytest
from msgspec import Struct

from tests.reliability.cluster import Cluster, Node, run_cluster, stored
from tests.reliability.following import WIRES, Follower, Trace
from tests.reliability.record import Row, Wish, differences
from tests.servers.pgbouncer import pgbouncer
from tests.servers.postgres import postgres
from tests.servers.programs import free_port
from tests.servers.redis import redis

METRIC = "m"
END_DEVICE, END = "zz.end", 0
# How a stream may end here: also because the database was away while it recovered.
ENDINGS = (1001, 1013, 4408)


class Scale(Struct, frozen=True):
    """How much of it, at least; each kind of fault comes once in any case.

    `pause`: the longest between two faults, and between two batches of a device.
    """

    devices: int
    readings: int
    faults: int
    followers: int
    pause: float


SHORT = Scale(devices=10, readings=2_000, faults=1, followers=12, pause=0.3)
LONG = Scale(devices=50, readings=200_000, faults=40, followers=24, pause=1.0)


class Device:
    """Writes one batch after the other to any node, the same again until it is answered.

    Every fifth leaves the time to the gate and says with an Idempotency-Key which write it is.
    """

    def __init__(self, number: int, seed: int, values: "count[int]") -> None:
        self.name = f"fleet.d{number}"
        self.acked: set[int] = set()
        self.unanswered = 0
        self._keyed = number % 5 == 4
        self._chance = random.Random(seed + number)
        self._values = values
        self._times = count(1)

    async def run(self, nodes: list[Node], least: int, pause: float, stop: asyncio.Event) -> None:
        """Write until told to stop, at least so many readings; what is under way then is still answered."""
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not stop.is_set() or len(self.acked) < least:
                values = [next(self._values) for _ in range(self._chance.choice((1, 5, 20, 100, 200)))]
                await self._write(session, nodes, values)
                self.acked.update(values)
                await asyncio.sleep(self._chance.uniform(0, pause))

    async def _write(self, session: aiohttp.ClientSession, nodes: list[Node], values: list[int]) -> None:
        headers = {}
        items: list[dict[str, object]] = [{"metric": METRIC, "value": value} for value in values]
        if self._keyed:
            headers["Idempotency-Key"] = str(UUID(int=self._chance.getrandbits(128), version=4))
        else:
            for item in items:
                item["ts"] = next(self._times)
        async with asyncio.timeout(120):
            while not await self._try(session, self._chance.choice(nodes), items, headers):
                self.unanswered += 1
                await asyncio.sleep(self._chance.uniform(0.02, 0.1))

    async def _try(
        self,
        session: aiohttp.ClientSession,
        node: Node,
        items: list[dict[str, object]],
        headers: dict[str, str],
    ) -> bool:
        """Whether it was answered that the readings are stored."""
        url = f"http://127.0.0.1:{node.place.port}/v1/devices/{self.name}/readings"
        bearer = {"Authorization": f"Bearer {node.place.token}", **headers}
        try:
            async with session.post(url, json=items, headers=bearer) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
        if response.status == 503:
            assert int(response.headers["Retry-After"]) > 0
            return False
        # The first try of this very write may be under way yet.
        if response.status == 409 and self._keyed:
            return False
        assert response.status == 200, (response.status, answer)
        assert answer["accepted"] + answer["duplicates"] == len(items), answer
        return True


async def run_chaos(cluster: Cluster, scale: Scale, seed: int) -> tuple[list[Device], list[Follower]]:
    """Write, follow, and break one thing after the other, each kind at least once."""
    chance, stop, values = random.Random(seed), asyncio.Event(), count(1)
    devices = [Device(number, seed, values) for number in range(scale.devices)]
    followers = []
    for number in range(scale.followers):
        wish = Wish(chance.choice(([">"], ["fleet.>"], [f"fleet.d{number}", END_DEVICE])))
        if "fleet.>" in wish.match:
            wish = Wish(["fleet.>", END_DEVICE])
        trace = Trace(wish, chance.choice(("", "earliest")), END, endings=ENDINGS)
        lives = 3.0 if number % 2 else None
        followers.append(Follower(WIRES[number % 3], trace, random.Random(seed + 1000 + number), lives))
    kinds = cluster.faults()
    faults = max(scale.faults, len(kinds))
    plan = [name for _ in range(faults // len(kinds) + 1) for name in chance.sample(list(kinds), len(kinds))]
    async with asyncio.TaskGroup() as group:
        least = scale.readings // scale.devices
        writing = [
            group.create_task(device.run(cluster.nodes, least, scale.pause, stop)) for device in devices
        ]
        for number, follower in enumerate(followers):
            group.create_task(follower.run(cluster.nodes[number % len(cluster.nodes)].place))
        for name in plan[:faults]:
            await asyncio.sleep(chance.uniform(0, scale.pause))
            print(f"fault: {name}")
            await kinds[name](chance)
        stop.set()
        await asyncio.gather(*writing)
        item = {"device": END_DEVICE, "metric": METRIC, "ts": 1, "value": END}
        answer = await cluster.nodes[0].gate.post("/v1/readings", [item])
        assert answer.status == 200, answer
        async with asyncio.timeout(60):
            await asyncio.gather(*(follower.trace.ended.wait() for follower in followers))
        for node in cluster.nodes:
            node.place.over = True
        for follower in followers:
            follower.stop()
    return devices, followers


def check(devices: list[Device], followers: list[Follower], log: list[Row], seed: int) -> None:
    """Nothing acknowledged is lost, nothing is there twice, every record is the log."""
    assert [row.offset for row in log] == list(range(1, len(log) + 1)), "the offsets are not contiguous"
    found = [row.value for row in log]
    assert len(set(found)) == len(found), "a value is stored twice"
    assert len({row[1:4] for row in log}) == len(log), "an identity is stored twice"
    acked = set().union(*(device.acked for device in devices))
    assert acked <= set(found), f"{len(acked - set(found))} acknowledged readings are lost"
    for follower in followers:
        trace = follower.trace
        assert trace.start is not None
        assert differences(trace.record, log, trace.wish, trace.start) == [], (
            f"seed {seed}: {follower.wire} {trace.wish} from {trace.start}, {trace.connections} connections"
        )


def complaints(cluster: Cluster) -> list[str]:
    """What the nodes logged that nobody foresaw."""
    return [
        line
        for node in cluster.nodes
        for line in node.log.read_text().splitlines()
        if '"level":"critical"' in line or "Traceback" in line or '"exception"' in line
    ]


async def _run(cluster: Cluster, scale: Scale) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown if it fails
    devices, followers = await run_chaos(cluster, scale, seed)
    log = await asyncio.to_thread(stored, cluster.postgres.url)
    check(devices, followers, log, seed)
    assert complaints(cluster) == []
    print(
        f"{len(log)} readings, {sum(device.unanswered for device in devices)} tries without an answer, "
        f"{sum(len(follower.trace.record) for follower in followers)} received over "
        f"{sum(follower.trace.connections for follower in followers)} connections"
    )


@pytest.mark.parametrize(
    "packets",
    [pytest.param(False, id="direct"), pytest.param(True, id="pgbouncer", marks=pytest.mark.system)],
)
async def test_nothing_is_lost_or_doubled_over_two_nodes_though_their_parts_die(
    tmp_path: Path, packets: bool, long: bool
) -> None:
    """With `packets` some are dropped too, and one node reaches PostgreSQL through pgbouncer."""
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(postgres(tmp_path))
        server = await stack.enter_async_context(redis(tmp_path))
        bouncer = None
        if packets:
            bouncer = await stack.enter_async_context(pgbouncer(database, tmp_path))
        ports = [free_port(), free_port()]
        cluster = await stack.enter_async_context(run_cluster(tmp_path, database, server, ports, bouncer))
        await _run(cluster, LONG if long else SHORT)
