"""Keeps the hub at the head of the log: what it was not told, it is given from the database."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from handlers.hub import Hub
from storage import tasks
from storage.errors import StorageError
from storage.log import Log
from storage.models import Batch
from storage.patterns import Selection, parse_pattern

_log = logging.getLogger("tidegate.healer")

# Seconds between two looks at the head of the log: where nobody tells of other nodes' commits, and where
# somebody does.
ALONE = 0.25
TOLD = 1.0
# Seconds that a batch which came too early has for the one before it.
EARLY = 0.05
# Seconds that the database is left in peace after it has failed.
REST = 0.25
# Readings of a page: what one turn of the loop hands on.
PAGE = 500


class Healer:
    """Compares the hub with the log, and fills its gaps out of the log. `healed`: readings that the hub got
    this way; `skipped`: offsets that it passed over because nobody followed.

    `told`: whether other nodes' batches are expected to come without asking. `found`: called with the batches
    that were read, before the hub hands them on; `passed`: when the hub has passed over some.
    """

    def __init__(
        self,
        hub: Hub,
        log: Log,
        *,
        told: Callable[[], bool],
        found: Callable[[Batch], None],
        passed: Callable[[], None],
    ) -> None:
        self._hub = hub
        self._source = log
        self._told = told
        self._found = found
        self._passed = passed
        everything = (parse_pattern(">"),)
        self._selection = Selection(everything, everything)
        # One at a time reads for the hub.
        self._reading = asyncio.Lock()
        # Set when the hub has a gap that it had not, or may follow a log that is not there any more.
        self._woken = asyncio.Event()
        self._look_at = 0.0
        # The look that was asked for and has not begun.
        self._next: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing = False
        self.healed = 0
        self.skipped = 0
        hub.gap.opened = self._woken.set

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        hub = self._hub
        self._look_at = hub.now() + ALONE
        while True:
            self._woken.clear()
            due = self._look_at
            if hub.gap.until and not self._failing:
                due = min(due, hub.gap.since + EARLY)
            if (wait := due - hub.now()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._woken.wait()
                continue
            await self._guarded(self._look(fill=False) if hub.now() >= self._look_at else self._fill())

    async def look(self) -> None:
        """Compare the hub with the log now, and fill what it lacks. Unavailable, Timeout.

        One question to the database does for all who come before it is asked.
        """
        task = self._next
        if task is None:
            task = self._next = asyncio.get_running_loop().create_task(self._look(), name="look at the log")
            self._tasks.add(task)
            task.add_done_callback(self._looked)
        # Who gives up must not take the others' answer with him.
        await asyncio.shield(task)

    def suspect(self) -> None:
        """The log may be another one than the hub follows: look at once."""
        self._look_at = 0.0
        self._woken.set()

    async def close(self) -> None:
        """End what is under way."""
        await tasks.end(*self._tasks)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._next is task:
            self._next = None
        if not task.cancelled():
            # Nobody may be waiting any more; that is no reason to complain about it.
            task.exception()

    async def _guarded(self, work: Awaitable[None]) -> None:
        """Await what may fail: the database is asked again after a rest."""
        try:
            await work
        except StorageError as error:
            if not self._failing:
                _log.warning("the log cannot be read", extra={"error": str(error)})
            self._failing = True
        except Exception:
            _log.exception("the healer broke")
            self._failing = True
        else:
            if self._failing:
                _log.info("the log can be read again")
            self._failing = False
        if self._failing:
            self._look_at = self._hub.now() + REST

    async def _look(self, *, fill: bool = True) -> None:
        hub = self._hub
        async with self._reading:
            # Who asks from here on may know of something newer.
            self._next = None
            await self._source.refresh()
            self._look_at = hub.now() + (TOLD if self._told() else ALONE)
            state = self._source.state()
            hub.keep_to(state)
            hub.expect(state.head)
            if fill and hub.gap.until:
                await self._read()

    async def _fill(self) -> None:
        async with self._reading:
            if self._hub.gap.until:
                await self._read()

    async def _read(self) -> None:
        """Give the hub what lies in its gap, page by page; what is late may come in between."""
        hub, gap, epoch = self._hub, self._hub.gap, self._hub.epoch
        while gap.until:
            after = hub.head
            if not hub.filters:
                # Who comes later begins at the head, or reads the log.
                self.skipped += gap.until - after
                hub.skip(gap.until)
                self._passed()
                return
            page = await self._source.read_from(after, gap.until, PAGE, self._selection)
            if hub.epoch != epoch or page.epoch not in ("", epoch):
                self.suspect()
                break
            if page.scanned <= after:
                break
            if after < page.floor:
                # Retention was faster: nobody can be told any more what was there.
                hub.break_off()
            batch = Batch(after + 1, page.scanned, page.readings)
            self.healed += len(page.readings)
            self._found(batch)
            hub.publish(batch)
        # What is not there yet has the time of an early batch once more.
        gap.since = hub.now()
