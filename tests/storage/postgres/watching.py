"""What tests of the pool look at: the server's sessions and words, statements under faults."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from storage.errors import StorageError
from storage.postgres.pool import Pool
from tests.running import PATIENCE
from tests.servers.postgres import PostgresServer
from tests.watching import own_time


async def until(condition: Callable[[], Awaitable[bool]], within: float = PATIENCE) -> float:
    """Wait for `condition`; the seconds it took."""
    started = time.monotonic()
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.01)
    return time.monotonic() - started


async def until_down(pool: Pool) -> None:
    """Wait until the pool knows that there is no session to be had."""

    async def down() -> bool:
        return pool.down is not None

    await until(down)


async def sessions(server: PostgresServer, name: str) -> list[tuple[int, str, str]]:
    """Pid, state and statement of the server's sessions called `name`."""
    rows = await server.query(
        "SELECT pid, state, query FROM pg_stat_activity WHERE application_name = %s", (name,)
    )
    return [(pid, state, query) for pid, state, query in rows]


async def none_runs(server: PostgresServer, name: str) -> bool:
    """Whether no session called `name` is at work."""
    return all(state != "active" for _, state, _ in await sessions(server, name))


def ended_by(server: PostgresServer, url: str) -> Counter[str]:
    """Why statements and sessions in the database of this URL have ended early, in the server's words."""
    database = re.escape(url.rpartition("/")[2])
    return Counter(re.findall(rf"@{database} (?:ERROR|FATAL):  (.*)", server.log.read_text()))


async def give_up(server: PostgresServer, url: str, pool: Pool, name: str) -> None:
    """Go away while the server is at a statement: it must be cancelled there."""
    before = ended_by(server, url)
    task = asyncio.create_task(pool.fetch("SELECT pg_sleep(30)", deadline=PATIENCE))

    async def runs() -> bool:
        return not await none_runs(server, name)

    await until(runs)
    with pytest.MonkeyPatch.context() as patch:
        # A starved server may need longer to take note.
        patch.setattr("storage.postgres.pool._CANCEL", PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: none_runs(server, name))
    ended = ended_by(server, url) - before
    # Its session may end before it has said so to nobody.
    assert ended["canceling statement due to user request"] == 1, ended


class Load:
    """Callers that ask one after the other, and what became of it: started, ended, seconds, the error's type.

    The seconds are those that count: a caller who is starved was not kept waiting.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float, type[StorageError] | None]] = []

    def errors(self) -> set[type[StorageError] | None]:
        """The kinds of ends there were; None is a good one."""
        return {error for _, _, _, error in self.seen}

    @property
    def slowest(self) -> float:
        """The longest that anybody waited."""
        return max(seconds for _, _, seconds, _ in self.seen)

    def good_since(self, when: float) -> float | None:
        """Seconds from `when` (monotonic) to the end of the first good one that started after it."""
        ends = [ended - when for started, ended, _, error in self.seen if error is None and started >= when]
        return min(ends, default=None)


@asynccontextmanager
async def load(pool: Pool, callers: int, sql: str = "SELECT 1") -> AsyncIterator[Load]:
    """Callers on `pool` while the block runs. An error that is no StorageError ends the test."""
    found = Load()

    async def call() -> None:
        while True:
            started, own = time.monotonic(), own_time()
            error: type[StorageError] | None = None
            try:
                await pool.fetch(sql)
            except StorageError as raised:
                error = type(raised)
            found.seen.append((started, time.monotonic(), own_time() - own, error))
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(call()) for _ in range(callers)]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        done, _ = await asyncio.wait(tasks)
        for task in done:
            if not task.cancelled():
                task.result()
