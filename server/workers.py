"""Many processes that serve, and their parent, which holds the sockets and watches over them.

Each worker has a slot: SO_REUSEPORT sockets that the parent keeps open, so that what waits in their
queues is not lost when a worker ends; its successor takes it from there (failures.md F2). Workers are
fresh processes, not forks: nothing of the parent's loop is in them (F29), and they take up the code, the
secrets and the keys that are there when they start.
"""

import asyncio
import logging
import os
import ssl
from functools import partial
from itertools import chain
from typing import TextIO

from server import logs, sockets
from server.control import Collect, Failed, Figures, Message, Settle, Settled
from server.metrics import Metrics
from server.notify import Notifier
from server.serving import Life, allow_files, announce
from server.settings import Settings, Supervisor
from server.slots import Slot, Vacant, Worker
from server.sockets import Sockets
from server.stand_in import StandIn
from server.totals import Family, Totals
from storage import tasks
from storage.counters import MemoryCounters

_log = logging.getLogger("tidegate.workers")

WATCH_EVERY = 1.0
# Seconds after which a worker that was started must have said something.
SIGN_WITHIN = 30.0


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
        watching = asyncio.create_task(self._watch())
        try:
            return await self._run(out)
        finally:
            await tasks.end(watching)

    async def _run(self, out: TextIO) -> int:
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
                # The watchdog counts from READY on (systemd.service, WatchdogSec=).
                for work in (self._roll(), self._notifier.watch()):
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
                limit = self._settings.worker_timeout if worker.met else SIGN_WITHIN
                if now - last > 2 * WATCH_EVERY:
                    # It was this process that stood still, and has heard nobody.
                    worker.heard = now
                elif now - worker.heard > limit:
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
        running.cancel()
        stopping.cancel()
        await asyncio.wait((running, stopping))
        await parent.end()
        code = 0 if running.cancelled() else running.result()
    finally:
        await asyncio.to_thread(log.close)
    life.over()
    return code
