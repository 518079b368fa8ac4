"""Shared limits in Redis: GCRA on its clock, many keys in one call."""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Sequence
from zlib import crc32

from storage.counters import SILENCE, Spent
from storage.errors import StorageError, Unavailable
from storage.redis.client import RedisClient
from storage.redis.connection import Part, RedisError, Reply

# Keys of one call: Redis does nothing else meanwhile.
KEYS = 200
# A cluster wants the keys of one call on one node: they share one of so many hash tags.
TAGS = 16


class _Script:
    """A script, known to the server by its digest once it has run there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# KEYS: a bucket each; ARGV: what was spent and the most its fill may be, in seconds. Gives the fills.
# A bucket is its theoretical arrival time, and is gone when it is empty.
_SETTLE = _Script("""
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
""")

# KEYS: the processes by when they were last heard of; ARGV: who calls, and how long the silent count.
_BEAT = _Script("""
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('EXPIRE', KEYS[1], 2 * ARGV[2])
return redis.call('ZCARD', KEYS[1])
""")


class _Call:
    """A script that runs on the keys of one node."""

    def __init__(
        self, client: RedisClient, script: _Script, keys: Sequence[bytes], arguments: Sequence[Part]
    ) -> None:
        self._client = client
        self._script = script
        self._rest = (len(keys), *keys, *arguments)
        self._key = keys[0]
        self._running = client.call(self._key, b"EVALSHA", script.digest, *self._rest)

    async def answer(self) -> Reply:
        """What it gives. Unavailable, RedisError."""
        try:
            return await self._running
        except RedisError as error:
            # The server has forgotten it, or never knew.
            if not str(error).startswith("NOSCRIPT"):
                raise
        return await self._client.call(self._key, b"EVAL", self._script.text, *self._rest)


class RedisCounters:
    """See storage.counters.Counters. `prefix`: of the keys, the same for all processes of a gate.

    How long a settlement may take is for the connection to say: it gives up a server that is silent.
    """

    def __init__(self, client: RedisClient, prefix: str) -> None:
        self._client = client
        self._prefix = prefix.encode()
        self._name = secrets.token_hex(8)
        self._members = f"{prefix}:processes".encode()
        self.processes = 1

    async def settle(self, spent: Sequence[Spent]) -> list[float]:
        """See storage.counters.Counters."""
        if not self._client.healthy:
            # A part of a cluster is not enough: some would be counted, some not.
            raise Unavailable("Redis is away")
        try:
            if spent:
                return await self._add(spent)
            beat = _Call(self._client, _BEAT, (self._members,), (self._name, int(SILENCE)))
            self.processes = await beat.answer()
        except RedisError as error:
            raise Unavailable(f"Redis cannot settle: {error}") from error
        return []

    async def close(self) -> None:
        """Count no longer as one of the processes."""
        with contextlib.suppress(StorageError):
            await self._client.call(self._members, b"ZREM", self._members, self._name)

    async def _add(self, spent: Sequence[Spent]) -> list[float]:
        if not self._client.sharded and len(spent) <= KEYS:
            return list(map(float, await self._call(b"", spent).answer()))
        groups: dict[bytes, list[int]] = {}
        for place, one in enumerate(spent):
            tag = b"{%d}" % (crc32(_bytes(one.key)) % TAGS) if self._client.sharded else b""
            groups.setdefault(tag, []).append(place)
        parts = [
            (tag, places[start : start + KEYS])
            for tag, places in groups.items()
            for start in range(0, len(places), KEYS)
        ]
        calls = [self._call(tag, [spent[place] for place in places]) for tag, places in parts]
        answers = await asyncio.gather(*(call.answer() for call in calls))
        fills = [0.0] * len(spent)
        for (_, places), answer in zip(parts, answers, strict=True):
            for place, fill in zip(places, answer, strict=True):
                fills[place] = float(fill)
        return fills

    def _call(self, tag: bytes, spent: Sequence[Spent]) -> _Call:
        start = b"%b:limit%b:" % (self._prefix, tag)
        keys = [start + _bytes(f"{one.policy}:{one.key}") for one in spent]
        arguments = [number for one in spent for number in (one.seconds, one.most)]
        return _Call(self._client, _SETTLE, keys, arguments)


def _bytes(key: str) -> bytes:
    # What came in a header may hold bytes that are no text.
    return key.encode(errors="surrogatepass")
