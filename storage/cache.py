"""The newest values of devices, kept in this process and kept current by commits.

Bounded (what was not used lately goes first), with a time to live, and with one load per device at a
time however many ask. What is not here is asked for in a second level that processes share, if there is
one, and then in the database.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Protocol, TypeVar

from storage.models import Batch, Latest, Sample
from storage.second_level import SecondLevel


class Remembered(Protocol):
    """What is kept as long as there is room. `recent`: used since room was last looked for."""

    recent: bool


K = TypeVar("K", bound=Hashable)
R = TypeVar("R", bound=Remembered)


def make_room(entries: dict[K, R]) -> K:
    """Forget one entry, by second chance (the clock algorithm), and say which.

    Nearly the least recently used one, without a move at each use.
    """
    while True:
        key, entry = next(iter(entries.items()))
        del entries[key]
        if not entry.recent:
            return key
        entry.recent = False
        entries[key] = entry


class _Entry:
    """The newest readings of one device. `stale_at`: time of the clock from which it must be loaded again."""

    __slots__ = ("latest", "recent", "stale_at")

    def __init__(self, latest: Latest, stale_at: float) -> None:
        self.latest = latest
        self.stale_at = stale_at
        self.recent = False


def _add(latest: Latest, metric: str, sample: Sample) -> None:
    if sample.offset > latest.offset:
        latest.offset = sample.offset
    known = latest.metrics.get(metric)
    if known is None or sample.ts > known.ts:
        latest.metrics[metric] = sample


class _Load:
    """A load under way, who waits for it, and what was committed to its device meanwhile."""

    __slots__ = ("cancelled", "since", "waiting")

    def __init__(self, device: str) -> None:
        self.waiting: list[asyncio.Future[Latest]] = []
        self.since = Latest(device, 0, {})
        # The device was deleted: what comes back is not to be kept.
        self.cancelled = False


class LatestCache:
    """At most `capacity` devices for at most `ttl` seconds each; `load` reads one from the database.
    `clock`: monotonic, seconds. `second`: what is asked before that.

    `hits`, `misses`, `evictions` count look-ups and what had to make room.
    """

    def __init__(
        self,
        load: Callable[[str], Awaitable[Latest]],
        capacity: int,
        ttl: float,
        clock: Callable[[], float] = time.monotonic,
        second: SecondLevel | None = None,
    ) -> None:
        self._load = load
        self._second = second
        self._capacity = capacity
        self._ttl = ttl
        self._loop = asyncio.get_running_loop()
        self._now = clock
        self._entries: dict[str, _Entry] = {}
        self._loads: dict[str, _Load] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.hits = 0
        self.misses = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, device: str) -> Latest | None:
        """What is known of the device, None if it must be fetched. Later commits show in what was given."""
        entry = self._entries.get(device)
        if entry is None or entry.stale_at <= self._now():
            self.misses += 1
            return None
        self.hits += 1
        entry.recent = True
        return entry.latest

    async def fetch(self, device: str) -> Latest:
        """Load the device, together with all others who ask for it now; errors as `load` has them."""
        # Each waits for a future of his own: who gives up must not take the others' answer with him.
        waiting: asyncio.Future[Latest] = self._loop.create_future()
        load = self._loads.get(device)
        if load is not None:
            load.waiting.append(waiting)
        else:
            load = self._loads[device] = _Load(device)
            load.waiting.append(waiting)
            if self._second is None:
                self._ask_database(load)
            else:
                self._second.get(device, partial(self._found, load))
        return await waiting

    def apply(self, batch: Batch) -> None:
        """Take in what was committed, here or by another process, in any order."""
        entries, loads = self._entries, self._loads
        for reading in batch.readings:
            device = reading.device
            entry = entries.get(device)
            if entry is not None:
                _add(entry.latest, reading.metric, Sample(reading.ts, reading.value, reading.offset))
            if loads and device in loads:
                sample = Sample(reading.ts, reading.value, reading.offset)
                _add(loads[device].since, reading.metric, sample)
        if self._second is not None:
            self._second.apply(batch)

    def forget(self, device: str, head: int = 0) -> None:
        """The device was deleted when the head of the log was there."""
        self._drop(device)
        if self._second is not None:
            self._second.forget(device, head)

    def clear(self) -> None:
        """Forget all devices: readings were removed by age, or commits were missed."""
        for device in [*self._entries, *self._loads]:
            self._drop(device)
        if self._second is not None:
            self._second.clear()

    async def close(self) -> None:
        """Wait for the loads that are under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _drop(self, device: str) -> None:
        self._entries.pop(device, None)
        load = self._loads.pop(device, None)
        if load is not None:
            load.cancelled = True

    def _found(self, load: _Load, latest: Latest | None) -> None:
        """What the second level has."""
        if latest is None:
            self._ask_database(load)
        else:
            self._loaded(load, latest, keep=True)

    def _ask_database(self, load: _Load) -> None:
        task = self._loop.create_task(self._run(load))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, load: _Load) -> None:
        device, second = load.since.device, self._second
        head = 0
        try:
            if second is None:
                latest = await self._load(device)
            else:
                state = second.state()
                head = state.head
                latest = await self._load(device)
                second.note(latest)
                if not load.cancelled:
                    # As it is: of what was heard since, something older may still be on its way.
                    second.put(state, latest)
        except Exception as error:
            self._over(load)
            for waiting in load.waiting:
                if not waiting.done():
                    waiting.set_exception(error)
        else:
            self._loaded(load, latest, keep=second is None or second.is_newest(latest, head))

    def _loaded(self, load: _Load, latest: Latest, *, keep: bool) -> None:
        """Give it to who waits, with what was committed meanwhile."""
        since = load.since
        for metric, sample in since.metrics.items():
            _add(latest, metric, sample)
        latest.offset = max(latest.offset, since.offset)
        self._over(load)
        if keep and not load.cancelled:
            self._keep(since.device, _Entry(latest, self._now() + self._ttl))
        elif (entry := self._entries.get(since.device)) is not None and entry.latest.offset < latest.offset:
            # Of a load that was asked for later and read earlier.
            del self._entries[since.device]
        # Who waits reads it in a later turn of the loop, when commits may have changed the entry.
        given = Latest(since.device, latest.offset, dict(latest.metrics))
        for waiting in load.waiting:
            if not waiting.done():
                waiting.set_result(given)

    def _over(self, load: _Load) -> None:
        if not load.cancelled:
            del self._loads[load.since.device]

    def _keep(self, device: str, entry: _Entry) -> None:
        self._entries.pop(device, None)
        if len(self._entries) >= self._capacity:
            make_room(self._entries)
            self.evictions += 1
        self._entries[device] = entry
