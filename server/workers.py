"""Many processes that serve, and their parent, which holds the sockets and watches over them.

Each worker has a slot: SO_REUSEPORT sockets that the parent keeps open, so that what waits in their
queues is not lost when a worker ends; its successor takes it from there (failures.md F2). Workers are
fresh processes, not forks: nothing of the parent's loop is in them (F29), and they take up the code, the
secrets and the keys that are there when they start.
"""

import asyncio
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from email.utils import formatdate
from functools import partial
from itertools import chain
from typing import TextIO, cast

from handlers.problems import Problem, retry_after
from server import logs, sockets
from server.control import Channel, Collect, Failed, Figures, Message, Ready, Settle, Settled
from server.dispatch import RequestIds
from server.encoding import Encoder
from server.metrics import Metrics
from server.notify import Notifier
from server.protocol import HEAD_END
from server.serving import EXIT_WITHIN, Life, allow_files, announce
from server.settings import Settings, Supervisor
from server.sockets import BACKLOG, Sockets
from server.totals import Family, Totals
from server.worker import Post
from storage.counters import MemoryCounters
from storage.errors import Unavailable

_log = logging.getLogger("tidegate.workers")

# Seconds that a worker has to become ready.
START_WITHIN = 30.0
# Seconds that a worker has to end, less than the parent itself has.
END_WITHIN = EXIT_WITHIN - 0.3
# Seconds after which the connections of a slot without a worker are answered by the parent, and how long
# such a connection may take.
VACANT = 1.0
REFUSAL_WITHIN = 2.0
# Seconds before a worker is started again: none for one that has served so long, else more each time.
STEADY = 5.0
BACKOFF = 0.1
BACKOFF_MAX = 10.0
# Bytes of a head that are looked at before such a connection is answered anyway.
HEAD_MAX = 16 * 1024
# Seconds that a worker may take to tell its figures.
FIGURES_DEADLINE = 1.0
WATCH_EVERY = 1.0

# The same code as here, wherever that was found.
_START = "import sys; sys.path[:] = sys.argv.pop(1).split(':'); from server.cli import main; sys.exit(main())"


class Worker:
    """A process in a slot. `heard`: loop time of its last sign of life; `code`: how it ended."""

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
        self.heard = self.loop.time()
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


