"""Two nodes of two workers on one PostgreSQL and one Redis, and everything that may happen to them.

Faults are aimed at exact process ids, one after the other, and each heals what it broke before it ends.
"""

import asyncio
import functools
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psycopg2

from tests.reliability.following import Place
from tests.reliability.record import Row
from tests.running import PATIENCE, GateProcess, run_logged
from tests.servers.pgbouncer import Pgbouncer
from tests.servers.postgres import PostgresServer
from tests.servers.programs import children
from tests.servers.redis import RedisServer

# Breaks something at a moment of its choice, and heals it.
Fault = Callable[[random.Random], Awaitable[None]]

SECRET = "a secret of both nodes, longer than 32 bytes"
WORKERS = 2

_ROWS = """SELECT r.log_offset, s.device, s.metric, r.ts, r.num
           FROM tidegate.readings r JOIN tidegate.series s ON s.id = r.series ORDER BY r.log_offset"""


def stored(url: str) -> list[Row]:
    """All readings of a database, read past the gates; their values are integers here."""
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(_ROWS)
            return [Row(offset, device, metric, ts, int(num)) for offset, device, metric, ts, num in cursor]
    finally:
        connection.close()


class Node:
    """One gate of several workers, again and again on the same port."""

    def __init__(self, home: Path, port: int, **environment: str) -> None:
        self.place = Place(port)
        self.log = home.with_suffix(".log")
        self._home = home
        self._environment = {"PORT": str(port), "JWT_SECRET": SECRET, "WORKERS": str(WORKERS), **environment}
        self._life = AsyncExitStack()
        self._gate: GateProcess | None = None

    @property
    def gate(self) -> GateProcess:
        """The one that runs."""
        assert self._gate is not None, "the node does not run"
        return self._gate

    @property
    def workers(self) -> list[int]:
        """The ids of its worker processes."""
        return children(self.gate.process.pid)

    async def start(self) -> None:
        """Start it; returns when it serves."""
        log = self._life.enter_context(self.log.open("ab"))
        gate = run_logged(self._home, log.fileno(), self._environment)
        self._gate = await self._life.enter_async_context(gate)
        self.place.token = self._gate.token(ttl=3600)
        self.place.up.set()

    async def end(self, number: signal.Signals) -> None:
        """Have it go, or kill it: the parent of the workers, who must notice."""
        self.place.up.clear()
        self.gate.signal(number)
        await self.gate.ended()
        await self._life.aclose()
        self._gate = None

    async def close(self) -> None:
        """End it whatever it does."""
        await self._life.aclose()

    async def ready(self) -> None:
        """Wait until it takes traffic."""
        answer = None
        try:
            async with asyncio.timeout(PATIENCE):
                while (answer := await self.gate.get("/readyz", token="")).status != 200:
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise AssertionError(f"{self.place.port} is not ready, it says {answer}; {self.log}") from error


