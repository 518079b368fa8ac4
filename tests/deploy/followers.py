"""Followers that come back through nginx, over both kinds of streams."""

import asyncio
import contextlib
import random

import aiohttp

from tests.handlers.followers import EventFrames
from tests.reliability.following import Follower, Place, Trace
from tests.reliability.record import Wish


class EventFollower:
    """Server-sent events by aiohttp's client, for nginx sends them in chunks; as Follower otherwise."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    async def run(self, place: Place) -> None:
        """Follow, lose the connection, come back."""
        bearer = {"Authorization": f"Bearer {place.token}"}
        match = "&".join(f"match={pattern}" for pattern in self.trace.wish.match)
        url = f"http://127.0.0.1:{place.port}/v1/events?time=us&{match}"
        # A stream has no end that could be told beforehand.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with aiohttp.ClientSession(headers=bearer, timeout=timeout) as session:
            while not place.over:
                with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                    await self._once(session, url)
                await asyncio.sleep(0.05)

    async def _once(self, session: aiohttp.ClientSession, url: str) -> None:
        resume = {"Last-Event-ID": self.trace.asks} if self.trace.asks else {}
        async with session.get(url, headers=resume) as answer:
            if answer.status == 503:
                return
            assert answer.status == 200, answer
            self.trace.connected()
            frames = EventFrames()
            async for data in answer.content.iter_any():
                for message in frames.feed(data):
                    self.trace.take(message)


def follow(wish: Wish) -> list[Follower | EventFollower]:
    """One follower per wire; each follows from the beginning."""
    found: list[Follower | EventFollower] = [
        Follower(wire, Trace(wish, "earliest"), random.Random(1), None) for wire in ("json", "msgpack")
    ]
    return [*found, EventFollower(Trace(wish, "earliest"))]
