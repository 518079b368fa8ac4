"""The pool through pgbouncer in transaction mode, which lends a server's process for each transaction."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.errors import Overloaded, Timeout, Unavailable
from storage.postgres.pool import Pool
from tests.running import PATIENCE
from tests.servers.pgbouncer import Pgbouncer, pgbouncer
from tests.servers.postgres import PostgresServer, postgres
from tests.storage.postgres.watching import load, until, until_down
from tests.watching import watch_lag

pytestmark = pytest.mark.system

NAME = "tidegate-test"


@pytest.fixture
async def pool(pgbouncer_url: str) -> AsyncIterator[Pool]:
    opened = await Pool.open(pgbouncer_url, 3, name=NAME, statement_timeout=1.0, deadline=2.0)
    yield opened
    await opened.close()


async def test_statements_have_their_limits(pool: Pool) -> None:
    assert await pool.fetch("SHOW statement_timeout") == [("1s",)]
    assert await pool.fetch("SHOW lock_timeout") == [("500ms",)]
    started = time.monotonic()
    # The server's own words: the pool's deadline of 2 s has others.
    with pytest.raises(Timeout, match="57014"):
        await pool.fetch("SELECT pg_sleep(30)", deadline=PATIENCE)
    assert time.monotonic() - started > 0.9


async def test_nothing_is_left_in_the_processes_that_are_lent(
    pgbouncer_server: Pgbouncer, pool: Pool, pgbouncer_url: str
) -> None:
    await asyncio.gather(*(pool.fetch("SELECT pg_sleep(0.05)") for _ in range(3)))
    other = await Pool.open(pgbouncer_url + "?application_name=other", 1)
    (connection, *_) = other._sessions
    async with connection.cursor(timeout=5) as cursor:
        for _ in range(10):
            await cursor.execute(
                "SELECT name FROM pg_settings WHERE source = 'session' AND name LIKE '%timeout%'"
            )
            assert await cursor.fetchall() == []
    await other.close()


async def test_several_statements_are_one_transaction(pool: Pool) -> None:
    await pool.fetch("CREATE TABLE t (a int)")
    with pytest.raises(Timeout):
        await pool.fetch("INSERT INTO t VALUES (1); SELECT pg_sleep(30)")
    assert await pool.fetch("INSERT INTO t VALUES (%s); SELECT count(*) FROM t", (2,)) == [(1,)]


async def test_a_given_up_statement_is_cancelled_in_the_server(
    postgres_server: PostgresServer, pgbouncer_url: str
) -> None:
    pool = await Pool.open(pgbouncer_url, 1, name=NAME, statement_timeout=30)
    with pytest.raises(Timeout):
        await pool.fetch("SELECT pg_sleep(30), 'given up'", deadline=0.2)

    async def none() -> bool:
        rows = await postgres_server.query(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%%given up%%'"
            " AND pid <> pg_backend_pid()"
        )
        return rows == [(0,)]

    assert await until(none) < 10
    await pool.close()


@pytest.mark.parametrize(
    "commands", [("RECONNECT",), ("KILL {0}", "RESUME {0}"), ("PAUSE {0}", "RESUME {0}")]
)
async def test_what_is_done_in_its_console_is_outlived(
    pgbouncer_server: Pgbouncer, pool: Pool, pgbouncer_url: str, commands: tuple[str, ...]
) -> None:
    name = pgbouncer_url.rpartition("/")[2]
    async with load(pool, 10) as callers:
        await asyncio.sleep(0.1)
        for command in commands:
            await pgbouncer_server.admin(command.format(name))
            await asyncio.sleep(0.2)
        done = time.monotonic()

        async def good() -> bool:
            return callers.good_since(done) is not None

        await until(good)
    assert callers.errors() <= {None, Unavailable, Timeout, Overloaded}


@pytest.mark.parametrize("fault", ["frozen", "restarted"])
async def test_a_fault_of_it_is_told_in_time_and_outlived(
    postgres_server: PostgresServer, tmp_path: Path, fault: str
) -> None:
    async with pgbouncer(postgres_server, tmp_path) as bouncer:
        pool = await Pool.open(bouncer.database_url("postgres"), 3, deadline=1)
        async with load(pool, 10) as callers, watch_lag() as lag:
            await asyncio.sleep(0.1)
            if fault == "frozen":
                bouncer.freeze()
                await asyncio.sleep(2.5)
                bouncer.thaw()
            else:
                await bouncer.stop()
                await asyncio.sleep(1)
                await bouncer.start()
            back = time.monotonic()

            async def good() -> bool:
                return callers.good_since(back) is not None

            await until(good)
        assert callers.errors() <= {None, Unavailable, Timeout, Overloaded}
        assert callers.slowest < 2.5
        assert lag.p99 < 0.05
        await pool.close()


async def test_statements_given_up_while_the_server_is_frozen_do_not_cost_its_life(tmp_path: Path) -> None:
    """1.18.0 dies if somebody who asked it to cancel does not wait for the server (pgbouncer #801)."""
    size = 10
    async with postgres(tmp_path) as server, pgbouncer(server, tmp_path) as bouncer:
        pool = await Pool.open(bouncer.database_url("postgres"), size, deadline=PATIENCE)
        # It has a process of the server for each of them now.
        await asyncio.gather(*(pool.fetch("SELECT pg_sleep(0.5)") for _ in range(size)))
        server.freeze()
        ends = await asyncio.gather(
            *(pool.fetch("SELECT 1", deadline=0.2) for _ in range(size)), return_exceptions=True
        )
        assert {type(end) for end in ends} == {Timeout}

        await until_down(pool)
        server.thaw()

        async def good() -> bool:
            try:
                return await pool.fetch("SELECT 1", deadline=1) == [(1,)] and pool.size == size
            except (Unavailable, Timeout):
                assert bouncer.pids(), bouncer.program.log.read_text()[-2000:]
                return False

        await until(good)
        await pool.close()


async def test_where_it_swallows_parameters_the_limits_hold_as_well(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    async with pgbouncer(postgres_server, tmp_path, ignore_startup_parameters="options") as bouncer:
        url = bouncer.database_url("postgres") + "?options=-c%20statement_timeout%3D77"
        pool = await Pool.open(url, 1, statement_timeout=1)
        assert await pool.fetch("SHOW statement_timeout") == [("1s",)]
        await pool.close()
