"""What a follower wishes, and the terms on which it is fulfilled."""

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum

from handlers.live.conflater import Conflater
from handlers.live.filters import Filter
from handlers.live.items import Item
from handlers.live.wires import SubscriptionId
from handlers.problems import Problem
from storage.patterns import Pattern

# The longest min_interval, in microseconds.
INTERVAL_MAX = 86_400_000_000


def granted(match: Iterable[Pattern], grants: Iterable[Pattern], metrics: Iterable[str]) -> Filter:
    """What a follower asks for, cut to its grants. Problem if no device can be both."""
    wish = Filter(match, grants, metrics)
    if not wish.possible:
        raise Problem("forbidden", "the token has no grant for a device that these patterns match")
    return wish


class Overflow(IntEnum):
    """What to do for a follower that is too slow; the strongest promise first."""

    DISCONNECT = 0
    CONFLATE = 1
    DROP_OLDEST = 2


class Subscription:
    """One wish of a follower. `interval`: seconds, 0 for none. `start`: the offset behind which it begins.

    `progress`: while it recovers, the offset up to which the follower has everything; None once it is live.
    `settled`: whether it was told where it starts. `dropped`: items that the follower has not been told of.
    `stop`: ends its recovery.
    """

    __slots__ = ("conflater", "dropped", "filter", "id", "overflow", "progress", "settled", "start", "stop")

    def __init__(
        self, id: SubscriptionId, filter: Filter, overflow: Overflow, interval: float, start: int
    ) -> None:
        self.id = id
        self.filter = filter
        self.overflow = overflow
        self.conflater = Conflater(interval) if interval else None
        self.start = start
        self.progress: int | None = start
        self.settled = True
        self.dropped = 0
        self.stop: Callable[[], object] | None = None

    def covers(self, item: Item) -> bool:
        """Whether the replay of this subscription, once it is over, has brought an item that is held."""
        return item.offset > self.start and self.filter.takes(*item.series)


class Terms:
    """On what terms a reading is sent that some subscriptions of a follower take in.

    `conflater`: what may hold it back, None if one of them wants all; `overflow`: the strongest of their
    promises; `told`: those that are told what is dropped.
    """

    __slots__ = ("conflater", "overflow", "told")

    def __init__(self, subscriptions: Sequence[Subscription]) -> None:
        conflaters = [one.conflater for one in subscriptions]
        self.conflater: Conflater | None = None
        if None not in conflaters:
            self.conflater = min(filter(None, conflaters), key=_interval)
        self.overflow = min(one.overflow for one in subscriptions)
        self.told = [one for one in subscriptions if one.overflow is Overflow.DROP_OLDEST]

    def lose(self) -> None:
        """A reading was dropped, or replaced by a newer one."""
        for subscription in self.told:
            subscription.dropped += 1


def _interval(conflater: Conflater) -> float:
    return conflater.interval
