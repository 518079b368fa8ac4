"""All open streams of a process: whose token has ended, who is silent, who must go when the gate closes."""

import asyncio
import contextlib
import logging
from abc import abstractmethod
from collections.abc import Callable

from auth.tokens import KeyUnknown, TokenError, TokenVerifier
from handlers.exchange import Sink, Stream
from handlers.live.follower import Follower, Owner

_log = logging.getLogger("tidegate.streams")

# Seconds between two looks at tokens and at the head, and between two sweeps over all streams.
TICK = 0.25
SWEEP = 1.0
# Seconds after which a follower without a match is shown a position.
QUIET = 15.0
# Seconds that a client has to take what is kept for it, once its stream has ended.
GRACE = 5.0
# Streams that are looked at in one turn of the loop.
TURN = 500


class LiveStream(Stream, Owner):
    """What both transports have in common.

    `token`: what the client came with; `expires`: seconds since 1970. `until`: once the stream has ended, the
    loop time at which the connection is aborted.
    """

    __slots__ = ("_quiet_sent", "_quiet_since", "_streams", "expires", "follower", "sink", "token", "until")

    follower: Follower
    sink: Sink

    def __init__(self, streams: "Streams", token: str, expires: float) -> None:
        self._streams = streams
        self.token = token
        self.expires = expires
        self.until = 0.0
        self._quiet_since = streams.now()
        self._quiet_sent = 0

    @property
    def ended(self) -> bool:
        """Whether nothing follows but the end of the connection."""
        return self.until > 0.0

    def finish(self, data: bytes) -> None:
        """Send the last words; the connection is given a while to take them."""
        self.follower.close()
        self.until = self._streams.now() + GRACE
        if data:
            self.sink.write(data)

    def drained(self) -> None:
        """See Stream."""
        self.follower.drained()

    def lost(self) -> None:
        """See Stream."""
        self.until = self.until or 1.0
        self.follower.close()
        self._streams.discard(self)

    def tick(self, now: float) -> None:
        """Called every second."""
        if self.until:
            if now >= self.until:
                self.sink.abort()
            return
        sent = self.follower.sent
        if sent != self._quiet_sent:
            self._quiet_sent, self._quiet_since = sent, now
        elif now - self._quiet_since >= QUIET:
            self._quiet_since = now
            self.quiet()
            self._quiet_sent = self.follower.sent

    @abstractmethod
    def quiet(self) -> None:
        """Nothing was sent for a while: show where the follower is."""

    @abstractmethod
    def token_ended(self) -> None:
        """The token has expired or was revoked: end the stream."""

    @abstractmethod
    def going_away(self) -> None:
        """The gate closes: end the stream with a position to resume from."""

    @abstractmethod
    def log_replaced(self) -> None:
        """Another log takes the place of this one: end the stream with its position in this one, at once."""


class Streams:
    """Looks after the open streams. `now`: loop time; `clock`: seconds since 1970."""

    def __init__(self, verifier: TokenVerifier, now: Callable[[], float], clock: Callable[[], float]) -> None:
        self._verifier = verifier
        self.now = now
        self._clock = clock
        self._open: dict[LiveStream, None] = {}
        self._generation = verifier.generation
        self._empty = asyncio.Event()
        self.closing = False
        # Bytes that wait for all followers, as of the last sweep.
        self.queued = 0

    def __len__(self) -> int:
        return len(self._open)

    def count(self, kind: type[LiveStream]) -> int:
        """How many streams of a kind are open."""
        return sum(type(stream) is kind for stream in tuple(self._open))

    def add(self, stream: LiveStream) -> None:
        """A stream has begun."""
        self._open[stream] = None
        if self.closing:
            stream.going_away()

    def discard(self, stream: LiveStream) -> None:
        """A stream has gone."""
        self._open.pop(stream, None)
        if not self._open:
            self._empty.set()

    def log_replaced(self) -> None:
        """End all streams with positions in the log that was."""
        for stream in tuple(self._open):
            if not stream.ended:
                stream.log_replaced()

    async def run(self) -> None:
        """Look after them until cancelled."""
        swept = self.now()
        while True:
            await asyncio.sleep(TICK)
            try:
                self._expire()
                if self._generation != self._verifier.generation:
                    await self._verify()
                if self.now() - swept >= SWEEP:
                    swept = self.now()
                    await self._sweep()
            except Exception:
                _log.exception("the sweep over the streams broke")

    async def close(self, seconds: float) -> None:
        """End all streams, give their clients up to `seconds` to take the last words."""
        self.closing = True
        self._empty.clear()
        for stream in tuple(self._open):
            if not stream.ended:
                stream.going_away()
        if self._open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._empty.wait()
        for stream in tuple(self._open):
            stream.sink.abort()

    def _expire(self) -> None:
        now = self._clock()
        for stream in [one for one in self._open if one.expires <= now]:
            if not stream.ended:
                stream.token_ended()

    async def _verify(self) -> None:
        """Keys or revocations have changed: look at all tokens again."""
        self._generation = self._verifier.generation
        for index, stream in enumerate(tuple(self._open), 1):
            if not stream.ended:
                try:
                    await self._check(stream.token)
                except TokenError:
                    stream.token_ended()
            if index % TURN == 0:
                await asyncio.sleep(0)

    async def _check(self, token: str) -> None:
        try:
            self._verifier.verify(token)
        except KeyUnknown as unknown:
            await self._verifier.fetch(unknown.issuer)
            with contextlib.suppress(KeyUnknown):
                self._verifier.verify(token)

    async def _sweep(self) -> None:
        queued = 0
        for index, stream in enumerate(tuple(self._open), 1):
            stream.tick(self.now())
            queued += stream.follower.queued()
            if index % TURN == 0:
                await asyncio.sleep(0)
        self.queued = queued
