"""Shared limits in Redis: GCRA on its clock, many keys in one call."""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Sequence
from zlib import crc32

from storage.counters import SILENCE, Spent
from storage.errors import StorageError, Timeout, Unavailable
from storage.redis.client import RedisClient
from storage.redis.connection import Part, RedisError, Reply

# Seconds that a settlement may take.
DEADLINE = 1.0
# Keys of one call: Redis does nothing else meanwhile.
KEYS = 200
# A cluster wants the keys of one call on one node: they share one of so many hash tags.
TAGS = 16

# KEYS: a bucket each; ARGV: what was spent and the most its fill may be, in seconds. Gives the fills.
# A bucket is its theoretical arrival time, and is gone when it is empty.
_SETTLE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local fills = {}
for i, key in ipairs(KEYS) do
    local arrival = math.max(tonumber(redis.call('GET', key) or 0), now) + ARGV[2 * i - 1]
    local most = tonumber(ARGV[2 * i])
    if most > 0 then arrival = math.min(arrival, now + most) end
    local fill = arrival - now
    redis.call('SET', key, string.format('%.17g', arrival), 'PX', math.ceil(fill * 1000) + 1000)
    fills[i] = string.format('%.17g', fill)
end
return fills
"""

# KEYS: the processes by when they were last heard of; ARGV: who calls, and how long the silent count.
_BEAT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('EXPIRE', KEYS[1], 2 * ARGV[2])
return redis.call('ZCARD', KEYS[1])
"""


class _Script:
    """A script, known to the server by its digest once it has run there."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: RedisClient, keys: Sequence[bytes], arguments: Sequence[Part]) -> Reply:
        """What it gives. Unavailable, RedisError."""
        try:
            return await client.call(keys[0], b"EVALSHA", self._digest, len(keys), *keys, *arguments)
        except RedisError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return await client.call(keys[0], b"EVAL", self._text, len(keys), *keys, *arguments)


class RedisCounters:
    """See storage.counters.Counters. `prefix`: of the keys, the same for all processes of a gate."""

    def __init__(self, client: RedisClient, prefix: str) -> None:
        self._client = client
        self._prefix = prefix.encode()
        self._name = secrets.token_hex(8)
        self._members = f"{prefix}:processes".encode()
        self._settle = _Script(_SETTLE)
        self._beat = _Script(_BEAT)
        self.processes = 1

    async def settle(self, spent: Sequence[Spent]) -> list[float]:
        """See storage.counters.Counters."""
        if not self._client.healthy:
            # A part of a cluster is not enough: some would be counted, some not.
            raise Unavailable("Redis is away")
        try:
            async with asyncio.timeout(DEADLINE):
                if spent:
                    return await self._add(spent)
                self.processes = await self._beat.run(
                    self._client, (self._members,), (self._name, int(SILENCE))
                )
                return []
        except TimeoutError:
            raise Timeout(f"Redis did not settle within {DEADLINE} s") from None
        except RedisError as error:
            raise Unavailable(f"Redis cannot settle: {error}") from error

    async def close(self) -> None:
        """Count no longer as one of the processes."""
        with contextlib.suppress(StorageError, TimeoutError):
            async with asyncio.timeout(DEADLINE):
                await self._client.call(self._members, b"ZREM", self._members, self._name)

    async def _add(self, spent: Sequence[Spent]) -> list[float]:
        fills = [0.0] * len(spent)
        groups: dict[bytes, list[int]] = {}
        for place, one in enumerate(spent):
            tag = b"{%d}" % (crc32(one.key.encode()) % TAGS) if self._client.sharded else b""
            groups.setdefault(tag, []).append(place)
        calls = [
            (tag, places[start : start + KEYS])
            for tag, places in groups.items()
            for start in range(0, len(places), KEYS)
        ]
        answers = await asyncio.gather(
            *(self._call(tag, [spent[place] for place in places]) for tag, places in calls)
        )
        for (_, places), answer in zip(calls, answers, strict=True):
            for place, fill in zip(places, answer, strict=True):
                fills[place] = float(fill)
        return fills

    async def _call(self, tag: bytes, spent: Sequence[Spent]) -> list[bytes]:
        keys = [b"%b:limit%b:%b:%b" % (self._prefix, tag, o.policy.encode(), o.key.encode()) for o in spent]
        arguments = [number for one in spent for number in (one.seconds, one.most)]
        answer: list[bytes] = await self._settle.run(self._client, keys, arguments)
        return answer
