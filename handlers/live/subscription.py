"""One wish of a follower, and the terms on which it is fulfilled."""

from collections.abc import Callable
from enum import IntEnum

from handlers.live.conflater import Conflater
from handlers.live.filters import Filter
from handlers.live.wires import SubscriptionId


class Overflow(IntEnum):
    """What to do for a follower that is too slow; the strongest promise first."""

    DISCONNECT = 0
    DROP_OLDEST = 1
    CONFLATE = 2


class Subscription:
    """One wish of a follower. `interval`: seconds, 0 for none.

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

    @property
    def eagerness(self) -> tuple[float, Overflow]:
        """Of several subscriptions for a reading the one with the least of this decides."""
        return (self.conflater.interval if self.conflater is not None else 0.0, self.overflow)
