"""The hub: every committed batch, matched once per filter, encoded once per wire, given to all who follow.

It is pure and synchronous: no sockets, no tasks. Whoever drives it publishes batches, calls `ring` when it
asked to be woken, and fills the gaps that it finds from the log (handlers.live.healer).
"""

import heapq
import logging
from collections.abc import Callable
from itertools import count

from handlers.live.filters import FilterIndex
from handlers.live.follower import Figures, Follower, Group
from handlers.live.gap import Gap
from handlers.live.items import Delivery, Item
from handlers.live.window import Window
from storage.log import LogState
from storage.models import Batch

_log = logging.getLogger("tidegate.hub")


# Alarms of followers that may have gone, before somebody looks.
ALARMS = 1_000


class Hub:
    """Joins batches to one stream and hands it on.

    Batches may come from anywhere, in any order, and more than once: what joins is handed on at once, what is
    early is kept in `gap` until what lies before it has come, or somebody publishes it out of the log.

    `head`: the offset up to which everything was handed on. `epoch`: that of the log which the hub follows.
    `window`: bytes of the newest readings in memory. `now`: loop time. `alarm`: called with the loop time
    at which `ring` must be called, if that is earlier than what was asked before. `observe`: called with the
    seconds from a batch to the last socket. `replaced`: called with the new epoch before the hub leaves the
    old one: all followers must be ended, with positions of the old.
    """

    def __init__(
        self,
        head: int,
        *,
        epoch: str,
        window: int,
        now: Callable[[], float],
        alarm: Callable[[float], None],
        observe: Callable[[float], None],
    ) -> None:
        self.head = head
        self.epoch = epoch
        self.gap = Gap(now)
        self.window = Window(head, window)
        self.figures = Figures()
        self.replaced: Callable[[str], None] = _nothing
        self._capacity = window
        self.now = now
        self._alarm = alarm
        self._observe = observe
        self._index: FilterIndex[Group] = FilterIndex()
        self._groups: dict[frozenset[object], Group] = {}
        self._alarms: list[tuple[float, int, Follower]] = []
        self._alarms_max = ALARMS
        self._numbers = count()

    @property
    def filters(self) -> int:
        """How many different filters there are."""
        return len(self._groups)

    # -- followers -----------------------------------------------------------------------------

    def join(self, follower: Follower) -> None:
        """See handlers.live.follower.Source."""
        filters = {one.filter.key: one.filter for one in follower.live}
        key: frozenset[object] = frozenset(filters)
        group = follower.group
        if group is not None:
            if group.key == key:
                return
            self.leave(follower)
        if not key:
            return
        found = self._groups.get(key)
        if found is None:
            found = self._groups[key] = Group(key)
            self._index.add(found, filters.values())
        found.followers[follower] = None
        follower.group = found

    def leave(self, follower: Follower) -> None:
        """See handlers.live.follower.Source."""
        group = follower.group
        if group is not None:
            follower.group = None
            del group.followers[follower]
            if not group.followers:
                del self._groups[group.key]
                self._index.remove(group)

    def wake(self, follower: Follower, at: float) -> None:
        """See handlers.live.follower.Source."""
        if len(self._alarms) > self._alarms_max:
            # Those who have gone would stay until their time comes.
            self._alarms = [alarm for alarm in self._alarms if alarm[2].open]
            heapq.heapify(self._alarms)
            self._alarms_max = max(ALARMS, 2 * len(self._alarms))
        earlier = not self._alarms or at < self._alarms[0][0]
        heapq.heappush(self._alarms, (at, next(self._numbers), follower))
        if earlier:
            self._alarm(at)

    def ring(self) -> None:
        """Let the followers send what they held back long enough."""
        now = self.now()
        while self._alarms and self._alarms[0][0] <= now:
            at, _, follower = heapq.heappop(self._alarms)
            # It may have asked for an earlier time since.
            if at != follower.alarm:
                continue
            try:
                follower.flush(now)
            except Exception:
                self._give_up(follower)
        if self._alarms:
            self._alarm(self._alarms[0][0])

    def break_off(self) -> None:
        """End all followers: what they are about to miss is gone."""
        for group in tuple(self._groups.values()):
            for follower in tuple(group.followers):
                follower.fail()

    # -- the log -------------------------------------------------------------------------------

    def keep_to(self, state: LogState) -> None:
        """Follow the log of this epoch; who follows the one before it is ended."""
        if state.epoch == self.epoch:
            return
        _log.warning("the log was replaced", extra={"epoch": state.epoch, "head": state.head})
        self.replaced(state.epoch)
        self.break_off()
        self.epoch = state.epoch
        self.gap.clear()
        self.skip(state.head)

    def skip(self, head: int) -> None:
        """Go on behind this offset, without what lies before it; nobody may be following."""
        self.head = head
        self.window = Window(head, self._capacity)
        following = self.gap.settle(head)
        if following is not None:
            self.publish(following)

    def expect(self, offset: int) -> None:
        """The log goes up to this offset at least."""
        if offset > self.head:
            self.gap.reaches(offset)

    # -- batches -------------------------------------------------------------------------------

    def publish(self, batch: Batch) -> None:
        """Hand a batch on, once it joins: what was handed on already is passed over, an early one is kept.

        The readings of a batch may have holes: what was deleted is no gap.
        """
        if batch.last <= self.head:
            return
        if batch.first > self.head + 1:
            self.gap.keep(batch)
            return
        following: Batch | None = batch
        while following is not None:
            if following.first <= self.head:
                rest = [reading for reading in following.readings if reading.offset > self.head]
                following = Batch(self.head + 1, following.last, rest)
            started = self.now()
            try:
                if self._groups:
                    self._deliver(following)
                    self._observe(self.now() - started)
            finally:
                self.window.add(following)
                self.head = following.last
            # What has waited for this one.
            following = self.gap.settle(self.head) if self.gap.until else None

    def _deliver(self, batch: Batch) -> None:
        find = self._index.find
        touched: list[Group] = []
        for reading in batch.readings:
            series = (reading.device, reading.metric)
            groups = find(series)
            if groups:
                item = Item(reading, series)
                for group in groups:
                    delivery = group.delivery
                    if delivery is None:
                        group.delivery = Delivery(item)
                        touched.append(group)
                    else:
                        delivery.items.append(item)
        for group in touched:
            delivery, group.delivery = group.delivery, None
            assert delivery is not None
            # Some of them may end, or be ended, while it is handed on.
            for follower in tuple(group.followers):
                if follower.open:
                    try:
                        follower.offer(delivery)
                    except Exception:
                        self._give_up(follower)

    def _give_up(self, follower: Follower) -> None:
        """What went wrong with one follower must not hurt the others."""
        _log.exception("a follower broke")
        try:
            follower.fail()
        except Exception:
            _log.exception("a broken follower could not be ended")
            follower.close()


def _nothing(_: str) -> None:
    """Nobody needs to know."""
