"""The newest values of devices, kept in this process and kept current by commits.

Bounded (least recently used goes first), with a time to live, and with one load per device at a
time however many ask.
"""

import asyncio
from collections.abc import Awaitable, Callable

from storage.models import Batch, Latest, Sample


class _Entry:
    """The newest readings of one device. `stale_at`: loop time from which it must be loaded again."""

    __slots__ = ("metrics", "offset", "stale_at")

    def __init__(self, metrics: dict[str, Sample], offset: int, stale_at: float) -> None:
        self.metrics = metrics
        self.offset = offset
        self.stale_at = stale_at

    def add(self, metric: str, sample: Sample) -> None:
        if sample.offset > self.offset:
            self.offset = sample.offset
        known = self.metrics.get(metric)
        if known is None or sample.ts > known.ts:
            self.metrics[metric] = sample


class _Load:
    """A load under way, and what was committed to its device meanwhile."""

    __slots__ = ("cancelled", "result", "since")

    def __init__(self, result: asyncio.Future[Latest]) -> None:
        self.result = result
        self.since = _Entry({}, 0, 0.0)
        # The device was deleted: what comes back is not to be kept.
        self.cancelled = False


class LatestCache:
    """At most `capacity` devices for at most `ttl` seconds each; `load` reads one from the database.

    `hits`, `misses`, `evictions` count look-ups and what had to make room.
    """

    def __init__(self, load: Callable[[str], Awaitable[Latest]], capacity: int, ttl: float) -> None:
        self._load = load
        self._capacity = capacity
        self._ttl = ttl
        self._loop = asyncio.get_running_loop()
        # In order of use, the least recently used first.
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
        entry = self._entries.pop(device, None)
        if entry is None or entry.stale_at <= self._loop.time():
            self.misses += 1
            return None
        self._entries[device] = entry
        self.hits += 1
        return Latest(device, entry.offset, entry.metrics)

    async def fetch(self, device: str) -> Latest:
        """Load the device, together with all others who ask for it now; errors as `load` has them."""
        load = self._loads.get(device)
        if load is None:
            load = self._loads[device] = _Load(self._loop.create_future())
            task = self._loop.create_task(self._run(device, load))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        # Who gives up must not take the others' answer with him.
        return await asyncio.shield(load.result)

    def apply(self, batch: Batch) -> None:
        """Take in what was committed."""
        entries, loads = self._entries, self._loads
        for reading in batch.readings:
            device = reading.device
            entry = entries.get(device)
            if entry is not None:
                entry.add(reading.metric, Sample(reading.ts, reading.value, reading.offset))
            if loads and device in loads:
                loads[device].since.add(reading.metric, Sample(reading.ts, reading.value, reading.offset))

    def forget(self, device: str) -> None:
        """The device was deleted."""
        self._entries.pop(device, None)
        load = self._loads.pop(device, None)
        if load is not None:
            load.cancelled = True

    def clear(self) -> None:
        """Forget all devices: readings were removed by age."""
        for device in [*self._entries, *self._loads]:
            self.forget(device)

    async def close(self) -> None:
        """Wait for the loads that are under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, device: str, load: _Load) -> None:
        try:
            latest = await self._load(device)
        except Exception as error:
            load.result.set_exception(error)
            # Nobody may be waiting any more; that is no reason to complain about it.
            load.result.exception()
        else:
            entry = _Entry(latest.metrics, latest.offset, self._loop.time() + self._ttl)
            for metric, sample in load.since.metrics.items():
                entry.add(metric, sample)
            entry.offset = max(entry.offset, load.since.offset)
            if not load.cancelled:
                self._keep(device, entry)
            # Who waits reads it in a later turn of the loop, when commits may have changed the entry.
            load.result.set_result(Latest(device, entry.offset, dict(entry.metrics)))
        finally:
            if not load.cancelled:
                del self._loads[device]

    def _keep(self, device: str, entry: _Entry) -> None:
        self._entries.pop(device, None)
        if len(self._entries) >= self._capacity:
            del self._entries[next(iter(self._entries))]
            self.evictions += 1
        self._entries[device] = entry
