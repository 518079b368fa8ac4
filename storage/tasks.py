"""Tasks that run until their owner ends them."""

import asyncio
from typing import Any

# Seconds after which a task that goes on is cancelled once more.
AGAIN = 2.0


async def end(*owned: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end; what they ended with is for who watches them."""
    left = set(owned)
    while left:
        # What a task waits for may lose a cancellation (asyncio.wait_for before Python 3.12, bpo-37658).
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN)
