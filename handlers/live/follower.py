"""One connection that follows the log: its subscriptions, what waits for it, and the position it is shown."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from handlers.exchange import Sink
from handlers.live.backlog import Backlog
from handlers.live.conflater import Conflater
from handlers.live.filters import Series
from handlers.live.items import Delivery, Item
from handlers.live.subscription import Overflow, Subscription, Terms
from handlers.live.wires import SubscriptionId, Wire
from storage.models import Reading

# Bytes that the transport keeps for a slow follower before items wait here, where they can be dropped.
ROOM = 64 * 1024
# Commits larger than the bound may wait beside it, so many at once: they come faster than anybody reads.
BURST = 2
# Series whose subscription is remembered.
ROUTES_MAX = 10_000

_Ready = list[tuple[Item, Terms]]


class Figures:
    """What followers count, all together. `dropped`: by policy."""

    __slots__ = ("conflated", "delivered", "dropped")

    def __init__(self) -> None:
        self.delivered = 0
        # By min_interval.
        self.conflated = 0
        self.dropped = [0] * len(Overflow)


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
    now: Callable[[], float]

    def join(self, follower: "Follower") -> None:
        """Deliver what the live subscriptions of the follower are for, from the next batch on."""

    def leave(self, follower: "Follower") -> None:
        """Deliver nothing any more."""

    def wake(self, follower: "Follower", at: float) -> None:
        """Call `flush` at that time."""


class Follower:
    """Between the hub and one connection. `bound`: bytes that may wait, the transport's included, unless one
    commit alone is larger (see BURST).

    Everything it does it does at once; the sink keeps what the kernel does not take. `sent` grows with
    everything that is sent. `alarm`: when `flush` must be called, 0 if it need not.
    """

    __slots__ = (
        "_backlog",
        "_bound",
        "_burst",
        "_direct",
        "_hub",
        "_limit",
        "_live",
        "_on_drain",
        "_owner",
        "_patient",
        "_routes",
        "_said",
        "_sink",
        "_terms",
        "alarm",
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
        self.sent = 0
        self.subscriptions: dict[SubscriptionId, Subscription] = {}
        self._live: list[Subscription] = []
        self._backlog: Backlog | None = None
        # On what terms the readings of a series are sent, where there are several subscriptions.
        self._routes: dict[Series, Terms | None] | None = None
        # On what terms all are sent, where there is one.
        self._terms: Terms | None = None
        self._on_drain: list[Callable[[], None]] | None = None
        self.alarm = 0.0
        # Bytes of other messages since the transport had nothing left.
        self._said = 0
        # Whether the bytes that all share may be sent as they are, and how many may wait then.
        self._direct = True
        self._limit = bound
        # Whether nothing may be left out, and the largest of what made the queue overflow, 0 for nothing.
        self._patient = True
        self._burst = 0

    # -- subscriptions -------------------------------------------------------------------------

    @property
    def live(self) -> list[Subscription]:
        """The subscriptions that the hub delivers to."""
        return self._live

    def add(self, subscription: Subscription) -> None:
        """Take a subscription that recovers; `go_live` ends that."""
        self.subscriptions[subscription.id] = subscription
        self._direct = False

    def go_live(self, subscription: Subscription) -> None:
        """The follower has everything up to the head: from here on the hub delivers."""
        for other in self._live:
            # What the replay has brought already must not come again as if it were new.
            if other.conflater is not None:
                other.conflater.held.drop(subscription.covers)
        subscription.progress = None
        subscription.stop = None
        self._changed()

    def remove(self, id: SubscriptionId) -> bool:
        """End a subscription, if there is one; what waits for it alone is dropped."""
        subscription = self.subscriptions.pop(id, None)
        if subscription is None:
            return False
        if subscription.stop is not None:
            subscription.stop()
        self._changed()
        if self._backlog is not None:
            self._backlog.reassign(self._route)
        if subscription.conflater is not None:
            self._send(self._reassign(subscription.conflater.held.items()))
        self._set_alarm()
        self._settle()
        return True

    def _reassign(self, items: Sequence[Item]) -> _Ready:
        """Give what was held back for a subscription to another one; what may be sent now."""
        ready = []
        for item in items:
            terms = self._route(item.series)
            if terms is None:
                continue
            if terms.conflater is None:
                ready.append((item, terms))
            else:
                terms.conflater.hold(item, self._hub.now())
        return ready

    def _changed(self) -> None:
        self._routes = None
        self._live = [one for one in self.subscriptions.values() if one.progress is None]
        self._terms = Terms(self._live) if len(self._live) == 1 else None
        self._patient = all(one.overflow is Overflow.DISCONNECT for one in self._live)
        self._limit = self._bound if self._patient else min(ROOM, self._bound)
        self._settle()
        self._hub.join(self)

    def _settle(self) -> None:
        """Whether nothing stands between the hub's bytes and the sink."""
        self._direct = not self._backlog and all(
            one.progress is None and one.conflater is None and not one.dropped
            for one in self.subscriptions.values()
        )

    def _route(self, series: Series) -> Terms | None:
        """On what terms the readings of a series are sent; None if no subscription takes it in."""
        if self._routes is None or len(self._routes) >= ROUTES_MAX:
            self._routes = {}
        if series not in self._routes:
            matching = [one for one in self._live if one.filter.takes(*series)]
            self._routes[series] = Terms(matching) if matching else None
        return self._routes[series]

    # -- the position --------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether a position may be shown: before the verdict, the client's own may be the better one."""
        return all(one.settled for one in self.subscriptions.values())

    def position(self, until: int | None = None) -> int:
        """Where to resume from for who has got everything up to `until` (the head) that is not held back."""
        offset = self._hub.head if until is None else until
        if self._direct:
            return offset
        if self._backlog:
            oldest = self._backlog.oldest
            assert oldest is not None
            offset = min(offset, oldest - 1)
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
            # Taken first, then called: as methods they would be looked up the slow way, since they are slots.
            sink = self._sink
            ask, write = sink.pending, sink.write
            pending = ask()
            # Who has read everything is given a batch whole, however large.
            if not pending or pending + len(data) <= self._limit or self._bursts(pending, len(data)):
                write(data)
                self.sent += 1
                self._hub.figures.delivered += len(delivery.items)
                return
        self._offer_each(delivery.items)

    def _offer_each(self, items: Sequence[Item]) -> None:
        now = self._hub.now()
        ready: _Ready = []
        for item in items:
            terms = self._terms or self._route(item.series)
            if terms is None:
                continue
            if self._terms is None:
                self._supersede(item.series, terms.conflater)
            if terms.conflater is not None and not terms.conflater.admit(item.series, now):
                self._hub.figures.conflated += terms.conflater.held.put(item, 0)
                continue
            ready.append((item, terms))
        self._send(ready)
        self._set_alarm()
        self._settle()

    def _supersede(self, series: Series, conflater: Conflater | None) -> None:
        """There is a newer item of the series: what was held back of it elsewhere than now is over."""
        for subscription in self._live:
            if subscription.conflater is not None and subscription.conflater is not conflater:
                subscription.conflater.held.take(series)

    def _send(self, items: _Ready) -> None:
        """Send what there is room for, in one write, and keep the rest as its subscription wishes."""
        if not items:
            return
        wire, figures = self.wire, self._hub.figures
        pending, waiting = self._sink.pending(), self.queued()
        out: list[bytes] = []
        size = total = 0
        for item, terms in items:
            data = wire.live(item)
            total += len(data)
            limit = self._bound if terms.overflow is Overflow.DISCONNECT else min(ROOM, self._bound)
            if not self._backlog and (not pending or pending + size + len(data) <= limit):
                out.append(self._shown(item))
                size += len(data)
                continue
            if self._backlog is None:
                self._backlog = Backlog()
            self._direct = False
            if terms.overflow is not Overflow.CONFLATE:
                self._backlog.supersede(item.series)
            figures.dropped[Overflow.CONFLATE] += self._backlog.keep(item, len(data), terms)
        self._write(out, len(out))
        if self._backlog:
            self._shed(self._backlog, waiting, total)

    def _shown(self, item: Item) -> bytes:
        """An item with a position to resume from: the bytes that all share, if it is its own."""
        offset = self.position(item.offset)
        return self.wire.live(item) if offset == item.offset else self.wire.live_at(item, offset)

    def _write(self, pieces: list[bytes], readings: int) -> None:
        if pieces:
            self._sink.write(b"".join(pieces))
            self.sent += 1
            self._hub.figures.delivered += readings

    def _bursts(self, waiting: int, size: int) -> bool:
        """Whether more than the bound may wait for once, because a commit is larger than that."""
        if not self._patient:
            return False
        self._burst = max(self._burst or waiting, size)
        return self._burst > self._bound and waiting + size <= BURST * self._burst + self._bound

    def _shed(self, backlog: Backlog, waiting: int, size: int) -> None:
        """Drop what may be dropped until the rest is within the bound; else the follower is too slow.

        `waiting`: bytes that waited before the last items, which are of `size`.
        """
        # A batch that was given whole is no reason to give up who lets items go.
        over = min(self._sink.pending(), self._limit) + backlog.size - self._bound
        if over > 0 and not self._bursts(waiting, size):
            over, count = backlog.shed(over)
            self._hub.figures.dropped[Overflow.DROP_OLDEST] += count
            if over > 0:
                self.give_up_slow()

    # -- room and time -------------------------------------------------------------------------

    def queued(self) -> int:
        """Bytes that wait, the transport's included."""
        return self._sink.pending() + (self._backlog.size if self._backlog else 0)

    def drained(self) -> None:
        """The transport has nothing left: send what waited."""
        self._said = 0
        if self.open and not self._direct:
            self._catch_up()
        if not self._backlog:
            self._burst = 0
        if self.roomy:
            self._call_waiters()

    def _catch_up(self) -> None:
        out = []
        for one in self._live:
            if one.dropped:
                out.append(self._owner.dropped(one))
                one.dropped = 0
        readings = -len(out)
        while True:
            size = 0
            while self._backlog and size < ROOM:
                data = self._shown(self._backlog.take())
                out.append(data)
                size += len(data)
            self._write(out, len(out) + readings)
            # Nobody tells of room where the kernel has taken everything.
            if not self._backlog or self._sink.pending():
                break
            out, readings = [], 0
        self._settle()

    def _call_waiters(self) -> None:
        if self._on_drain is not None:
            waiters, self._on_drain = self._on_drain, None
            for waiter in waiters:
                waiter()

    def flush(self, now: float) -> None:
        """Send what was held back long enough."""
        self.alarm = 0.0
        if not self.open:
            return
        held = [item for one in self._live if one.conflater is not None for item in one.conflater.due(now)]
        held.sort(key=_offset)
        due = [(item, terms) for item in held if (terms := self._terms or self._route(item.series))]
        self._send(due)
        self._set_alarm()
        self._settle()

    def _set_alarm(self) -> None:
        if not self.open:
            return
        for one in self._live:
            at = None if one.conflater is None else one.conflater.alarm
            if at is not None and (not self.alarm or at < self.alarm):
                self.alarm = at
                self._hub.wake(self, at)

    # -- recovery, other messages, the end -----------------------------------------------------

    def give_page(self, subscription: Subscription, readings: Sequence[Reading], until: int) -> None:
        """Send recovered readings; `until`: how far the log was searched."""
        subscription.progress = until
        if readings:
            pages = self.wire.page(subscription.id, readings, self.position(until), until)
            self._give(pages, readings, subscription)

    def give_newest(self, subscription: Subscription, readings: Sequence[Reading]) -> None:
        """Send the newest values of the series of a subscription."""
        if readings:
            pages = self.wire.newest(subscription.id, readings, self.position())
            self._give(pages, readings, subscription)

    def _give(self, pages: list[bytes], readings: Sequence[Reading], subscription: Subscription) -> None:
        self._write(pages, len(readings))
        if subscription.conflater is not None:
            now = self._hub.now()
            for reading in readings:
                subscription.conflater.admit((reading.device, reading.metric), now)

    def say(self, data: bytes) -> None:
        """Send anything that is no reading, past what waits."""
        if self.open:
            self._sink.write(data)
            self.sent += 1
            if self._sink.pending():
                self._said += len(data)
                if self._said > self._bound:
                    self.give_up_slow()

    @property
    def backlogged(self) -> bool:
        """Whether items wait for room."""
        return bool(self._backlog)

    @property
    def roomy(self) -> bool:
        """Whether a page may be sent."""
        return self._sink.pending() <= ROOM and not self._backlog

    def on_drain(self, waiter: Callable[[], None]) -> None:
        """Call `waiter` once, when nothing waits any more or the follower ends."""
        if self._on_drain is None:
            self._on_drain = []
        self._on_drain.append(waiter)

    def give_up_slow(self) -> None:
        """End the stream: the follower does not keep up."""
        self._hub.figures.dropped[Overflow.DISCONNECT] += 1
        self._owner.too_slow()

    def fail(self) -> None:
        """End the stream for an error of the gate."""
        self._owner.broken()

    def close(self) -> None:
        """End: the hub forgets the follower, and nothing more is sent."""
        if self.open:
            self.open = False
            self._hub.leave(self)
            self._backlog = None
            for subscription in self.subscriptions.values():
                if subscription.stop is not None:
                    subscription.stop()
            self._call_waiters()


def _offset(item: Item) -> int:
    return item.offset
