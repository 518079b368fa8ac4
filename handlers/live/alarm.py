"""One timer for all that the hub must be woken for."""

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls `ring` at the earliest of the times that were set since it rang last."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ring: Callable[[], None] = _nothing
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at: float) -> None:
        """Ring at this loop time, or earlier if that was asked for."""
        if self._timer is None or at < self._timer.when():
            self.close()
            self._timer = self._loop.call_at(at, self._run)

    def close(self) -> None:
        """Do not ring any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        self._timer = None
        self.ring()


def _nothing() -> None:
    """Nobody wants to be woken yet."""
