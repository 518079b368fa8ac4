"""What this process shares with the others of the gate: messages, limits, newest values.

All of it may be away; then the gate goes on by itself.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from auth.rate_limit import Limiter, Policy
from auth.shared_limits import Settlement
from handlers.health import Probe
from server.metrics import Metrics
from server.settings import Settings
from server.totals import Merge
from storage import tasks
from storage.broker import Alone, Broker, Message
from storage.counters import Counters
from storage.errors import StorageError, Unavailable
from storage.log import LogState
from storage.redis.broker import RedisBroker
from storage.redis.client import RedisClient
from storage.redis.counters import RedisCounters
from storage.redis.latest import RedisLatest
from storage.redis.url import parse_url
from storage.second_level import SecondLevel

# Seconds at the end for what was admitted and is not settled.
LAST_SETTLEMENT = 0.5


class Shared:
    """Made by `open`. `broker`: to the other processes."""

    def __init__(
        self, settings: Settings, client: RedisClient | None = None, counters: Counters | None = None
    ) -> None:
        self._client = client
        self._channel = f"{settings.redis_prefix}:messages".encode()
        self._settlement = Settlement(counters) if counters is not None else None
        self._limited = False
        self._store = (
            RedisLatest(client, settings.redis_prefix, settings.cache_ttl) if client is not None else None
        )
        self.broker: Broker = Alone()

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, counters: Counters | None = None) -> AsyncIterator["Shared"]:
        """Connect, if there is something to connect to. `counters`: those of limits without Redis."""
        if not settings.redis_url:
            yield cls(settings, counters=counters)
            return
        client = await RedisClient.open(parse_url(settings.redis_url), "tidegate")
        try:
            redis_counters = RedisCounters(client, settings.redis_prefix)
            yield cls(settings, client, redis_counters)
            await redis_counters.close()
        finally:
            await client.close()

    def limiter(
        self, name: str, limit: int, burst: int | None = None, *, capped: bool = False
    ) -> Limiter | None:
        """A limit per minute, None if `limit` is 0; over all processes, where something counts for all.

        `capped`: see SharedLimiter.
        """
        if not limit:
            return None
        policy = Policy(name, limit, burst=burst)
        if self._settlement is None:
            return Limiter(policy)
        self._limited = True
        return self._settlement.limiter(policy, capped=capped)

    async def run(self, stack: AsyncExitStack, receive: Callable[[Message], None]) -> None:
        """Take part from now on, until the stack ends. `receive`: what the others say."""
        if self._client is not None:
            broker = self.broker = await RedisBroker.open(self._client, self._channel, receive)
            stack.push_async_callback(broker.close)
        settlement = self._settlement
        if settlement is not None and self._limited:
            # Before the first request: until then nobody knows how many there are.
            with contextlib.suppress(StorageError):
                await settlement.beat()
            stack.push_async_callback(_settle, settlement)
            task = asyncio.create_task(settlement.run(), name="settlement")
            stack.push_async_callback(tasks.end, task)

    def second_level(self, state: Callable[[], LogState]) -> SecondLevel | None:
        """What is behind the cache of this process; `state`: of the log, as this process knows it."""
        return SecondLevel(self._store, state) if self._store is not None else None

    @property
    def told(self) -> bool:
        """Whether the others tell what they commit."""
        return self._client is not None and self.broker.healthy

    def probes(self) -> dict[str, Probe]:
        """What operators should know of, and what does not keep the gate from working."""
        return {} if self._client is None else {"redis": self._probe}

    def bind(self, metrics: Metrics) -> None:
        """Tell the metrics where the figures are; to be called after `run`."""
        counter, gauge, settlement = metrics.counter, metrics.gauge, self._settlement
        if settlement is not None:
            shared, sharing = (lambda: settlement.healthy), (lambda: settlement.processes)
            gauge("tidegate_limits_shared", "Whether limits hold over all.", shared, Merge.MIN)
            gauge("tidegate_limits_processes", "That share the limits.", sharing, Merge.MAX)
            counter("tidegate_limits_settled_total", "Leases settled.", lambda: settlement.settled)
            counter("tidegate_limits_lost_total", "Times alone with them.", lambda: settlement.lost)
        client, store = self._client, self._store
        if client is None or store is None:
            return
        gauge("tidegate_redis_healthy", "Whether messages pass.", lambda: self.broker.healthy, Merge.MIN)
        counter("tidegate_redis_connects_total", "Looks for Redis.", lambda: client.reconnects)
        counter("tidegate_redis_late_total", "Values that came too late.", lambda: store.late)
        figures = self.broker.figures
        counter("tidegate_broker_sent_total", "Messages that Redis took.", lambda: figures.sent)
        counter("tidegate_broker_received_total", "Messages of others.", lambda: figures.received)
        counter("tidegate_broker_dropped_total", "Messages not sent.", lambda: figures.dropped)
        counter("tidegate_broker_reconnects_total", "Interruptions.", lambda: figures.reconnects)

    async def _probe(self) -> None:
        if not self.broker.healthy:
            raise Unavailable("Redis is away; what it is for, each process does alone")


async def _settle(settlement: Settlement) -> None:
    """Once more at the end: what is not told is admitted twice."""
    with contextlib.suppress(StorageError, TimeoutError):
        async with asyncio.timeout(LAST_SETTLEMENT):
            await settlement.settle(everything=True)
