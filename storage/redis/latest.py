"""The second level of the newest values, in Redis."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

import msgspec

from storage.errors import StorageError
from storage.redis.client import RedisClient
from storage.redis.connection import Reply
from storage.second_level import Kept

_log = logging.getLogger("tidegate.redis")

# Seconds after which the database is asked instead.
DEADLINE = 0.1
# Bytes of one device; larger ones are not kept.
SIZE_MAX = 256 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Kept).decode


class RedisLatest:
    """See storage.second_level.Store. `prefix`: of the keys; `ttl`: seconds that a value is kept."""

    def __init__(self, client: RedisClient, prefix: str, ttl: int) -> None:
        self._client = client
        self._prefix = f"{prefix}:latest:".encode()
        self._ttl = ttl
        self._loop = asyncio.get_running_loop()
        # In the order in which they were asked.
        self._asked: deque[_Question] = deque()
        # How often Redis was too slow.
        self.late = 0

    def get(self, device: str, found: Callable[[Kept | None], None]) -> None:
        """See storage.second_level.Store."""
        key = self._prefix + device.encode()
        connection = self._client.connection(key)
        question = _Question(found, self._loop.time() + DEADLINE)
        if (
            connection is None
            or not connection.answers
            or not connection.send((b"GET", key), question.answer)
        ):
            found(None)
            return
        if not self._asked:
            self._loop.call_later(DEADLINE, self._look)
        self._asked.append(question)

    def put(self, device: str, kept: Kept) -> None:
        """See storage.second_level.Store."""
        data = _encode(kept)
        if len(data) <= SIZE_MAX:
            key = self._prefix + device.encode()
            self._client.send(key, (b"SET", key, data, b"EX", self._ttl), _nothing)

    def forget(self, device: str) -> None:
        """See storage.second_level.Store."""
        key = self._prefix + device.encode()
        self._client.send(key, (b"UNLINK", key), _nothing)

    def _look(self) -> None:
        """Give up what was asked too long ago: one alarm for all questions."""
        now, asked = self._loop.time(), self._asked
        while asked and (asked[0].found is None or asked[0].until <= now):
            found = asked.popleft().end()
            if found is not None:
                self.late += 1
                found(None)
        if asked:
            self._loop.call_at(asked[0].until, self._look)


class _Question:
    """Whom to tell, until when; nobody any more once he was told."""

    __slots__ = ("found", "until")

    def __init__(self, found: Callable[[Kept | None], None], until: float) -> None:
        self.found: Callable[[Kept | None], None] | None = found
        self.until = until

    def end(self) -> Callable[[Kept | None], None] | None:
        """Whom to tell, for the last time."""
        found, self.found = self.found, None
        return found

    def answer(self, reply: Reply) -> None:
        """What Redis says."""
        found = self.end()
        if found is not None:
            found(None if reply is None or isinstance(reply, StorageError) else _read(reply))


def _read(data: bytes) -> Kept | None:
    try:
        return _decode(data)
    except msgspec.MsgspecError as error:
        # Of another version of the gate, perhaps.
        _log.debug("a value that cannot be read", extra={"error": str(error)})
        return None


def _nothing(_: Reply) -> None:
    """Whether it was kept shows when it is asked for."""
