"""The gate: its parts built in order, run, and closed in reverse."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate
from functools import partial

import aiohttp

from auth.clients import Credentials
from auth.issuers import Issuer
from auth.keys import KeyRing
from auth.rate_limit import FailureLimiter
from auth.revocation import Revocations
from auth.tokens import TokenVerifier
from handlers.console import Console
from handlers.devices import DeviceHandlers
from handlers.health import Health
from handlers.reading import Readings
from handlers.tokens import TokenHandlers
from handlers.writing import Writing
from server import compat, identity, logs, routes
from server.admissions import Admissions
from server.control import ParentLink
from server.cors import Cors
from server.dispatch import Dispatch, Endpoint
from server.encoding import Encoder
from server.engines import open_engine, wall_clock
from server.fast_lane import FastLane
from server.fast_protocol import FastProtocol
from server.lane import Lane
from server.live import Live
from server.memo import HeadMemo
from server.metrics import Metrics
from server.protocol import GateServer
from server.router import Router
from server.settings import Settings
from server.shared import Shared
from server.totals import Merge
from storage import tasks
from storage.broker import CacheCleared, Committed, DeviceForgotten, Message, Revoked
from storage.cache import LatestCache
from storage.commit import GroupCommit
from storage.engine import Engine
from storage.errors import StorageError, Unavailable
from storage.models import Batch, Revocation

_log = logging.getLogger("tidegate.app")

# Seconds a transaction may take before its writers are told that its outcome is unknown.
COMMIT_DEADLINE = 8.0
# Seconds between two looks at what other processes may have revoked, and between two clean-ups.
REVOCATIONS_EVERY = 2.0
SWEEP_EVERY = 30.0
# Heads that are remembered, and how many bytes they may have together.
MEMO_HEADS = 10_000
MEMO_BYTES = 8 * 1024 * 1024
# Requests whose admission is remembered, each with a head of at most 2 KiB.
ADMISSIONS = 8 * 1024
ISSUERS_EVERY = 60.0
# Seconds at the end that streams wait for the commits under way.
STREAMS_DRAIN = 2.0
# Seconds that answers to clients that have gone may still take when the gate closes.
LANE_DEADLINE = 1.0


class Gate:
    """All parts of one process."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        session: aiohttp.ClientSession,
        log: logs.Logs,
        fail: Callable[[], None],
        ring: KeyRing,
        shared: Shared,
        parent: ParentLink | None,
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._fail = fail
        self._parent = parent
        # Set it to have the key files read again.
        self.reload = asyncio.Event()
        self.engine = engine
        self.second = shared.second_level(engine.state)
        self.cache = LatestCache(
            engine.latest, settings.cache_devices, settings.cache_ttl, second=self.second
        )
        self.commit = GroupCommit(
            engine,
            self._publish,
            self._observe_commit,
            readings=settings.queue_readings,
            size=settings.queue_bytes,
            deadline=COMMIT_DEADLINE,
        )
        lifetime = identity.lifetime(settings)
        self.revocations = Revocations(
            engine,
            self._tokens_changed,
            issuer=settings.jwt_issuer,
            lifetime=lifetime,
            spread=self._revoked,
        )
        self.verifier = TokenVerifier(
            ring,
            self.revocations,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            issuers=[
                Issuer(outside.issuer, outside.jwks_url, settings.jwt_audience, session)
                for outside in settings.jwt_issuers
            ],
        )
        self._requests = shared.limiter("requests", settings.rate_limit)
        self._points = shared.limiter("points", settings.point_limit)
        # Who mistypes a secret does so several times in a row: the whole limit is the burst.
        logins = settings.login_limit
        self._logins = shared.limiter("logins", logins, burst=logins, capped=True)
        self.writing = Writing(self.commit, engine, self._points)
        self.live = Live(
            settings,
            engine,
            self.verifier,
            self.writing.of_any,
            self._requests,
            self._observe_delivery,
            wall_clock,
            told=lambda: shared.told,
            found=self.cache.apply,
            passed=self.cache.clear,
        )
        self.tokens = TokenHandlers(
            engine,
            Credentials(engine, lifetime=settings.token_ttl_max),
            identity.token_issuer(settings, ring, self.revocations.cutoff),
            self.verifier,
            self.revocations,
            ring,
            FailureLimiter(self._logins) if self._logins is not None else None,
            settings.token_ttl,
            logs.audit,
        )
        self.health = Health(
            {"database": engine.ping, "commit": self._probe_commit},
            lambda: self.server.lane.closing,
            self._render,
            settings.metrics_token,
            shared.probes(),
        )
        parts = (
            self.writing,
            Readings(engine, engine, self.cache),
            DeviceHandlers(engine, self._forget, logs.audit),
            self.tokens,
            self.health,
            self.live.sockets,
            self.live.events,
            Console(),
        )
        table = self.routes = routes.table(*parts)
        self.metrics = Metrics([(route.method, route.template) for route in table])
        self.encoder = Encoder()
        self.memo = HeadMemo(MEMO_HEADS, MEMO_BYTES)
        self.admissions = Admissions(ADMISSIONS)
        self.encoder.tick(formatdate(usegmt=True))
        self._fast_lanes: list[FastLane] = []
        obstacle = compat.obstacle() if settings.fast_lane else ""
        if obstacle:
            _log.warning("the fast lane is off", extra={"reason": obstacle})
        fast = settings.fast_lane and not obstacle
        public = [r for r in table if r.template != routes.METRICS or not settings.metrics_port]
        self.server = self._server(Router(public), log, fast=fast)
        # What the fast lane remembers holds for one table of routes.
        operations = Router(r for r in table if r.template in routes.OPERATIONS)
        self.operations = self._server(operations, log, fast=False)
        self._bind_metrics(log)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        log: logs.Logs,
        fail: Callable[[], None],
        parent: ParentLink | None = None,
    ) -> AsyncIterator["Gate"]:
        """Build the parts, and close them in reverse. `fail` is called if one of them breaks.

        `parent`: where this is one of several workers.
        """
        async with AsyncExitStack() as stack:
            engine = await open_engine(settings)
            stack.push_async_callback(engine.close)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            ring = await asyncio.to_thread(identity.key_ring, settings)
            shared = await stack.enter_async_context(Shared.open(settings, parent))
            gate = cls(settings, engine, session, log, fail, ring, shared, parent)
            stack.push_async_callback(gate.verifier.close)
            stack.push_async_callback(gate.cache.close)
            stack.push_async_callback(gate.commit.close)
            gate.commit.task.add_done_callback(gate._commit_ended)
            await shared.run(stack, gate.receive)
            shared.bind(gate.metrics)
            await gate.revocations.refresh()
            for name, every, work in (
                ("second", 1.0, gate._tick),
                ("revocations", REVOCATIONS_EVERY, gate.revocations.refresh),
                ("issuers", ISSUERS_EVERY, gate.verifier.refresh),
                ("sweep", SWEEP_EVERY, gate.sweep),
            ):
                task = asyncio.create_task(_repeat(name, every, work), name=name)
                stack.push_async_callback(tasks.end, task)
            stack.push_async_callback(tasks.end, asyncio.create_task(gate._reload_keys(), name="reload"))
            gate.live.run(stack)
            stack.push_async_callback(gate.drain)
            yield gate

    async def drain(self) -> None:
        """Let what was accepted finish; the listening sockets are closed by then."""
        await asyncio.gather(self.server.drain(self._settings.shutdown_timeout), self._end_streams())
        await self.operations.drain(0.1)
        for lane in self._fast_lanes:
            await lane.close(LANE_DEADLINE)

    async def _end_streams(self) -> None:
        """End the streams with what was written up to now."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STREAMS_DRAIN):
                await self.commit.drain()
        await self.live.end()

    def _publish(self, batch: Batch) -> None:
        """What was committed, before the writers get their answers."""
        self.cache.apply(batch)
        self.live.publish(batch)
        self._shared.broker.publish(Committed(batch.epoch or self.engine.state().epoch, batch))

    def receive(self, message: Message) -> None:
        """What another process has done."""
        match message:
            case Committed(epoch, batch):
                if epoch == self.engine.state().epoch:
                    self.cache.apply(batch)
                self.live.receive(batch, epoch)
            case Revoked(revocation):
                self.revocations.learn(revocation)
            case DeviceForgotten(device, offset):
                self.cache.forget(device, offset)
            case CacheCleared():
                self.cache.clear()
                # Batches may have been missed too.
                self.live.healer.suspect()

    def _forget(self, device: str) -> None:
        head = self.engine.state().head
        self.cache.forget(device, head)
        self._shared.broker.publish(DeviceForgotten(device, head))

    def _revoked(self, revocation: Revocation) -> None:
        self._shared.broker.publish(Revoked(revocation))

    def _observe_delivery(self, seconds: float) -> None:
        self.metrics.observe_delivery(seconds)

    async def _reload_keys(self) -> None:
        """Read the key files again whenever `reload` is set; if they cannot be used, the old ones stay."""
        while True:
            await self.reload.wait()
            self.reload.clear()
            try:
                ring = await asyncio.to_thread(identity.key_ring, self._settings)
            except ValueError:
                _log.exception("the keys were not reloaded")
                continue
            self.verifier.replace_keys(ring)
            signing = identity.token_issuer(self._settings, ring, self.revocations.cutoff)
            self.tokens.replace_keys(signing, ring)
            _log.info("the keys were reloaded", extra={"kids": sorted(ring.keys)})

    async def sweep(self) -> None:
        """Remove what is too old or was deleted."""
        retention = self._settings.retention
        floor = self.engine.state().floor
        try:
            await self.engine.sweep(wall_clock() - retention * 1_000_000 if retention else 0)
        finally:
            if self.engine.state().floor != floor:
                self.cache.clear()
                self._shared.broker.publish(CacheCleared())

    async def _render(self, accept: str) -> tuple[bytes, str]:
        # The routes are there before the metrics that count them.
        metrics, families = self.metrics, None
        if self._parent is not None:
            families = await self._parent.figures()
        # It takes milliseconds and reads files of the kernel.
        return await asyncio.to_thread(metrics.render, accept, families)

    async def _tick(self) -> None:
        self.encoder.tick(formatdate(usegmt=True))
        self.server.sweep()
        self.operations.sweep()

    async def _probe_commit(self) -> None:
        if self.commit.stuck:
            raise Unavailable("a transaction does not end")

    def _observe_commit(self, readings: int, seconds: float) -> None:
        self.metrics.observe_commit(readings, seconds)

    def _tokens_changed(self) -> None:
        self.verifier.invalidate()

    def _commit_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            _log.critical("the group commit broke", exc_info=task.exception())
            self._fail()

    def _server(self, router: Router[Endpoint], log: logs.Logs, *, fast: bool) -> GateServer:
        settings = self._settings
        dispatch = Dispatch(
            router,
            self.verifier,
            self._requests,
            self._points,
            Cors(settings.cors_origins),
            settings.max_body,
        )
        lane = Lane(
            dispatch,
            self.verifier,
            self.encoder,
            self.metrics,
            log.access,
            wall_clock,
            settings.trusted_proxies,
            settings.queue_bytes,
            settings.body_timeout,
        )
        protocol = None
        if fast:
            fast_lane = FastLane(
                lane,
                dispatch,
                self.verifier,
                self._requests,
                self.encoder,
                self.metrics,
                log.access,
                self.memo,
                self.admissions,
            )
            self._fast_lanes.append(fast_lane)
            protocol = partial(FastProtocol, fast=fast_lane, clock=time.time_ns)
        return GateServer(
            lane,
            self.encoder,
            self.metrics,
            protocol,
            max_connections=settings.max_connections,
            header_timeout=settings.header_timeout,
            keepalive_timeout=settings.keepalive_timeout,
        )

    def _bind_metrics(self, log: logs.Logs) -> None:
        """Tell the metrics where the parts keep their figures."""
        counter, gauge = self.metrics.counter, self.metrics.gauge
        commit, server = self.commit.figures, self.server
        counter("tidegate_readings_stored_total", "Readings stored.", lambda: commit.stored)
        counter("tidegate_readings_duplicate_total", "Readings sent again.", lambda: commit.duplicates)
        counter("tidegate_readings_conflict_total", "Readings with another value.", lambda: commit.conflicts)
        counter("tidegate_readings_rejected_total", "Bad items of writes.", lambda: self.writing.rejected)
        counter("tidegate_writes_failed_total", "Writes that the database failed.", lambda: commit.failed)
        gauge("tidegate_queue_readings", "Readings that wait for a commit.", lambda: commit.queued_readings)
        gauge("tidegate_queue_bytes", "Bytes that wait for a commit.", lambda: commit.queued_bytes)
        log_state, newest = self.engine.state, Merge.MAX
        gauge("tidegate_log_head", "Newest offset.", lambda: log_state().head, newest)
        gauge("tidegate_log_floor", "Newest offset removed by age.", lambda: log_state().floor, newest)
        self.metrics.cache("latest", self.cache)
        if (second := self.second) is not None:
            counter("tidegate_cache_shared_hits_total", "Misses that Redis answered.", lambda: second.hits)
        self.metrics.cache("token", self.verifier)
        self.metrics.cache("head", self.memo)
        self.metrics.cache("admission", self.admissions)
        gauge("tidegate_cache_entries", "Entries.", lambda: len(self.memo), cache="head")
        gauge("tidegate_cache_entries", "Entries.", lambda: len(self.admissions), cache="admission")
        gauge("tidegate_cache_bytes", "Bytes of keys.", lambda: self.memo.bytes, cache="head")
        gauge("tidegate_bodies_bytes", "Bytes of bodies that are arriving.", lambda: server.lane.held)
        for limiter in (self._requests, self._points, self._logins):
            if limiter is not None:
                refused = partial(getattr, limiter, "refused")
                counter("tidegate_limit_refusals_total", "Over a limit.", refused, policy=limiter.policy.name)
        gauge("tidegate_connections_open", "Connections.", lambda: server.open)
        counter("tidegate_connections_accepted_total", "Connections accepted.", lambda: server.accepted)
        counter("tidegate_connections_refused_total", "Connections over the cap.", lambda: server.refused)
        counter("tidegate_parse_errors_total", "Requests that are no HTTP.", lambda: server.parse_errors)
        self.live.bind(self.metrics)
        counter("tidegate_log_lines_dropped_total", "Log lines dropped.", lambda: log.dropped)


async def _repeat(name: str, every: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work again and again; a failure is logged and does not end it."""
    while True:
        await asyncio.sleep(every)
        try:
            await work()
        except StorageError as error:
            _log.warning("upkeep failed", extra={"work": name, "error": str(error)})
        except Exception:
            _log.exception("upkeep broke", extra={"work": name})
