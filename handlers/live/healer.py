"""Keeps the hub at the head of the log: what it was not told, it is given from the database."""

import asyncio
import logging

from handlers.hub import Hub
from storage.errors import StorageError
from storage.log import Log
from storage.models import Batch
from storage.patterns import Selection, parse_pattern

_log = logging.getLogger("tidegate.healer")

# Seconds between two looks at the head of the log.
POLL = 0.25
# Seconds that a batch which came too early has for the one before it.
EARLY = 0.05
PAGE = 1_000


class Healer:
    """Compares the hub with the log. `healed`: readings that the hub got this way."""

    def __init__(self, hub: Hub, log: Log) -> None:
        self._hub = hub
        self._source = log
        everything = (parse_pattern(">"),)
        self._selection = Selection(everything, everything)
        self.healed = 0

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        seen = -1
        while True:
            await asyncio.sleep(EARLY if self._hub.missing > self._hub.head else POLL)
            try:
                head, state = self._hub.head, self._source.state()
                # The log is a moment ahead of what was published; who stands still missed something.
                if head == seen and (state.head > head or self._hub.missing > head):
                    await self._heal(max(state.head, self._hub.missing))
                seen = self._hub.head
            except StorageError as error:
                _log.warning("the log cannot be read", extra={"error": str(error)})
            except Exception:
                _log.exception("the healer broke")

    async def _heal(self, until: int) -> None:
        _log.warning("a gap before the hub", extra={"head": self._hub.head, "until": until})
        while self._hub.head < until:
            after = self._hub.head
            page = await self._source.read_from(after, until, PAGE, self._selection)
            if page.scanned <= after:
                return
            if after < page.floor:
                # Retention was faster: nobody can be told any more what was there.
                self._hub.break_off()
            self.healed += len(page.readings)
            self._hub.publish(Batch(after + 1, page.scanned, page.readings))
