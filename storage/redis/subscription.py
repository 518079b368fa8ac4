"""Listens to one channel, and listens again when it was interrupted."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

from storage import tasks
from storage.errors import StorageError
from storage.redis.client import PAUSE_MAX, PAUSE_MIN, RedisClient
from storage.redis.connection import CONNECT, Subscriber, connect
from storage.redis.url import Address

_log = logging.getLogger("tidegate.redis")


class Subscription:
    """The messages of a channel, each given to `deliver`. `resumed`: called when listening has begun again
    after an interruption: what was said meanwhile is lost. `reconnects`: how often that was.
    """

    def __init__(
        self,
        client: RedisClient,
        channel: bytes,
        deliver: Callable[[bytes], None],
        resumed: Callable[[], None],
    ) -> None:
        self._client = client
        self._channel = channel
        self._deliver = deliver
        self._resumed = resumed
        self._connection: Subscriber | None = None
        self._address: Address | None = None
        self._changed = asyncio.Event()
        self.listening = asyncio.Event()
        self.reconnects = -1
        client.watch(self._changed.set)
        self._task = asyncio.create_task(self._run(), name="redis-subscription")

    @property
    def healthy(self) -> bool:
        """Whether somebody listens, as far as is known."""
        connection = self._connection
        return connection is not None and connection.answers and self.listening.is_set()

    async def close(self) -> None:
        """Listen no more."""
        await tasks.end(self._task)
        if self._connection is not None:
            self._connection.close()

    async def _run(self) -> None:
        pause = PAUSE_MIN
        while True:
            self._changed.clear()
            if not self._stands():
                self.listening.clear()
                try:
                    await self._listen()
                except (StorageError, TimeoutError) as error:
                    _log.debug("no subscription", extra={"error": str(error)})
                    # Somebody else may have the channel by then, which is for the client to find out.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):  # noqa: S311
                            await self._changed.wait()
                    pause = min(2 * pause, PAUSE_MAX)
                    continue
                except Exception:
                    _log.exception("the subscription broke")
                    await asyncio.sleep(PAUSE_MAX)
                    continue
                pause = PAUSE_MIN
            await self._changed.wait()

    def _stands(self) -> bool:
        """Whether the connection is open and leads to where the channel is."""
        connection = self._connection
        return (
            connection is not None
            and connection.open
            and self._client.address(self._channel) == self._address
        )

    async def _listen(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._address = self._client.address(self._channel)
        if self._address is None:
            raise StorageError("nobody has the channel")
        self._connection = await connect(self._make, self._address, self._client.access)
        async with asyncio.timeout(CONNECT):
            await self._connection.subscribe(self._channel, sharded=self._client.sharded)
        self.reconnects += 1
        self.listening.set()
        if self.reconnects:
            self._resumed()

    def _make(self) -> Subscriber:
        return Subscriber(self._changed.set, self._deliver)
