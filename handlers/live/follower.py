"""One connection that follows the log: its subscriptions, what waits for it, and the position it is shown."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol

from handlers.exchange import Sink
from handlers.live.conflater import Conflater, Held
from handlers.live.filters import Filter, Series
from handlers.live.items import Delivery, Item
from handlers.live.wires import SubscriptionId, Wire
from storage.models import Reading

# Bytes that the transport keeps for a slow follower before items wait here, where they can still be dropped.
ROOM = 64 * 1024
# Series whose subscription is remembered.
ROUTES_MAX = 10_000


class Overflow(IntEnum):
    """What to do for a follower that is too slow; the strongest promise first."""

    DISCONNECT = 0
    DROP_OLDEST = 1
    CONFLATE = 2


class Figures:
    """What followers count, all together. `dropped`: by policy."""

    __slots__ = ("conflated", "delivered", "dropped", "ended_slow")

    def __init__(self) -> None:
        self.delivered = 0
        self.conflated = 0
        self.dropped = [0] * len(Overflow)
        self.ended_slow = 0


class Subscription:
    """One wish of a follower.

    `progress`: while it recovers, the offset up to which the follower has everything; None once it is live.
    `dropped`: items that the follower has not been told of. `stop`: ends its recovery.
    """

    __slots__ = ("conflater", "dropped", "filter", "id", "overflow", "progress", "stop")

    def __init__(
        self, id: SubscriptionId, filter: Filter, overflow: Overflow, interval: float, progress: int
    ) -> None:
        self.id = id
        self.filter = filter
        self.overflow = overflow
        self.conflater = Conflater(interval) if interval else None
        self.progress: int | None = progress
        self.dropped = 0
        self.stop: Callable[[], object] | None = None


class Owner(ABC):
    """The stream that a follower belongs to."""

    __slots__ = ()

    @abstractmethod
    def too_slow(self) -> None:
        """The queue has overflowed, or the follower does not catch up: end the stream."""

    @abstractmethod
    def broken(self) -> None:
        """A replay broke off: end the stream."""

    @abstractmethod
    def dropped(self, subscription: Subscription) -> bytes:
        """What tells that items were dropped."""


class Group:
    """Followers that want exactly the same. `delivery`: what the batch under way has for them."""

    __slots__ = ("delivery", "followers", "key")

    def __init__(self, key: frozenset[object]) -> None:
        self.key = key
        self.followers: dict[Follower, None] = {}
        self.delivery: Delivery | None = None


class Source(Protocol):
    """What a follower needs of the hub."""

    head: int
    figures: Figures

    def now(self) -> float:
        """Loop time."""

    def join(self, follower: "Follower") -> None:
        """Deliver what the live subscriptions of the follower are for, from the next batch on."""

    def leave(self, follower: "Follower") -> None:
        """Deliver nothing any more."""

    def wake(self, follower: "Follower", at: float) -> None:
        """Call `flush` at that time."""


class Follower:
    """Between the hub and one connection. `bound`: bytes that may wait, the transport's included.

    Everything it does it does at once; the sink keeps what the kernel does not take.
    """

    __slots__ = (
        "_alarm",
        "_bound",
        "_direct",
        "_held",
        "_hub",
        "_limit",
        "_live",
        "_on_drain",
        "_owner",
        "_routes",
        "_said",
        "_sink",
        "_waiting",
        "_waiting_size",
        "group",
        "open",
        "sent",
        "subscriptions",
        "wire",
    )

    def __init__(self, hub: Source, owner: Owner, sink: Sink, wire: Wire, bound: int) -> None:
        self._hub = hub
        self._owner = owner
        self._sink = sink
        self._bound = bound
        self.wire = wire
        self.open = True
        # The hub's own mark: where it finds the follower.
        self.group: Group | None = None
        # Grows with everything that is sent.
        self.sent = 0
        self.subscriptions: dict[SubscriptionId, Subscription] = {}
        # Items in order that wait for room, with their bytes and whose they are.
        self._waiting: deque[tuple[Item, int, Subscription]] | None = None
        self._waiting_size = 0
        # The newest of each series whose subscription conflates, while there is no room.
        self._held: Held | None = None
        self._live: list[Subscription] = []
        self._routes: dict[Series, Subscription | None] | None = None
        self._on_drain: list[Callable[[], None]] | None = None
        # Bytes of other messages since the transport had nothing left.
        self._said = 0
        self._alarm = 0.0
        # Whether the bytes that all share may be sent as they are, and how much may wait behind them.
        self._direct = True
        self._limit = bound

    # -- subscriptions -------------------------------------------------------------------------

    def add(self, subscription: Subscription) -> None:
        """Take a subscription that recovers; `go_live` ends that."""
        self.subscriptions[subscription.id] = subscription
        self._direct = False

    def go_live(self, subscription: Subscription) -> None:
        """The follower has everything up to the head: from here on the hub delivers."""
        subscription.progress = None
        subscription.stop = None
        self._changed()
        self._hub.join(self)

    def remove(self, id: SubscriptionId) -> bool:
        """End a subscription, if there is one; what waits for it alone is dropped."""
        subscription = self.subscriptions.pop(id, None)
        if subscription is None:
            return False
        if subscription.stop is not None:
            subscription.stop()
        self._changed()
        self._hub.join(self)
        ready = self._reassign(subscription) if self._live else []
        if not self._live:
            self._waiting = self._held = None
            self._waiting_size = 0
        self._send(ready)
        self._set_alarm()
        self._settle()
        return True

    def _reassign(self, gone: Subscription) -> list[tuple[Item, Subscription]]:
        """Give what waits because of a subscription to another one that takes it in; what may be sent now."""
        if self._waiting:
            entries = [
                (item, size, one)
                for item, size, _ in self._waiting
                if (one := self._route(item.series)) is not None
            ]
            self._waiting = deque(entries)
            self._waiting_size = sum(size for _, size, _ in entries)
        if self._held:
            for item in self._held.items():
                if self._route(item.series) is None:
                    self._held.take(item.series)
        ready = []
        for item in [] if gone.conflater is None else gone.conflater.held.items():
            subscription = self._route(item.series)
            if subscription is None:
                continue
            if subscription.conflater is None:
                ready.append((item, subscription))
            else:
                subscription.conflater.hold(item, self._hub.now())
        return ready

    @property
    def live(self) -> list[Subscription]:
        """The subscriptions that the hub delivers to."""
        return self._live

    def _changed(self) -> None:
        self._routes = None
        self._live = [one for one in self.subscriptions.values() if one.progress is None]
        patient = all(one.overflow is Overflow.DISCONNECT for one in self._live)
        self._limit = self._bound if patient else min(ROOM, self._bound)
        self._settle()

    def _settle(self) -> None:
        """Whether nothing stands between the hub's bytes and the sink."""
        self._direct = (
            not self._waiting
            and not self._held
            and all(
                one.progress is None and one.conflater is None and not one.dropped
                for one in self.subscriptions.values()
            )
        )

    # -- the position --------------------------------------------------------------------------

    def position(self, until: int | None = None) -> int:
        """Where to resume from for who has got everything up to `until` (the head) that is not held back."""
        offset = self._hub.head if until is None else until
        if self._direct:
            return offset
        if self._waiting:
            offset = min(offset, self._waiting[0][0].offset - 1)
        if self._held:
            offset = min(offset, self._held.oldest - 1)
        for subscription in self.subscriptions.values():
            if subscription.progress is not None:
                offset = min(offset, subscription.progress)
            elif subscription.conflater is not None and subscription.conflater.held:
                offset = min(offset, subscription.conflater.held.oldest - 1)
        return offset

    # -- items come ----------------------------------------------------------------------------

    def offer(self, delivery: Delivery) -> None:
        """Take the items of a commit: the bytes that all share, if nothing stands in between."""
        if self._direct:
            wire = self.wire
            data = delivery.joined.get(wire.index) or wire.join(delivery)
            pending = self._sink.pending()
            # To who has read everything a batch is given whole, however large.
            if not pending or pending + len(data) <= self._limit:
                self._sink.write(data)
                self.sent += 1
                self._hub.figures.delivered += len(delivery.items)
                return
        self._offer_each(delivery.items)

    def _offer_each(self, items: Sequence[Item]) -> None:
        now = self._hub.now()
        ready: list[tuple[Item, Subscription]] = []
        for item in items:
            subscription = self._route(item.series)
            if subscription is None:
                continue
            if subscription.conflater is None:
                self._supersede(item.series)
            elif not subscription.conflater.admit(item.series, now):
                self._hub.figures.conflated += subscription.conflater.held.put(item, 0)
                continue
            ready.append((item, subscription))
        self._send(ready)
        self._set_alarm()
        self._settle()

    def _route(self, series: Series) -> Subscription | None:
        """The subscription that decides about a series: of those that take it in, the one that wants most."""
        live = self._live
        if len(live) == 1:
            return live[0]
        if self._routes is None or len(self._routes) >= ROUTES_MAX:
            self._routes = {}
        if series not in self._routes:
            matching = [one for one in live if one.filter.takes(*series)]
            self._routes[series] = min(matching, key=_eagerness, default=None)
        return self._routes[series]

    def _supersede(self, series: Series) -> None:
        """A newer item of the series is sent at once: what another subscription has held back is over."""
        if self._held:
            self._held.take(series)
        if len(self.subscriptions) > 1:
            for subscription in self.subscriptions.values():
                if subscription.conflater is not None:
                    subscription.conflater.held.take(series)

    def _send(self, items: Sequence[tuple[Item, Subscription]]) -> None:
        """Send what there is room for, in one write, and keep the rest as its subscription wishes."""
        wire, figures = self.wire, self._hub.figures
        pending = self._sink.pending()
        out: list[bytes] = []
        size = 0
        mixed = False
        for item, subscription in items:
            data = wire.live(item)
            limit = self._bound if subscription.overflow is Overflow.DISCONNECT else self._limit
            if not self._waiting and not self._held and (not pending or pending + size + len(data) <= limit):
                offset = self.position(item.offset)
                out.append(data if offset == item.offset else wire.live_at(item, offset))
                size += len(data)
            elif subscription.overflow is Overflow.CONFLATE:
                if self._held is None:
                    self._held = Held()
                conflated = self._held.put(item, len(data))
                figures.dropped[Overflow.CONFLATE] += conflated
                self._direct = False
            else:
                if self._waiting is None:
                    self._waiting = deque()
                # What a conflater has held back may be older than what waits already.
                mixed = mixed or bool(self._waiting and self._waiting[-1][0].offset > item.offset)
                self._waiting.append((item, len(data), subscription))
                self._waiting_size += len(data)
                self._direct = False
        if out:
            self._sink.write(b"".join(out))
            self.sent += 1
            figures.delivered += len(out)
        if mixed and self._waiting:
            self._waiting = deque(sorted(self._waiting, key=_place))
        if self._waiting or self._held:
            self._shed()

    def _shed(self) -> None:
        """Drop what may be dropped until the rest is within the bound; else the follower is too slow."""
        over = self.queued() - self._bound
        if over > 0 and self._waiting:
            kept: deque[tuple[Item, int, Subscription]] = deque()
            while self._waiting and over > 0:
                entry = self._waiting.popleft()
                if entry[2].overflow is Overflow.DROP_OLDEST:
                    entry[2].dropped += 1
                    self._hub.figures.dropped[Overflow.DROP_OLDEST] += 1
                    self._waiting_size -= entry[1]
                    over -= entry[1]
                else:
                    kept.append(entry)
            self._waiting.extendleft(reversed(kept))
        if over > 0:
            self._hub.figures.ended_slow += 1
            self._hub.figures.dropped[Overflow.DISCONNECT] += 1
            self._owner.too_slow()

    # -- room and time -------------------------------------------------------------------------

    def queued(self) -> int:
        """Bytes that wait, the transport's included."""
        return self._sink.pending() + self._waiting_size + (self._held.size if self._held else 0)

    def drained(self) -> None:
        """The transport has nothing left: send what waited."""
        self._said = 0
        if self._on_drain is not None:
            waiters, self._on_drain = self._on_drain, None
            for waiter in waiters:
                waiter()
        if not self.open or self._direct:
            return
        wire, waiting, held = self.wire, self._waiting, self._held
        out = [self._owner.dropped(one) for one in self._live if one.dropped]
        for one in self._live:
            one.dropped = 0
        size, count = 0, -len(out)
        while (waiting or held) and size < ROOM:
            if waiting:
                item, length, _ = waiting.popleft()
                self._waiting_size -= length
            else:
                assert held is not None
                item = held.take_oldest()
            offset = self.position(item.offset)
            data = wire.live(item) if offset == item.offset else wire.live_at(item, offset)
            out.append(data)
            size += len(data)
        if out:
            self._sink.write(b"".join(out))
            self.sent += 1
            self._hub.figures.delivered += count + len(out)
        self._settle()

    def flush(self, now: float) -> None:
        """Send what was held back long enough."""
        self._alarm = 0.0
        if not self.open:
            return
        due: list[tuple[Item, Subscription]] = []
        for subscription in self.subscriptions.values():
            if subscription.conflater is not None:
                due += [(item, subscription) for item in subscription.conflater.due(now)]
        due.sort(key=_offset)
        self._send(due)
        self._set_alarm()
        self._settle()

    def _set_alarm(self) -> None:
        if not self.open:
            return
        times = [
            at
            for one in self.subscriptions.values()
            if one.conflater is not None and (at := one.conflater.alarm) is not None
        ]
        if times and (not self._alarm or min(times) < self._alarm):
            self._alarm = min(times)
            self._hub.wake(self, self._alarm)

    # -- recovery ------------------------------------------------------------------------------

    def give_page(self, subscription: Subscription, readings: Sequence[Reading], until: int) -> None:
        """Send recovered readings; `until`: how far the log was searched."""
        subscription.progress = until
        if readings:
            floor = self.position(until)
            self._give(self.wire.page(subscription.id, readings, floor, until), readings, subscription)

    def give_newest(self, subscription: Subscription, readings: Sequence[Reading]) -> None:
        """Send the newest values of the series of a subscription."""
        if readings:
            pages = self.wire.newest(subscription.id, readings, self.position())
            self._give(pages, readings, subscription)

    def _give(self, pages: list[bytes], readings: Sequence[Reading], subscription: Subscription) -> None:
        self._sink.write(b"".join(pages))
        self.sent += 1
        self._hub.figures.delivered += len(readings)
        if subscription.conflater is not None:
            now = self._hub.now()
            for reading in readings:
                subscription.conflater.admit((reading.device, reading.metric), now)

    def say(self, data: bytes) -> None:
        """Send anything that is not an item, past what waits."""
        if self.open:
            self._sink.write(data)
            self.sent += 1
            if self._sink.pending():
                self._said += len(data)
                if self._said > self._bound:
                    self._owner.too_slow()

    @property
    def roomy(self) -> bool:
        """Whether a page may be sent."""
        return self._sink.pending() <= ROOM

    def on_drain(self, waiter: Callable[[], None]) -> None:
        """Call `waiter` once, when the transport has nothing left or the follower ends."""
        if self._on_drain is None:
            self._on_drain = []
        self._on_drain.append(waiter)

    def give_up_slow(self) -> None:
        """End the stream: the follower does not keep up."""
        self._hub.figures.ended_slow += 1
        self._owner.too_slow()

    def fail(self) -> None:
        """End the stream for an error of the gate."""
        self._owner.broken()

    def close(self) -> None:
        """End: the hub forgets the follower, and nothing more is sent."""
        if self.open:
            self.open = False
            self._hub.leave(self)
            self._waiting = self._held = None
            self._waiting_size = 0
            for subscription in self.subscriptions.values():
                if subscription.stop is not None:
                    subscription.stop()
            self.drained()


def _eagerness(subscription: Subscription) -> tuple[float, Overflow]:
    conflater = subscription.conflater
    return (conflater.interval if conflater is not None else 0.0, subscription.overflow)


def _place(entry: tuple[Item, int, Subscription]) -> int:
    return entry[0].offset


def _offset(entry: tuple[Item, Subscription]) -> int:
    return entry[0].offset
