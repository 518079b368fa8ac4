"""One of several processes that serve: it has its slot's sockets and a channel to the parent, no more."""

import asyncio
import contextlib
import logging
import os
import socket

import msgspec
from msgspec import Struct

from server import logs
from server.app import Gate
from server.control import Beat, Channel, Failed, Figures, Message, ParentLink, Ready
from server.serving import Life, accepting, allow_files, settle
from server.settings import Settings

_log = logging.getLogger("tidegate.worker")

BEAT_EVERY = 0.5
# Seconds that the last words may take.
LAST_WORDS = 0.5


class Post(Struct, frozen=True):
    """What a worker is started with: its slot and file descriptors: the channel to the parent, the slot's
    listening sockets, and those for operations, which all workers share.
    """

    slot: int
    control: int
    main: list[int]
    apart: list[int]

    def text(self) -> str:
        """For the command line."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def read(cls, text: str) -> "Post":
        """From the command line."""
        return msgspec.json.decode(text, type=cls)


class _Worker:
    """What the parent knows of this process, and it of the parent."""

    def __init__(self, life: Life) -> None:
        self.channel = Channel(_ignore, self._answer, self._lost)
        self.gate: Gate | None = None
        self._life = life
        self._leaving = False
        self._alone = asyncio.Event()

    async def beat(self) -> None:
        """Tell the parent that the loop turns."""
        while True:
            self.channel.tell(Beat())
            await asyncio.sleep(BEAT_EVERY)

    async def leave(self) -> None:
        """Say the last words: what was counted."""
        if self.gate is not None:
            self.channel.tell(Figures(self.gate.metrics.families()))
        self._leaving = True
        self.channel.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self._alone.wait()

    async def _answer(self, _: Message) -> Message:
        """The parent asks for nothing but figures."""
        if self.gate is None:
            return Failed()
        return Figures(await asyncio.to_thread(self.gate.metrics.families))

    def _lost(self) -> None:
        self._alone.set()
        if not self._leaving:
            _log.error("the parent has gone")
            self._life.end()


async def work(settings: Settings, post: Post) -> None:
    """Serve until SIGTERM, or until the parent has gone. Raises what serving.serve does."""
    if settings.cpu_pinning:
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[post.slot % len(allowed)]})
    life = Life()
    always = {"worker": post.slot, "pid": os.getpid()}
    log = await asyncio.to_thread(logs.setup, settings.log_level, settings.access_log, always=always)
    try:
        worker = _Worker(life)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: worker.channel, sock=socket.socket(fileno=post.control))
        beat = asyncio.create_task(worker.beat())
        allow_files(settings)
        main, apart = [[socket.socket(fileno=fd) for fd in fds] for fds in (post.main, post.apart)]
        try:
            async with (
                Gate.open(settings, log, life.fail, ParentLink(worker.channel)) as gate,
                accepting(gate, settings, main, apart, life),
            ):
                worker.gate = gate
                settle()
                worker.channel.tell(Ready())
                await life.stop.wait()
                _log.info("closing")
        finally:
            beat.cancel()
            await worker.leave()
    finally:
        await asyncio.to_thread(log.close)
    life.over()


def _ignore(_: Message) -> None:
    """The parent only asks."""