class StandIn:
    """Answers for the slots that have no worker. `refused`: how often."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.refused = 0
        self._context = context
        self._ids = RequestIds()

    async def stand(self, main: Sockets) -> None:
        """Refuse what comes to the sockets of a slot, after a while and until cancelled."""
        await asyncio.sleep(VACANT)
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            for sock in main:
                place = sock.dup()
                server = await loop.create_server(
                    partial(_Refusal, self), sock=place, backlog=BACKLOG, ssl=self._context
                )
                stack.callback(server.close)
            _log.warning("no worker serves a slot", extra={"socket": main[0].getsockname()})
            await loop.create_future()

    def refusal(self) -> bytes:
        """The answer to a request."""
        self.refused += 1
        encoder, request_id = Encoder(), self._ids.choose("")
        encoder.tick(formatdate(usegmt=True))
        problem = Problem("overloaded", "no worker is there to answer", headers=(retry_after(1),))
        return encoder.encode(problem.response(request_id), request_id, connection="close")


class _Refusal(asyncio.Protocol):
    """A connection that is answered 503 when a head has come."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in
        self._received = b""
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)
        asyncio.get_running_loop().call_later(REFUSAL_WITHIN, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. What comes behind the head is read too, or the answer would be lost."""
        if self._answered:
            return
        self._received += data
        if HEAD_END in self._received or len(self._received) > HEAD_MAX:
            self._answered = True
            self._transport.write(self._stand_in.refusal())
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()


class Slot:
    """A place among those that the kernel spreads connections over, and the worker that serves there.

    `hire`: starts a process for it.
    """

    def __init__(
        self, number: int, main: Sockets, hire: Callable[["Slot"], Worker], stand_in: "StandIn"
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


class Parent:
    """The process that starts the others. `context`: for TLS where a worker is missing."""

    def __init__(
        self,
        settings: Settings,
        notifier: Notifier,
        places: list[Sockets],
        apart: Sockets,
        context: ssl.SSLContext | None,
    ) -> None:
        self.reload = asyncio.Event()
        self._settings = settings
        self._notifier = notifier
        self._apart = apart
        self._context = context
        self._stand_in = StandIn(context)
        self._slots = [Slot(number, main, self._hire, self._stand_in) for number, main in enumerate(places)]
        self._url = sockets.url(settings, places[0][0])
        # All processes, also those that start or end; and what those have counted that have ended.
        self._alive: dict[Worker, None] = {}
        self._counted = Totals()
        self._started = 0
        # Of limits that hold over all workers, where no Redis keeps it.
        self._account = MemoryCounters(len(places))
        self._metrics = Metrics([])
        gauge, counter = self._metrics.gauge, self._metrics.counter
        gauge("tidegate_workers", "Workers that serve.", lambda: self._serving)
        counter("tidegate_worker_starts_total", "Worker processes started.", lambda: self._started)
        refused = partial(getattr, self._stand_in, "refused")
        counter("tidegate_worker_refusals_total", "Answers for slots without a worker.", refused)

    async def run(self, out: TextIO) -> int:
        """Serve until cancelled; the exit code, if the first worker does not start at all."""
        # Alone, so that what is made at the first start is made once, and what is wrong is said once.
        try:
            await self._slots[0].fill()
        except Vacant as vacant:
            code = vacant.told.get("code")
            return code if isinstance(code, int) and code > 0 else 1
        filling = (slot.fill() for slot in self._slots[1:])
        for result in await asyncio.gather(*filling, return_exceptions=True):
            match result:
                case Vacant():
                    _log.error("a worker did not start", extra=result.told)
                case BaseException():
                    raise result
        announced = await announce(self._settings, self._url, out)
        self._notifier.ready(self._status)
        try:
            async with asyncio.TaskGroup() as group:
                for work in (self._watch(), self._roll(), self._notifier.watch()):
                    group.create_task(work)
                for slot in self._slots:
                    group.create_task(slot.keep())
        finally:
            announced.unlink(missing_ok=True)
        return 0

    @property
    def _serving(self) -> int:
        return sum(slot.worker is not None for slot in self._slots)

    @property
    def _status(self) -> str:
        return f"{self._serving} of {len(self._slots)} workers serve on {self._url}"

    async def end(self) -> None:
        """Stop listening, end all processes."""
        # With this the last sockets of the slots are those of the workers, who close them first of all.
        for slot in self._slots:
            slot.close()
        for sock in (*chain.from_iterable(slot.main for slot in self._slots), *self._apart):
            sock.close()
        await asyncio.gather(*(worker.end() for worker in self._alive))

    async def _roll(self) -> None:
        """Renew all workers, one after the other, whenever `reload` is set."""
        while True:
            await self.reload.wait()
            self.reload.clear()
            self._notifier.reloading()
            _log.info("a rolling restart begins")
            await asyncio.to_thread(sockets.renew, self._settings, self._context)
            try:
                for slot in self._slots:
                    await slot.renew()
            except Vacant as vacant:
                _log.error("a successor did not start; the workers before serve on", extra=vacant.told)
            else:
                _log.info("all workers were renewed")
            self._notifier.ready(self._status)

    async def _watch(self) -> None:
        """Kill workers whose loop does not turn; keep the supervisor informed."""
        status, last = "", asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(WATCH_EVERY)
            now = asyncio.get_running_loop().time()
            for worker in self._alive:
                if now - last > 2 * WATCH_EVERY:
                    # It was this process that stood still, and has heard nobody.
                    worker.heard = now
                elif worker.ready.is_set() and now - worker.heard > self._settings.worker_timeout:
                    _log.critical("a worker is stuck", extra={"slot": worker.slot, "child": worker.pid})
                    worker.kill()
            last = now
            if status != self._status:
                status = self._status
                self._notifier.status(status)

    # -- processes and their figures -----------------------------------------------------------

    def _hire(self, slot: Slot) -> Worker:
        worker = Worker(slot.number, slot.main, self._apart, self._answer, self._retire)
        self._alive[worker] = None
        self._started += 1
        return worker

    def _retire(self, worker: Worker) -> None:
        del self._alive[worker]
        self._counted.add(family for family in worker.figures if family.lasting)

    async def _answer(self, message: Message) -> Message:
        """A worker asks."""
        match message:
            case Collect():
                return Figures(await self._collect())
            case Settle(spent):
                return Settled(self._account.add(spent), self._account.processes)
            case _:
                return Failed()

    async def _collect(self) -> list[Family]:
        """The figures of all; of who does not answer those that are known."""
        await asyncio.gather(*(worker.ask() for worker in self._alive if worker.ready.is_set()))
        totals = Totals()
        totals.add(self._counted.families())
        for worker in self._alive:
            # The one before, which is still ending, has the same label.
            current = self._slots[worker.slot].worker is worker
            totals.add(worker.figures, str(worker.slot) if current else "")
        totals.add(self._metrics.families(), "parent")
        return totals.families()


async def serve(settings: Settings, supervisor: Supervisor, out: TextIO) -> int:
    """Run several workers until SIGTERM or SIGINT; the exit code. Raises what serving.serve does."""
    life, notifier = Life(), Notifier(supervisor)
    always = {"pid": os.getpid()}
    log = await asyncio.to_thread(logs.setup, settings.log_level, settings.access_log, always=always)
    try:
        allow_files(settings)
        places = await asyncio.to_thread(sockets.bind, settings.host, settings.port, settings.workers)
        apart: Sockets = []
        if settings.metrics_port:
            (apart,) = await asyncio.to_thread(sockets.bind, settings.host, settings.metrics_port)
        context = await asyncio.to_thread(sockets.tls, settings)
        parent = Parent(settings, notifier, places, apart, context)
        life.on_reload(parent.reload.set)
        running = asyncio.create_task(parent.run(out))
        stopping = asyncio.create_task(life.stop.wait())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        notifier.stopping()
        _log.info("closing")
        stopping.cancel()
        running.cancel()
        await asyncio.wait((running, stopping))
        await parent.end()
        code = 0 if running.cancelled() else running.result()
    finally:
        await asyncio.to_thread(log.close)
    life.over()
    return code
