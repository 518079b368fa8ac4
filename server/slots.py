"""A slot for a worker, and the process that serves there."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress

from server.control import Channel, Collect, Figures, Message, Ready
from server.serving import EXIT_WITHIN
from server.sockets import Sockets
from server.stand_in import StandIn
from server.totals import Family
from server.worker import Post
from storage.errors import Unavailable

_log = logging.getLogger("tidegate.workers")

# Seconds that a worker has to become ready: it may have to migrate a large database.
START_WITHIN = 600.0
# Seconds that a worker has to end, less than the parent itself has.
END_WITHIN = EXIT_WITHIN - 0.3
# Seconds before a worker is started again: none for one that has served so long, else more each time.
STEADY = 5.0
BACKOFF = 0.1
BACKOFF_MAX = 10.0
# Seconds that a worker may take to tell its figures.
FIGURES_DEADLINE = 1.0

# The same code as here, wherever that was found.
_START = "import sys; sys.path[:] = sys.argv.pop(1).split(':'); from server.cli import main; sys.exit(main())"


class Worker:
    """A process in a slot. `heard`: loop time of its last sign of life, `met`: whether there was any; `code`:
    how it ended.
    """

    def __init__(
        self,
        slot: int,
        main: Sockets,
        apart: Sockets,
        answer: Callable[[Message], Awaitable[Message]],
        over: Callable[["Worker"], None],
    ) -> None:
        self.slot = slot
        self.loop = asyncio.get_running_loop()
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.since = self.heard = self.loop.time()
        self.met = False
        self.code: int | None = None
        self.figures: list[Family] = []
        self._cut = False
        self._tell_over = over
        self.channel = Channel(self._hear, answer, self._lost)
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as stack:
            stack.enter_context(ours)
            fds = [[one.fileno() for one in place] for place in (main, apart)]
            post = Post(slot, theirs.fileno(), *fds)
            # In a session of its own, Ctrl-C reaches the parent alone.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _START, ":".join(sys.path), "serve", "--worker", post.text()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(post.control, *post.main, *post.apart),
                start_new_session=True,
            )
            stack.pop_all()
        self._connecting = self.loop.create_task(self.loop.create_connection(lambda: self.channel, sock=ours))
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self.loop.add_reader(self._pidfd, self._reap)

    async def started(self) -> bool:
        """Wait until it serves; False if it does not, and has ended then."""
        waiting = [asyncio.create_task(event.wait()) for event in (self.ready, self.ended)]
        try:
            await asyncio.wait(waiting, timeout=START_WITHIN, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if self.ready.is_set() and not self.ended.is_set():
            return True
        self.kill()
        await self.ended.wait()
        return False

    async def end(self) -> None:
        """Let it finish what it has accepted; killed if that takes too long."""
        self._process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(END_WITHIN):
                await self.ended.wait()
        self.kill()
        await self.ended.wait()

    def kill(self) -> None:
        """End it at once, if it has not."""
        self._process.kill()

    async def ask(self) -> None:
        """Have its figures up to date, if it answers in time."""
        with suppress(Unavailable):
            answer = await self.channel.ask(Collect(), FIGURES_DEADLINE)
            self._hear(answer)

    def _hear(self, message: Message) -> None:
        self.heard, self.met = self.loop.time(), True
        match message:
            case Ready():
                self.since = self.heard
                self.ready.set()
            case Figures():
                self.figures = message.families

    def _reap(self) -> None:
        self.code = self._process.wait()
        self.loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._over()

    def _lost(self) -> None:
        self._cut = True
        self._over()

    def _over(self) -> None:
        # By then its last words were heard.
        if self._cut and self.code is not None:
            self.ended.set()
            self._tell_over(self)


class Vacant(Exception):
    """A slot did not get a new worker. `told`: what the log says of it."""

    def __init__(self, told: dict[str, object]) -> None:
        super().__init__("a worker did not start")
        self.told = told


class Slot:
    """A place among those that the kernel spreads connections over, and the worker that serves there.

    `hire`: starts a process for it.
    """

    def __init__(
        self, number: int, main: Sockets, hire: Callable[["Slot"], Worker], stand_in: StandIn
    ) -> None:
        self.number = number
        self.main = main
        self.worker: Worker | None = None
        self._hire = hire
        self._stand_in = stand_in
        self._standing: asyncio.Task[None] | None = None
        self._failures = 0
        # Whoever starts a worker for the slot holds it.
        self._starting = asyncio.Lock()

    def close(self) -> None:
        """Nobody stands in any more."""
        if self._standing is not None:
            self._standing.cancel()

    async def fill(self) -> None:
        """Start a worker; Vacant if it did not become ready, the one before serves on then."""
        try:
            worker = self._hire(self)
        except OSError as error:
            raise Vacant({"slot": self.number, "error": str(error)}) from error
        if not await worker.started():
            raise Vacant({"slot": self.number, "child": worker.pid, "code": worker.code})
        self.worker = worker
        self.close()

    async def renew(self) -> None:
        """Have a successor take over, and the worker end. Vacant as `fill`."""
        async with self._starting:
            before = self.worker
            await self.fill()
        if before is not None:
            await before.end()

    async def keep(self) -> None:
        """Have a worker here, whatever happens to it."""
        while True:
            worker = self.worker
            if worker is not None:
                await worker.ended.wait()
                if self.worker is not worker:
                    # It was renewed.
                    continue
                self._vacate(worker)
            await asyncio.sleep(min(BACKOFF * 2**self._failures, BACKOFF_MAX) if self._failures else 0)
            async with self._starting:
                if self.worker is None:
                    try:
                        await self.fill()
                    except Vacant as vacant:
                        self._failures = min(self._failures + 1, 16)
                        _log.error("a worker did not start", extra=vacant.told)

    def _vacate(self, worker: Worker) -> None:
        self.worker = None
        lived = worker.loop.time() - worker.since
        self._failures = 0 if lived >= STEADY else min(self._failures + 1, 16)
        _log.error(
            "a worker ended",
            extra={"slot": self.number, "child": worker.pid, "code": worker.code, "after": round(lived, 3)},
        )
        self._standing = worker.loop.create_task(self._stand_in.stand(self.main))
