"""From a position to the live edge: out of the window, else out of the log page by page."""

import asyncio
import logging
from collections.abc import Callable

from handlers.hub import Hub
from handlers.live.follower import Follower
from handlers.live.healer import Healer
from handlers.live.subscription import Subscription
from storage import tasks
from storage.errors import StorageError
from storage.log import InvalidPosition, Log, LogState, parse_position
from storage.models import Reading, Verdict
from storage.patterns import Selection

_log = logging.getLogger("tidegate.recovery")

# Readings of a page, and how many of the window one turn of the loop looks through for them.
PAGE = 500
SLICE = 5_000
# Devices of a page of newest values.
DEVICES = 100
# Pages that are read from the database at the same time.
READS = 2
# Seconds that a follower has to read a page, and to come closer to the head.
PATIENCE = 30.0
# Seconds that the database has to say where the log is, before a follower must ask again.
VERDICT = 10.0

REASONS = {
    Verdict.UNKNOWN_EPOCH: "unknown_epoch",
    Verdict.EXPIRED: "expired",
    Verdict.AHEAD: "ahead",
}


class Start:
    """Where a subscription starts. `recovered`: None if nothing was asked for; `reason`: why it was not.

    `unsure`: what was asked for, if only the database can tell; the rest does not count then.
    """

    __slots__ = ("offset", "reason", "recovered", "unsure")

    def __init__(self, offset: int, recovered: bool | None, reason: str = "", unsure: str = "") -> None:
        self.offset = offset
        self.recovered = recovered
        self.reason = reason
        self.unsure = unsure


class BrokenOff(Exception):
    """What was to be replayed is gone meanwhile."""


