"""Connections to all servers that hold the gate's keys, kept and found again."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

from storage import tasks
from storage.errors import StorageError, Unavailable
from storage.redis.connection import Access, Command, Connection, Part, Receiver, Reply, connect
from storage.redis.topology import Topology, discover
from storage.redis.url import Address, RedisUrl

_log = logging.getLogger("tidegate.redis")

# Seconds to find the servers, and between two attempts.
ATTEMPT = 3.0
PAUSE_MIN = 0.05
PAUSE_MAX = 1.0


class RedisClient:
    """Made by `open`. `reconnects`: how often the servers were looked for again.

    `changed`: called when connections have come or gone.
    """

    def __init__(self, url: RedisUrl, access: Access) -> None:
        self._url = url
        self.access = access
        self._topology = Topology(url.addresses[:1])
        self._connections: dict[Address, Connection] = {}
        # The only one, if there is no cluster: found without a look-up.
        self._single: Connection | None = None
        self._away = asyncio.Event()
        self._away.set()
        self._tried = asyncio.Event()
        self._watchers: list[Callable[[], None]] = []
        self._closed = False
        self.reconnects = 0
        self._task = asyncio.create_task(self._run(), name="redis")

    @classmethod
    async def open(cls, url: RedisUrl, name: str, patience: float = 2.0) -> "RedisClient":
        """A client; `name`: of its connections. Redis may be away, then it is looked for from now on.

        `patience`: seconds to wait for the first attempt. OSError: the files of TLS cannot be read.
        """
        tls = await asyncio.to_thread(url.context)
        client = cls(url, Access(url.username, url.password, url.db, tls, name))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await client._tried.wait()
        except BaseException:
            await client.close()
            raise
        return client

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever connections have come or gone."""
        self._watchers.append(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        """Call it no more."""
        self._watchers.remove(changed)

    @property
    def sharded(self) -> bool:
        """Whether the servers are a cluster."""
        return self._topology.sharded

    @property
    def healthy(self) -> bool:
        """Whether every server is connected and answers."""
        connections = self._connections
        return all(
            (found := connections.get(address)) is not None and found.answers
            for address in self._topology.addresses
        )

    def address(self, key: bytes) -> Address | None:
        """Where the key is, as far as is known."""
        return self._topology.owner(key)

    def connection(self, key: bytes) -> Connection | None:
        """An open connection to the server that has the key, None if there is none."""
        if self._single is not None:
            return self._single
        address = self._topology.owner(key)
        found = None if address is None else self._connections.get(address)
        return found if found is not None and found.open else None

    def call(self, key: bytes, *command: Part) -> asyncio.Future[Reply]:
        """Send a command about this key; see Connection.call."""
        connection = self.connection(key)
        if connection is not None:
            return connection.call(*command)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        future.set_exception(Unavailable("Redis is away"))
        return future

    def send(self, key: bytes, command: Command, receiver: Receiver) -> bool:
        """Send a command about this key; see Connection.send."""
        connection = self.connection(key)
        return connection is not None and connection.send(command, receiver)

    async def close(self) -> None:
        """Let go of all servers."""
        self._closed = True
        await tasks.end(self._task)
        self._drop(self._connections)

    async def _run(self) -> None:
        """Find the servers and connect; again when one is lost or says that another one is to be asked."""
        pause = PAUSE_MIN
        told = False
        while True:
            await self._away.wait()
            self._away.clear()
            try:
                await self._reach()
            except (StorageError, TimeoutError) as error:
                if not told:
                    _log.warning("Redis is away", extra={"error": str(error)})
                told = True
                self._away.set()
            except Exception:
                _log.exception("the search for Redis broke")
                self._away.set()
            else:
                if told:
                    _log.info("Redis is back")
                told, pause = False, PAUSE_MIN
            self._tried.set()
            # Not all nodes at once, and no storm of questions while a cluster moves slots.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, PAUSE_MAX)

    async def _reach(self) -> None:
        """Connect to all servers there are. StorageError: some cannot be reached; the others are used."""
        self.reconnects += 1
        async with asyncio.timeout(ATTEMPT):
            topology = await discover(self._url, self.access.tls, tuple(self._connections))
        missing = [
            address
            for address in topology.addresses
            if address not in self._connections or not self._connections[address].open
        ]
        made = await asyncio.gather(*map(self._connect, missing), return_exceptions=True)
        self._drop(set(self._connections) - set(topology.addresses))
        self._topology = topology
        self._changed()
        for problem in made:
            if problem is not None:
                raise problem

    async def _connect(self, address: Address) -> None:
        self._connections[address] = await connect(self._make, address, self.access)

    def _make(self) -> Connection:
        return Connection(self._lost)

    def _lost(self) -> None:
        """A connection ended, or is not the one to ask."""
        if not self._closed:
            self._away.set()
            self._changed()

    def _changed(self) -> None:
        single = None if self.sharded else self._connections.get(self._topology.addresses[0])
        self._single = single if single is not None and single.open else None
        for watcher in tuple(self._watchers):
            watcher()

    def _drop(self, addresses: "set[Address] | dict[Address, Connection]") -> None:
        for address in tuple(addresses):
            self._connections.pop(address).close()
