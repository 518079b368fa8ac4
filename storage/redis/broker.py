"""Messages between the processes of a gate, by publish and subscribe.

A process hears its own messages too and passes them over by the mark they begin with, undecoded. What
commits say is collected for a turn of the loop and goes as one message of Redis; while the answers to
earlier ones are awaited more is collected, so that a busy gate publishes less often, not more.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from storage.broker import CacheCleared, Committed, Figures, Message
from storage.errors import StorageError, Unavailable
from storage.models import Batch
from storage.redis.client import RedisClient
from storage.redis.connection import Reply
from storage.redis.subscription import Subscription

_log = logging.getLogger("tidegate.redis")

_MARK = 8
# Bytes that one message of Redis should not exceed by far; a batch that is larger is split.
MESSAGE_MAX = 512 * 1024
# Messages that go together as one of Redis at most.
PARTS_MAX = 10_000
# Bytes that may wait to be sent, and messages of Redis that are sent and not answered yet.
QUEUE_MAX = 8 * 1024 * 1024
FLYING_MAX = 4
# Other messages than commits are few, and kept while Redis is away.
KEPT_MAX = 1_000
# Seconds at the end for what is on its way.
LAST_WORDS = 0.5

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Message]).decode


class RedisBroker:
    """See storage.broker.Broker. `channel`: the same for all processes of a gate, and for no others."""

    def __init__(self, client: RedisClient, channel: bytes, receive: Callable[[Message], None]) -> None:
        self._client = client
        self._channel = channel
        self._receive = receive
        self._mark = secrets.token_bytes(_MARK)
        self._loop = asyncio.get_running_loop()
        # As they came in this turn of the loop; then encoded, those of commits and others.
        self._fresh: list[Message] = []
        self._commits: deque[bytes] = deque()
        self._kept: deque[bytes] = deque()
        self._queued = 0
        self._flying = 0
        # Nothing is on its way.
        self._landed = asyncio.Event()
        self._landed.set()
        self.figures = Figures()
        client.watch(self._send)
        self._subscription = Subscription(client, channel, self._deliver, self._missed)

    @classmethod
    async def open(
        cls, client: RedisClient, channel: bytes, receive: Callable[[Message], None], patience: float = 2.0
    ) -> "RedisBroker":
        """A broker that listens, or will as soon as it can.

        `patience`: seconds to wait for that, if Redis is there.
        """
        broker = cls(client, channel, receive)
        if not client.healthy:
            return broker
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await broker._subscription.listening.wait()
        return broker

    @property
    def healthy(self) -> bool:
        """See storage.broker.Broker."""
        return self._subscription.healthy and self._client.connection(self._channel) is not None

    def publish(self, message: Message) -> None:
        """See storage.broker.Broker. What it costs is paid later in this turn of the loop."""
        if not self._fresh:
            self._loop.call_soon(self._encode)
        self._fresh.append(message)

    async def close(self) -> None:
        """Send what waits, as far as Redis takes it in a moment, and listen no more."""
        self._encode()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self._landed.wait()
        self._client.unwatch(self._send)
        await self._subscription.close()

    # -- out -----------------------------------------------------------------------------------

    def _encode(self) -> None:
        fresh, self._fresh = self._fresh, []
        for message in fresh:
            if isinstance(message, Committed):
                self._add(message)
            elif len(self._kept) < KEPT_MAX:
                self._kept.append(_encode(message))
            else:
                self.figures.dropped += 1
        self._send()

    def _add(self, message: Committed) -> None:
        """Queue what was committed; in pieces, if it is large."""
        if self._client.connection(self._channel) is None:
            self.figures.dropped += 1
            return
        data = _encode(message)
        if len(data) > MESSAGE_MAX and len(message.batch.readings) > 1:
            for piece in _pieces(message, len(data) // MESSAGE_MAX + 1):
                self._queue(_encode(piece))
        else:
            self._queue(data)

    def _queue(self, data: bytes) -> None:
        if self._queued > QUEUE_MAX:
            self.figures.dropped += 1
        else:
            self._commits.append(data)
            self._queued += len(data)

    def _send(self) -> None:
        """Send what is queued, as long as few enough are on their way."""
        kept, commits = self._kept, self._commits
        while (kept or commits) and self._flying < FLYING_MAX:
            connection = self._client.connection(self._channel)
            if connection is None:
                # Late is worse than lost: by then the others have read it in the database.
                self.figures.dropped += len(commits)
                commits.clear()
                self._queued = 0
                return
            parts: list[bytes] = []
            size = 0
            while (kept or commits) and size < MESSAGE_MAX and len(parts) < PARTS_MAX:
                if kept:
                    part = kept.popleft()
                else:
                    part = commits.popleft()
                    self._queued -= len(part)
                parts.append(part)
                size += len(part)
            # An array of MessagePack whose items are encoded already.
            payload = b"".join((self._mark, b"\xdc", len(parts).to_bytes(2, "big"), *parts))
            command = b"SPUBLISH" if self._client.sharded else b"PUBLISH"
            self._flying += 1
            self._landed.clear()
            sent = partial(self._sent, len(parts))
            if not connection.send((command, self._channel, payload), sent):
                sent(Unavailable("too many commands wait for Redis"))
                return

    def _sent(self, messages: int, reply: Reply) -> None:
        self._flying -= 1
        if isinstance(reply, StorageError):
            self.figures.dropped += messages
        else:
            self.figures.sent += messages
        # Where the connection is gone, the client says when there is another.
        if not isinstance(reply, Unavailable):
            self._send()
        if not self._flying:
            self._landed.set()

    # -- in ------------------------------------------------------------------------------------

    def _deliver(self, payload: bytes) -> None:
        if payload.startswith(self._mark):
            return
        try:
            messages = _decode(memoryview(payload)[_MARK:])
        except msgspec.MsgspecError as error:
            # Of another version of the gate, perhaps.
            _log.warning("a message that cannot be read", extra={"error": str(error)})
            self._missed()
            return
        self.figures.received += len(messages)
        for message in messages:
            self._hand(message)

    def _missed(self) -> None:
        self.figures.reconnects = self._subscription.reconnects
        self._hand(CacheCleared())

    def _hand(self, message: Message) -> None:
        try:
            self._receive(message)
        except Exception:
            _log.exception("a message broke who received it")


def _pieces(message: Committed, count: int) -> Iterator[Committed]:
    """The same in so many pieces, at least one reading in each."""
    batch = message.batch
    size, first = -(-len(batch.readings) // count), batch.first
    for start in range(0, len(batch.readings), size):
        readings = batch.readings[start : start + size]
        last = readings[-1].offset if start + size < len(batch.readings) else batch.last
        yield Committed(message.epoch, Batch(first, last, readings, batch.epoch))
        first = last + 1
