"""The second level of the newest values, in Redis."""

import asyncio
import logging

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
        # How often Redis was too slow.
        self.late = 0

    async def get(self, device: str) -> Kept | None:
        """See storage.second_level.Store."""
        key = self._prefix + device.encode()
        connection = self._client.connection(key)
        if connection is None or not connection.answers:
            return None
        answer = connection.call(b"GET", key)
        alarm = self._loop.call_later(DEADLINE, self._give_up, answer)
        try:
            data = await answer
        except StorageError:
            return None
        finally:
            alarm.cancel()
        return None if data is None else _read(data)

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

    def _give_up(self, answer: asyncio.Future[Reply]) -> None:
        if not answer.done():
            answer.set_result(None)
            self.late += 1


def _read(data: bytes) -> Kept | None:
    try:
        return _decode(data)
    except msgspec.MsgspecError as error:
        # Of another version of the gate, perhaps.
        _log.debug("a value that cannot be read", extra={"error": str(error)})
        return None


def _nothing(_: Reply) -> None:
    """Whether it was kept shows when it is asked for."""