class Recoveries:
    """Brings followers to the live edge. `patience`: see PATIENCE.

    `counts`: by verdict (recovered, or a reason) and source (memory, database, none).
    """

    def __init__(self, hub: Hub, log: Log, healer: Healer, patience: float = PATIENCE) -> None:
        self._hub = hub
        self._source = log
        self._healer = healer
        self._patience = patience
        self._reads = asyncio.Semaphore(READS)
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts = {("recovered", "memory"): 0, ("recovered", "database"): 0}
        self.counts.update(((reason, "none"), 0) for reason in REASONS.values())

    @property
    def running(self) -> int:
        """How many followers are on their way."""
        return len(self._tasks)

    def judge(self, since: str | None) -> Start:
        """Where to start from: `earliest`, a position, or None for the head. InvalidPosition.

        Unsure of what this process does not know: another node may have shown it already.
        """
        return self._judge(since, sure=False)

    def _judge(self, since: str | None, *, sure: bool) -> Start:
        hub, state = self._hub, self._source.state()
        hub.keep_to(state)
        if since is None:
            return Start(hub.head, None)
        if since == "earliest":
            return Start(min(state.floor, hub.head), True)
        position = parse_position(since)
        # The hub may be further than what the database was asked for last.
        verdict = LogState(state.epoch, hub.head, min(state.floor, hub.head)).judge(position)
        if verdict is Verdict.OK:
            return Start(position.offset, True)
        if verdict is not Verdict.EXPIRED and not sure:
            return Start(hub.head, None, unsure=since)
        reason = REASONS[verdict]
        self.counts[reason, "none"] += 1
        return Start(hub.head, False, reason)

    def judge_leniently(self, since: str | None) -> Start:
        """The same; what is no position of ours is one of an epoch that nobody knows."""
        try:
            return self.judge(since)
        except InvalidPosition:
            self.counts["unknown_epoch", "none"] += 1
            return Start(self._hub.head, False, "unknown_epoch")

    def run(
        self,
        follower: Follower,
        subscription: Subscription,
        start: Start,
        *,
        latest: bool,
        told: Callable[[Start], None],
        live: Callable[[], None],
    ) -> None:
        """Bring the subscription to the live edge and call `live`: at once if memory has what that takes.

        `told`: called with the verdict before, if the start was unsure.
        """
        way = _Way(self, follower, subscription, start, live)
        subscription.settled = not start.unsure
        if subscription.settled and not latest and way.step():
            return
        task = asyncio.get_running_loop().create_task(self._run(way, told, latest=latest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        subscription.stop = task.cancel

    async def close(self) -> None:
        """End what is under way."""
        await tasks.end(*self._tasks)

    async def _run(self, way: "_Way", told: Callable[[Start], None], *, latest: bool) -> None:
        try:
            if way.start.unsure:
                way.begin(await self._verdict(way.start.unsure))
                told(way.start)
            if latest:
                await self._newest(way)
            await self._replay(way)
        except TimeoutError:
            way.follower.give_up_slow()
        except (StorageError, BrokenOff) as error:
            _log.warning("a replay broke off", extra={"error": str(error)})
            way.follower.fail()
        except Exception:
            _log.exception("a replay broke")
            way.follower.fail()

    async def _verdict(self, since: str) -> Start:
        """The verdict on a position, after the database was asked. Unavailable, Timeout."""
        try:
            async with asyncio.timeout(VERDICT):
                await self._healer.look()
        except TimeoutError:
            raise BrokenOff("the database did not say where the log is") from None
        return self._judge(since, sure=True)

    async def _replay(self, way: "_Way") -> None:
        """Page after page until one ends at the head. TimeoutError for a follower that is too slow."""
        hub = self._hub
        checked, lag = hub.now(), hub.head - way.progress
        while not way.step():
            await self._room(way.follower)
            if way.progress < hub.window.after:
                await self._page(way)
                await self._room(way.follower)
            if hub.now() - checked >= self._patience:
                if hub.head - way.progress >= lag:
                    raise TimeoutError
                checked, lag = hub.now(), hub.head - way.progress

    async def _page(self, way: "_Way") -> None:
        before, epoch = way.progress, self._hub.epoch
        async with self._reads:
            page = await self._source.read_from(before, self._hub.head, PAGE, way.selection)
        self._same(page.epoch, epoch)
        if before < page.floor:
            raise BrokenOff("readings became too old while they were replayed")
        way.database = True
        way.give(page.readings, page.scanned)

    async def _newest(self, way: "_Way") -> None:
        """The newest values, read at or after the place that the replay starts from."""
        after, epoch = "", self._hub.epoch
        while True:
            async with self._reads:
                found = await self._source.latest_page(way.selection, after, DEVICES)
            # What was read does not say of which log it is.
            await self._source.refresh()
            self._same(self._source.state().epoch, epoch)
            readings = [
                Reading(sample.offset, latest.device, metric, sample.ts, sample.value)
                for latest in found
                for metric, sample in latest.metrics.items()
                if way.selection.takes(latest.device, metric)
            ]
            for first in range(0, len(readings), PAGE):
                way.follower.give_newest(way.subscription, readings[first : first + PAGE])
                await self._room(way.follower)
            if len(found) < DEVICES:
                return
            after = found[-1].device

    def _same(self, found: str, epoch: str) -> None:
        """What was read must be of the log that the follower is shown positions of. BrokenOff."""
        if found not in ("", epoch):
            self._healer.suspect()
            raise BrokenOff("the log was replaced")

    async def _room(self, follower: Follower) -> None:
        """Wait until the follower has read what it was sent; others have their turn in any case."""
        if follower.roomy:
            await asyncio.sleep(0)
            return
        drained = asyncio.Event()
        follower.on_drain(drained.set)
        async with asyncio.timeout(self._patience):
            await drained.wait()


class _Way:
    """One subscription on its way."""

    __slots__ = (
        "_hub",
        "_live",
        "_recoveries",
        "database",
        "follower",
        "selection",
        "start",
        "subscription",
    )

    def __init__(
        self,
        recoveries: Recoveries,
        follower: Follower,
        subscription: Subscription,
        start: Start,
        live: Callable[[], None],
    ) -> None:
        self._recoveries = recoveries
        self._hub = recoveries._hub
        self.start = start
        self._live = live
        self.follower = follower
        self.subscription = subscription
        self.selection: Selection = subscription.filter.selection()
        self.database = False

    @property
    def progress(self) -> int:
        """The offset up to which the follower has everything."""
        progress = self.subscription.progress
        assert progress is not None
        return progress

    def begin(self, start: Start) -> None:
        """Start from here instead."""
        self.start = start
        self.subscription.start = self.subscription.progress = start.offset
        self.subscription.settled = True

    def give(self, readings: list[Reading], until: int) -> None:
        """Send a page."""
        self.follower.give_page(self.subscription, readings, until)

    def step(self) -> bool:
        """Go on through the window; True if that led to the head, from where the subscription is live.

        One turn of the loop: nothing can be committed between the last look and the first delivery.
        """
        hub, takes = self._hub, self.selection.takes
        progress = self.progress
        if not hub.window.after <= progress <= hub.head:
            return False
        wanted: list[Reading] = []
        until = hub.head
        for scanned, reading in enumerate(hub.window.after_offset(progress), 1):
            if takes(reading.device, reading.metric):
                wanted.append(reading)
            if len(wanted) == PAGE or scanned == SLICE:
                until = reading.offset
                break
        self.give(wanted, until)
        # What waits for other subscriptions would come again behind the replay.
        if until < hub.head or self.follower.backlogged:
            return False
        self.follower.go_live(self.subscription)
        if self.start.recovered:
            self._recoveries.counts["recovered", "database" if self.database else "memory"] += 1
        self._live()
        return True
