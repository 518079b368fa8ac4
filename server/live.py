"""The live part of the gate: hub, streams and recoveries, built together, run and ended together."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from auth.rate_limit import Limiter
from auth.tokens import TokenVerifier
from handlers.exchange import Plan
from handlers.hub import Hub
from handlers.live.alarm import Alarm
from handlers.live.healer import Healer
from handlers.live.recovery import Recoveries
from handlers.live.streams import Streams
from handlers.live.subscription import Overflow
from handlers.live.wires import Wires
from handlers.sse import EventStream, EventStreams
from handlers.websocket import WebSocket, WebSockets
from server.metrics import Metrics
from server.settings import Settings
from storage import tasks
from storage.engine import Engine
from storage.models import Batch

# Seconds that the clients of streams have at the end for the last words.
STREAMS_END = 3.0


class Live:
    """Everything between a commit and a follower's socket.

    `write`: the plan of `POST /v1/readings`. `observe`: told how many seconds a batch took to the last
    socket. `now`: microseconds. `told`: whether `receive` is called with other nodes' batches, or those are
    to be read from the database. `found`: called with batches that were read from it, `passed` when some were
    left unread because nobody follows.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        verifier: TokenVerifier,
        write: Plan,
        requests: Limiter | None,
        observe: Callable[[float], None],
        now: Callable[[], int],
        *,
        told: Callable[[], bool],
        found: Callable[[Batch], None],
        passed: Callable[[], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        state = engine.state()
        self._engine = engine
        self._alarm = Alarm(loop)
        self.hub = Hub(
            state.head,
            epoch=state.epoch,
            window=settings.stream_window,
            now=loop.time,
            alarm=self._alarm.set,
            observe=observe,
        )
        self._alarm.ring = self.hub.ring
        self.hub.replaced = self._replaced
        self.healer = Healer(self.hub, engine, told=told, found=found, passed=passed)
        self.recoveries = Recoveries(self.hub, engine, self.healer)
        self.streams = Streams(verifier, loop.time, time.time)
        wires, bound = Wires(state.epoch), settings.stream_queue
        self._wires = wires
        self.sockets = WebSockets(
            self.hub,
            self.recoveries,
            self.streams,
            wires,
            write,
            requests,
            settings.cors_origins,
            bound,
            now,
            deflate=settings.stream_deflate,
        )
        self.events = EventStreams(self.hub, self.recoveries, self.streams, wires, bound)

    def run(self, stack: AsyncExitStack) -> None:
        """Start what looks after the streams; it ends with the stack."""
        stack.callback(self._alarm.close)
        stack.push_async_callback(self.healer.close)
        stack.push_async_callback(self.recoveries.close)
        for name, work in (("streams", self.streams.run()), ("healer", self.healer.run())):
            stack.push_async_callback(tasks.end, asyncio.create_task(work, name=name))

    def publish(self, batch: Batch) -> None:
        """Hand on what this process has committed."""
        state = self._engine.state()
        if state.epoch != self.hub.epoch:
            self.hub.keep_to(state)
        if batch.epoch in ("", self.hub.epoch):
            self.hub.publish(batch)

    def receive(self, batch: Batch, epoch: str) -> None:
        """Hand on what another process has committed, to the log of this epoch."""
        if epoch == self.hub.epoch:
            self.hub.publish(batch)
        else:
            # One of us does not know yet that the log was replaced.
            self.healer.suspect()

    def _replaced(self, epoch: str) -> None:
        self.streams.log_replaced()
        self._wires.renew(epoch)

    async def end(self) -> None:
        """End all streams, each with a position to resume from."""
        await self.streams.close(STREAMS_END)

    def bind(self, metrics: Metrics) -> None:
        """Tell the metrics where the figures are."""
        hub, counts = self.hub, self.recoveries.counts
        counter, gauge = metrics.counter, metrics.gauge
        for transport, kind in (("websocket", WebSocket), ("sse", EventStream)):
            gauge(
                "tidegate_stream_followers",
                "Open streams.",
                partial(self.streams.count, kind),
                transport=transport,
            )
        gauge("tidegate_stream_filters", "Different filters of followers.", lambda: hub.filters)
        gauge("tidegate_stream_queue_bytes", "Bytes that wait for followers.", lambda: self.streams.queued)
        gauge("tidegate_stream_window_bytes", "Memory of the newest readings.", lambda: hub.window.size)
        gauge("tidegate_stream_recovering", "Followers on their way.", lambda: self.recoveries.running)
        counter(
            "tidegate_stream_delivered_total", "Readings sent to followers.", lambda: hub.figures.delivered
        )
        counter(
            "tidegate_stream_conflated_total",
            "Readings that a newer one replaced within min_interval.",
            lambda: hub.figures.conflated,
        )
        for policy in Overflow:
            counter(
                "tidegate_stream_dropped_total",
                "What overflow cost: readings dropped or conflated, followers disconnected.",
                partial(hub.figures.dropped.__getitem__, policy),
                policy=policy.name.lower(),
            )
        for verdict, source in counts:
            counter(
                "tidegate_stream_recoveries_total",
                "Followers that asked to resume, by verdict and where the readings came from.",
                partial(counts.__getitem__, (verdict, source)),
                verdict=verdict,
                source=source,
            )
        gauge(
            "tidegate_stream_early_bytes",
            "Batches that wait for what lies before them.",
            lambda: hub.gap.size,
        )
        counter(
            "tidegate_stream_healed_total",
            "Readings that the hub had to read from the log.",
            lambda: self.healer.healed,
        )
        counter(
            "tidegate_stream_skipped_total",
            "Offsets that the hub passed over because nobody followed.",
            lambda: self.healer.skipped,
        )
