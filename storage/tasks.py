"""Tasks that run until their owner ends them."""

import asyncio
from typing import Any

# Seconds after which a task that goes on is cancelled once more.
AGAIN = 2.0


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end; what it ended with is for who watches it."""
    task.cancel()
    # What it waits for may lose a cancellation (asyncio.wait_for before Python 3.12, bpo-37658).
    while not (await asyncio.wait((task,), timeout=AGAIN))[0]:
        task.cancel()