class Cluster:
    """The nodes and what they stand on."""

    def __init__(
        self, nodes: list[Node], postgres: PostgresServer, redis: RedisServer, bouncer: Pgbouncer | None
    ) -> None:
        self.nodes = nodes
        self.postgres = postgres
        self.redis = redis
        self.bouncer = bouncer

    # -- faults ----------------------------------------------------------------------------------

    def faults(self) -> dict[str, Fault]:
        """What can be done to it, by name."""
        found: dict[str, Fault] = {
            "kill -9 of a worker": self._kill_worker,
            "kill -9 of a node": functools.partial(self._end_node, number=signal.SIGKILL),
            "SIGTERM of a node": functools.partial(self._end_node, number=signal.SIGTERM),
            "rolling restart": self._roll,
            "PostgreSQL restart": functools.partial(self._restart_postgres, mode="fast"),
            "PostgreSQL immediate stop": functools.partial(self._restart_postgres, mode="immediate"),
            "PostgreSQL freeze": self._freeze_postgres,
            "Redis kill": self._kill_redis,
            "Redis freeze": self._freeze_redis,
        }
        if self.bouncer is not None:
            found["packets to PostgreSQL dropped"] = functools.partial(self._drop, port=self.postgres.port)
            found["packets to Redis dropped"] = functools.partial(self._drop, port=self.redis.port)
            found["pgbouncer reconnect"] = self._reconnect
            found["pgbouncer kill and resume"] = self._kill_through
        return found

    async def _kill_worker(self, chance: random.Random) -> None:
        node = chance.choice(self.nodes)
        pid = chance.choice(node.workers)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            while pid in node.workers or len(node.workers) < WORKERS:
                await asyncio.sleep(0.02)
        await node.ready()

    async def _end_node(self, chance: random.Random, number: signal.Signals) -> None:
        node = chance.choice(self.nodes)
        await node.end(number)
        await asyncio.sleep(chance.uniform(0, 0.5))
        await node.start()
        await node.ready()

    async def _roll(self, chance: random.Random) -> None:
        node = chance.choice(self.nodes)
        before = set(node.workers)
        node.gate.signal(signal.SIGHUP)
        async with asyncio.timeout(2 * PATIENCE):
            while before & set(node.workers) or len(node.workers) < WORKERS:
                await asyncio.sleep(0.05)
        await node.ready()

    async def _restart_postgres(self, chance: random.Random, mode: str) -> None:
        await self.postgres.stop("immediate" if mode == "immediate" else "fast")
        await asyncio.sleep(chance.uniform(0, 1.5))
        await self.postgres.start()
        await self._all_ready()

    async def _freeze_postgres(self, chance: random.Random) -> None:
        self.postgres.freeze()
        try:
            await asyncio.sleep(chance.uniform(0.2, 3))
        finally:
            self.postgres.thaw()
        await self._all_ready()

    async def _kill_redis(self, chance: random.Random) -> None:
        await self.redis.kill()
        await asyncio.sleep(chance.uniform(0, 1.5))
        await self.redis.start()
        await self._all_ready()

    async def _freeze_redis(self, chance: random.Random) -> None:
        self.redis.freeze()
        try:
            await asyncio.sleep(chance.uniform(0.2, 3))
        finally:
            self.redis.thaw()
        await self._all_ready()

    async def _drop(self, chance: random.Random, port: int) -> None:
        rules = [("-p", "tcp", flag, str(port), "-j", "DROP") for flag in ("--dport", "--sport")]
        done = []
        try:
            for rule in rules:
                await asyncio.to_thread(_iptables, "-I", *rule)
                done.append(rule)
            await asyncio.sleep(chance.uniform(0.2, 2.5))
        finally:
            for rule in done:
                await asyncio.to_thread(_iptables, "-D", *rule)
        await self._all_ready()

    async def _reconnect(self, chance: random.Random) -> None:
        assert self.bouncer is not None
        await self.bouncer.admin("RECONNECT")
        await self._all_ready()

    async def _kill_through(self, chance: random.Random) -> None:
        assert self.bouncer is not None
        await self.bouncer.admin("KILL postgres")
        await asyncio.sleep(chance.uniform(0, 1))
        await self.bouncer.admin("RESUME postgres")
        await self._all_ready()

    async def _all_ready(self) -> None:
        for node in self.nodes:
            await node.ready()


def _iptables(change: str, *rule: str) -> None:
    subprocess.run(["iptables", "-w", "5", change, "OUTPUT", "-o", "lo", *rule], check=True, timeout=20)


@asynccontextmanager
async def run_cluster(
    home: Path,
    postgres: PostgresServer,
    redis: RedisServer,
    ports: list[int],
    bouncer: Pgbouncer | None = None,
    **environment: str,
) -> AsyncIterator[Cluster]:
    """A node for each port; the second one reaches PostgreSQL through the bouncer where there is one."""
    nodes = []
    for number, port in enumerate(ports):
        through = bouncer is not None and number % 2 == 1
        url = bouncer.through(postgres.url) if bouncer is not None and through else postgres.url
        nodes.append(Node(home / f"node{number}", port, DATABASE_URL=url, REDIS_URL=redis.url, **environment))
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        yield Cluster(nodes, postgres, redis, bouncer)
    finally:
        for node in nodes:
            await node.close()
