"""What a shared log needs beside reading and writing: old rows removed, partitions made, BRIN told."""

from storage.models import IDEMPOTENCY_SECONDS
from storage.postgres.partitions import Partitions
from storage.postgres.pool import Pool

_SWEEP_DOOMED = "SELECT tidegate.sweep_doomed(%s)"
_EXPIRE = "SELECT removed, continue_after FROM tidegate.expire(%s, %s, %s, %s)"
_FORGET_EXPIRED = "SELECT tidegate.forget_expired(%s, %s, %s)"
_SUMMARIZE = "SELECT tidegate.summarize()"

# What one step of the clean-up looks at and removes: a commit never waits longer than for these.
SWEEP_SERIES = 1_000
SWEEP_ROWS = 5_000
# New rows after which BRIN is told of them; until then whoever reads the newest reads all of those.
SUMMARIZE_ROWS = 20_000
# Summaries of a large table take their time, and nobody waits for them.
_SUMMARIZE_SECONDS = 60.0


class Upkeep:
    """The clean-up, in small transactions between the commits, so that no writer waits long."""

    def __init__(self, pool: Pool, partitions: Partitions) -> None:
        self._pool = pool
        self._partitions = partitions
        # The last series that the clean-up by age has looked at, and the head that BRIN knows of.
        self._swept = 0
        self._summarized = 0

    async def sweep(self, oldest: int, now: int) -> None:
        """Remove readings of deleted devices, those with a ts before `oldest` (0: none), and old keys."""
        while (await self._pool.fetch(_SWEEP_DOOMED, (SWEEP_ROWS,)))[0][0]:
            pass
        if oldest > 0:
            while await self._partitions.drop(oldest):
                pass
            while await self._expire(oldest):
                pass
        before = now - IDEMPOTENCY_SECONDS * 1_000_000
        arguments = before, now // 1_000_000, SWEEP_ROWS
        while (await self._pool.fetch(_FORGET_EXPIRED, arguments))[0][0]:
            pass
        await self._partitions.make()

    async def _expire(self, oldest: int) -> bool:
        arguments = oldest, self._swept, SWEEP_SERIES, SWEEP_ROWS
        removed, self._swept = (await self._pool.fetch(_EXPIRE, arguments))[0]
        return self._swept > 0 or removed == SWEEP_ROWS

    def due(self, head: int) -> bool:
        """Whether so much was written since that BRIN should be told."""
        return head - self._summarized >= SUMMARIZE_ROWS

    async def summarize(self, head: int) -> None:
        """Tell BRIN of all pages; `head`: of the log by now."""
        self._summarized = head
        await self._pool.fetch(_SUMMARIZE, (), _SUMMARIZE_SECONDS)
