"""The pool while the server is frozen, dead, restarted or slow: told in time, the loop free, back at once."""

import asyncio
import functools
import random
import statistics
import time
from pathlib import Path

import pytest

from storage.errors import Overloaded, Timeout, Unavailable
from storage.postgres.pool import Pool
from tests.running import PATIENCE, open_files
from tests.servers.postgres import PostgresServer, postgres
from tests.storage.postgres.watching import load, until, until_down
from tests.watching import in_time, own_time, watch_lag

NAME = "tidegate-test"
# What is promised, in seconds; a busy machine adds to it.
TOLD = 2.0
BACK = 2.0
LAG = 0.05
SLACK = 0.5
DEADLINE = 1.0
# A statement that runs until somebody else has said that it is enough.
UNTIL_ENOUGH = """DO $$ BEGIN
    WHILE NOT EXISTS (SELECT FROM enough) LOOP PERFORM pg_sleep(0.01); END LOOP;
END $$"""


async def open_pool(server: PostgresServer, size: int = 3) -> Pool:
    return await Pool.open(server.url, size, name=NAME, deadline=DEADLINE, statement_timeout=2)


async def play(server: PostgresServer, pool: Pool, fault: str, seconds: float) -> float:
    """A fault, `seconds` long, under load: everybody is told in time. How soon after it all is good."""
    async with load(pool, 20) as callers, watch_lag() as lag:
        await asyncio.sleep(0.2)
        if fault == "frozen":
            server.freeze()
        elif fault == "killed":
            await server.kill()
        elif fault == "immediate":
            await server.stop("immediate")
        elif fault == "fast":
            await server.stop("fast")
        await asyncio.sleep(seconds)
        if fault == "frozen":
            server.thaw()
        else:
            await server.start()
        returned = time.monotonic()

        async def all_good() -> bool:
            return callers.good_since(returned) is not None and pool.size == 3

        await until(all_good)
        await asyncio.sleep(0.2)
    assert callers.errors() <= {None, Unavailable, Timeout, Overloaded}
    assert callers.slowest < TOLD + SLACK
    good = callers.good_since(returned)
    assert good is not None
    assert lag.p99 < LAG
    assert pool.down is None
    return good


@pytest.mark.parametrize("fault", ["frozen", "killed", "fast"])
async def test_everybody_is_told_in_time_and_it_is_back_at_once(tmp_path: Path, fault: str) -> None:
    async with postgres(tmp_path) as server:
        pool = await open_pool(server)
        await in_time(functools.partial(play, server, pool, fault, 2.5), BACK + SLACK)
        await pool.close()


async def test_faults_one_after_the_other(tmp_path: Path, long: bool) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with postgres(tmp_path) as server:
        pool = await open_pool(server)
        took = []
        for _ in range(20 if long else 3):
            fault = chance.choice(["frozen", "killed", "immediate", "fast"])
            seconds = chance.uniform(0, 2.5)
            print(fault, seconds)
            took.append(await play(server, pool, fault, seconds))
        # Whoever is starved only takes longer.
        assert statistics.median(took) < BACK + SLACK
        await pool.close()


async def test_while_it_is_known_to_be_away_nobody_waits(tmp_path: Path) -> None:
    async with postgres(tmp_path) as server:
        pool = await open_pool(server)
        await server.stop("immediate")
        await until_down(pool)
        for _ in range(100):
            # It is told without a turn of the loop.
            with pytest.raises(Unavailable):
                pool.fetch("SELECT 1").send(None)
        await pool.close()


async def test_a_pool_closes_in_time_before_a_frozen_server(tmp_path: Path) -> None:
    async with postgres(tmp_path) as server:
        pool = await open_pool(server)
        running = [asyncio.create_task(pool.fetch("SELECT pg_sleep(30)")) for _ in range(3)]
        await asyncio.sleep(0.1)
        server.freeze()
        started = own_time()
        async with watch_lag() as lag:
            await pool.close()
        assert own_time() - started < DEADLINE + 1.5 + SLACK
        assert lag.p99 < LAG
        for task in running:
            with pytest.raises(Timeout):
                await task


async def test_who_never_says_that_it_cancels_is_asked_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.pool._CANCEL", 0.05)
    monkeypatch.setattr("storage.postgres.pool._CANCEL_KEPT", 2.0)
    async with postgres(tmp_path) as server:
        files = open_files()
        pool = await open_pool(server)
        server.freeze()
        ends = await asyncio.gather(*(pool.fetch("SELECT 1") for _ in range(3)), return_exceptions=True)
        assert {type(end) for end in ends} == {Timeout}

        async def kept() -> bool:
            return len(pool._unanswered) == 3

        async def forgotten() -> bool:
            return not pool._unanswered

        async def closed() -> bool:
            return open_files() <= files

        await until(kept)
        await until(forgotten)
        server.thaw()
        await pool.close()
        # The attempt to connect that was under way may end a moment later.
        await until(closed)


async def test_nothing_that_was_given_up_is_done_after_the_server_goes_on(tmp_path: Path) -> None:
    """Who was told Timeout may find it done, but not later than the server needs to look."""
    async with postgres(tmp_path) as server:
        pool = await open_pool(server, 1)
        await pool.fetch("CREATE TABLE t (a int)")
        server.freeze()
        with pytest.raises(Timeout):
            await pool.fetch("SELECT pg_sleep(1.5); INSERT INTO t VALUES (1)")
        server.thaw()
        await asyncio.sleep(2.5)
        assert await server.query("SELECT count(*) FROM t") == [(0,)]
        await pool.close()


async def test_a_slow_server_is_slow_for_those_who_ask_it_only(tmp_path: Path) -> None:
    async with postgres(tmp_path) as server:
        pool = await Pool.open(server.url, 3, name=NAME, deadline=PATIENCE, statement_timeout=PATIENCE)
        await pool.fetch("CREATE TABLE enough (a int)")
        slow = [asyncio.create_task(pool.fetch(UNTIL_ENOUGH)) for _ in range(2)]
        await asyncio.sleep(0)
        assert pool.free == 1
        for _ in range(50):
            await pool.fetch("SELECT 1")
        assert not any(task.done() for task in slow)
        await pool.fetch("INSERT INTO enough VALUES (1)")
        await asyncio.gather(*slow)
        await pool.close()


async def test_a_full_server_is_unavailable_for_new_sessions_only(tmp_path: Path) -> None:
    conf = {"max_connections": "6", "superuser_reserved_connections": "0", "max_wal_senders": "0"}
    async with postgres(tmp_path, **conf) as server:
        pool = await open_pool(server, 6)

        async def taken() -> bool:
            return pool.size == 6

        await until(taken)
        with pytest.raises(Unavailable, match="too many clients"):
            await open_pool(server, 1)
        assert await pool.fetch("SELECT 1") == [(1,)]
        await pool.close()


async def test_a_pool_opens_with_one_session_and_gets_the_others_as_soon_as_they_can_be_had(
    tmp_path: Path,
) -> None:
    conf = {"max_connections": "4", "superuser_reserved_connections": "0", "max_wal_senders": "0"}
    async with postgres(tmp_path, **conf) as server:
        others = await Pool.open(server.url, 3)
        pool = await open_pool(server, 2)
        assert await pool.fetch("SELECT 1") == [(1,)]
        assert pool.size == 1
        await others.close()

        async def whole() -> bool:
            return pool.size == 2

        await until(whole)
        await pool.close()
