"""Where the servers are: asked when a connection is needed, from whoever knows, through redis-py."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from msgspec import Struct
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from storage.errors import Unavailable
from storage.redis.url import Address, Kind, RedisUrl

# Seconds that one server has to say what it knows.
PATIENCE = 1.0
SLOTS = 16_384


class Topology(Struct, frozen=True):
    """Which server has which keys. `slots`: their owners, for a cluster; else empty, and there is one."""

    addresses: tuple[Address, ...]
    slots: tuple[Address | None, ...] = ()

    @property
    def sharded(self) -> bool:
        """Whether it is a cluster."""
        return bool(self.slots)

    def owner(self, key: bytes) -> Address | None:
        """Who has the key; None: nobody at the moment."""
        return self.slots[key_slot(key)] if self.slots else self.addresses[0]


async def discover(url: RedisUrl, tls: ssl.SSLContext | None, known: Iterable[Address]) -> Topology:
    """The topology as the first of those who can say tells it: of the URL's, then `known`. Unavailable."""
    asked = dict.fromkeys((*url.addresses, *known))
    if url.kind is Kind.SENTINEL:
        return Topology((await _master(url, tls),))
    problem: Exception | None = None
    for address in asked:
        try:
            return await _ask(url, tls, address)
        except (RedisError, OSError) as error:
            problem = error
    raise Unavailable(f"Redis cannot be reached: {problem}") from problem


async def _ask(url: RedisUrl, tls: ssl.SSLContext | None, address: Address) -> Topology:
    async with _client(address, url.username, url.password, tls) as client:
        if url.kind is Kind.SERVER:
            # A plain URL may lead to a node of a cluster. Who may not ask is told nothing of one.
            with contextlib.suppress(NoPermissionError):
                if (await client.info("cluster")).get("cluster_enabled"):
                    return _cluster(await _slots(client), address)
            return Topology((address,))
        return _cluster(await _slots(client), address)


async def _slots(client: "aioredis.Redis") -> list[list[Any]]:
    # What redis-py offers for this is typed for clients of clusters only.
    answer: list[list[Any]] = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
    return answer


def _cluster(rows: list[list[Any]], asked: Address) -> Topology:
    """The topology from the answer to CLUSTER SLOTS: first slot, last slot, the owner, its replicas."""
    slots: list[Address | None] = [None] * SLOTS
    for first, last, owner, *_ in rows:
        # A node that does not know its own address leaves it out.
        address = (owner[0].decode() if owner[0] else asked[0], int(owner[1]))
        slots[first : last + 1] = [address] * (last + 1 - first)
    addresses = tuple(dict.fromkeys(address for address in slots if address is not None))
    if not addresses:
        raise ResponseError("the cluster has no slots")
    return Topology(addresses, tuple(slots))


async def _master(url: RedisUrl, tls: ssl.SSLContext | None) -> Address:
    sentinel = aioredis.Sentinel(())  # type: ignore[no-untyped-call]
    async with AsyncExitStack() as stack:
        sentinel.sentinels = [
            await stack.enter_async_context(_client(address, "", url.sentinel_password, tls))
            for address in url.addresses
        ]
        try:
            host, port = await sentinel.discover_master(url.service)
        except (RedisError, OSError) as error:
            raise Unavailable(f"the sentinels name no master: {error}") from error
    return str(host), int(port)


@asynccontextmanager
async def _client(
    address: Address, username: str, password: str, tls: ssl.SSLContext | None
) -> AsyncIterator["aioredis.Redis"]:
    """A client of one server that gives up soon and does not try again."""
    encrypted: dict[str, Any] = {} if tls is None else {"connection_class": _Encrypted, "context": tls}
    pool: aioredis.ConnectionPool = aioredis.ConnectionPool(
        **encrypted,
        host=address[0],
        port=address[1],
        username=username or None,
        password=password or None,
        socket_timeout=PATIENCE,
        socket_connect_timeout=PATIENCE,
        retry=Retry(NoBackoff(), 0),
        # What it would say of itself it looks for in files.
        driver_info=None,
    )
    client = aioredis.Redis(connection_pool=pool)
    try:
        yield client
    finally:
        await client.aclose(close_connection_pool=True)


class _Encrypted(aioredis.SSLConnection):
    """With a context that is made already: to make one reads files."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = context
