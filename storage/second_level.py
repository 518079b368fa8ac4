"""A cache of newest values that processes share, behind the one that each has for itself.

Nobody tells it of commits. What it keeps says as of when it is, and who takes it out compares that with
what he has heard of since: what is too old for him he does not use, and replaces.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from msgspec import Struct

from storage.log import LogState
from storage.models import Batch, Latest, Sample

DEVICES_MAX = 100_000


class Kept(Struct, frozen=True, array_like=True):
    """The newest readings of a device, read from the database when the log stood at `head` or later.

    `epoch`, `floor`: of the log then. `offset`: the newest of the device.
    """

    epoch: str
    floor: int
    head: int
    offset: int
    metrics: dict[str, Sample]


class Store(Protocol):
    """Where it is kept. May lose and may be away; never keeps anybody waiting for long."""

    def get(self, device: str, found: Callable[[Kept | None], None]) -> None:
        """Have `found` called once with what is kept of the device, or with None: there is nothing, or it
        cannot be had in time.
        """

    def put(self, device: str, kept: Kept) -> None:
        """Keep it for a while. Never waits and never raises."""

    def forget(self, device: str) -> None:
        """The device was deleted. Never waits and never raises."""


class SecondLevel:
    """The shared cache as one process may use it. `state`: of the log, as this process knows it."""

    def __init__(self, store: Store, state: Callable[[], LogState], devices_max: int = DEVICES_MAX) -> None:
        self._store = store
        self._state = state
        self._heard = Heard(state().head, devices_max)
        # Look-ups that could be used.
        self.hits = 0

    def state(self) -> LogState:
        """To be asked before the database is read, for `put`: this much it holds at least."""
        return self._state()

    def get(self, device: str, found: Callable[[Latest | None], None]) -> None:
        """Have `found` called once with the newest readings, never older than what this process has heard
        of; with None: the database must be asked.
        """
        self._store.get(device, partial(self._judge, device, found))

    def _judge(self, device: str, found: Callable[[Latest | None], None], kept: Kept | None) -> None:
        # Now and not before: what was heard of while it was on its way counts.
        if kept is not None:
            state = self._state()
            same = kept.epoch == state.epoch and kept.floor >= state.floor
            if same and self._heard.includes(device, kept.offset, kept.head):
                self.hits += 1
                self._heard.note(device, kept.offset)
                found(Latest(device, kept.offset, kept.metrics))
                return
        found(None)

    def note(self, latest: Latest) -> None:
        """Nothing older than what the database has is used from now on."""
        self._heard.note(latest.device, latest.offset)

    def is_newest(self, latest: Latest, head: int) -> bool:
        """Whether nothing newer was heard of than what the database had when the log stood at `head`: answers
        may come in another order than they were asked for.
        """
        return self._heard.includes(latest.device, latest.offset, head)

    def put(self, state: LogState, latest: Latest) -> None:
        """Keep what the database had after `state` was asked, for all processes."""
        kept = Kept(state.epoch, state.floor, state.head, latest.offset, latest.metrics)
        self._store.put(latest.device, kept)

    def apply(self, batch: Batch) -> None:
        """Hear what was committed, here or by another process, in any order."""
        self._heard.apply(batch)

    def forget(self, device: str, head: int) -> None:
        """The device was deleted when the log stood there: only what came after it is good."""
        self._heard.note(device, head + 1)
        self._store.forget(device)

    def clear(self) -> None:
        """Commits may have been missed: use only what is not older than now."""
        self._heard.restart(self._state().head)


class Heard:
    """The newest offset of each device that wrote since `floor`, as far as this process heard of it.

    At most so many devices: those that have not written for longest raise the floor when they go.
    """

    def __init__(self, floor: int, devices_max: int) -> None:
        self.floor = floor
        self._generation_max = devices_max // 2
        self._new: dict[str, int] = {}
        self._old: dict[str, int] = {}
        # Nothing in them is newer.
        self._new_head = floor
        self._old_head = floor

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def apply(self, batch: Batch) -> None:
        """Take in what was committed."""
        new = self._new
        for reading in batch.readings:
            if reading.offset > new.get(reading.device, 0):
                new[reading.device] = reading.offset
        self._end(batch.last)

    def note(self, device: str, offset: int) -> None:
        """The device has an offset as new as this one."""
        self._new[device] = max(offset, self._new.get(device, 0))
        self._end(offset)

    def restart(self, floor: int) -> None:
        """Something up to `floor` may have been missed: know nothing of what was before."""
        self.floor = self._new_head = self._old_head = max(floor, self._new_head)
        self._new, self._old = {}, {}

    def includes(self, device: str, offset: int, head: int) -> bool:
        """Whether values up to `offset`, all that the device had when the log stood at `head`, are no older
        than what was heard.
        """
        newest = max(self._new.get(device, 0), self._old.get(device, 0))
        # What is not newer than the floor may have been noted late, after something newer was forgotten.
        return offset >= newest if newest > self.floor else head >= self.floor

    def _end(self, offset: int) -> None:
        self._new_head = max(self._new_head, offset)
        if len(self._new) > self._generation_max:
            self.floor = self._old_head
            self._old, self._old_head = self._new, self._new_head
            self._new = {}
