"""aiopg 1.4.0 has its defects, and the pool does not: each scenario is played with both.

When one of the tests of aiopg itself fails, it may have been repaired there: then less is needed here.
"""

import asyncio
import re
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import aiopg
import pytest

from storage.errors import Timeout, Unavailable
from storage.postgres.pool import Pool
from tests.running import PATIENCE, ROOT
from tests.servers.postgres import PostgresServer, postgres
from tests.storage.postgres.watching import give_up, none_runs, sessions, until, until_down

NAME = "tidegate-test"


@pytest.fixture
async def pool(postgres_url: str) -> AsyncIterator[Pool]:
    opened = await Pool.open(postgres_url, 1, name=NAME)
    yield opened
    await opened.close()


@pytest.fixture
async def plain(postgres_url: str) -> AsyncIterator[aiopg.Pool]:
    options = f"{postgres_url}?application_name={NAME}"
    opened = await aiopg.create_pool(options, minsize=1, maxsize=1, timeout=2, enable_hstore=False)
    yield opened
    opened.close()
    await opened.wait_closed()


# In a process of its own: it leaves uvloop's list of sockets in disorder.
RECONNECTING = """
import asyncio, os, sys, aiopg, uvloop
async def main():
    pool = await aiopg.create_pool(sys.argv[1], minsize=1, maxsize=1, timeout=2, enable_hstore=False)
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for _ in range(6):
        try:
            async with pool.acquire() as connection, connection.cursor() as cursor:
                await cursor.execute("SELECT 1")
        except Exception as error:
            print(type(error).__name__, flush=True)
    os._exit(0)
uvloop.run(main())
"""


async def ask(pool: aiopg.Pool, sql: str, seconds: float | None = None) -> object:
    async with pool.acquire() as connection, connection.cursor(timeout=seconds) as cursor:
        await cursor.execute(sql)
        return await cursor.fetchall()


async def test_aiopg_wakes_no_waiter_when_a_broken_connection_is_released(plain: aiopg.Pool) -> None:
    broken = asyncio.create_task(ask(plain, "SELECT pg_sleep(30)", 0.2))
    while plain.freesize:
        await asyncio.sleep(0)
    started = time.monotonic()
    with pytest.raises(asyncio.TimeoutError):
        await ask(plain, "SELECT 1")
    assert time.monotonic() - started > 1.5, "it waited in vain for all of the pool's timeout"
    with pytest.raises(asyncio.TimeoutError):
        await broken


async def test_the_pool_wakes_a_waiter_when_a_broken_session_is_released(pool: Pool) -> None:
    broken = asyncio.create_task(pool.fetch("SELECT pg_sleep(30)", deadline=0.2))
    await asyncio.sleep(0)
    assert pool.free == 0
    assert await pool.fetch("SELECT 1", deadline=PATIENCE) == [(1,)]
    with pytest.raises(Timeout):
        await broken


async def test_aiopg_takes_statement_timeout_for_a_cancelled_caller(plain: aiopg.Pool) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, __: None)
    with pytest.raises(asyncio.CancelledError):
        await ask(plain, "SET statement_timeout = 100; SELECT pg_sleep(30)")


async def test_the_pool_takes_statement_timeout_for_a_timeout(pool: Pool) -> None:
    with pytest.raises(Timeout):
        await pool.fetch("SET LOCAL statement_timeout = 100; SELECT pg_sleep(30)")


async def test_aiopg_lets_a_given_up_statement_run_on(
    postgres_server: PostgresServer, plain: aiopg.Pool
) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await ask(plain, "SELECT pg_sleep(30)", 0.1)
    await asyncio.sleep(0.5)
    assert not await none_runs(postgres_server, NAME)


async def test_the_pool_cancels_a_given_up_statement(
    postgres_server: PostgresServer, postgres_url: str, pool: Pool
) -> None:
    await give_up(postgres_server, postgres_url, pool, NAME)


async def test_on_uvloop_aiopg_raises_runtime_error_while_the_server_is_away(tmp_path: Path) -> None:
    async with postgres(tmp_path) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", RECONNECTING, server.url, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
        assert process.stdin is not None
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await process.stdout.readline() == b"connected\n"
            await server.stop("immediate")
            process.stdin.close()
            seen = (await process.stdout.read()).decode().split()
            await process.wait()
    assert set(seen) == {"OperationalError", "RuntimeError"}


async def test_the_pool_says_unavailable_while_the_server_is_away(tmp_path: Path) -> None:
    async with postgres(tmp_path) as server:
        pool = await Pool.open(server.url, 1, name=NAME)
        await server.stop("immediate")

        await until_down(pool)
        for _ in range(20):
            with pytest.raises(Unavailable):
                await pool.fetch("SELECT 1")
            await asyncio.sleep(0.05)
        await server.start()

        async def back() -> bool:
            try:
                return await pool.fetch("SELECT 1") == [(1,)]
            except Unavailable:
                return False

        await until(back)
        await pool.close()


async def test_aiopg_notices_a_lost_idle_connection_only_when_it_is_used(
    postgres_server: PostgresServer, plain: aiopg.Pool
) -> None:
    ((number, _, _),) = await sessions(postgres_server, NAME)
    await postgres_server.query("SELECT pg_terminate_backend(%s)", (number,))

    async def lost() -> bool:
        return await sessions(postgres_server, NAME) == []

    await until(lost)
    assert plain.freesize == 1, "it is still given to the next who asks, or made then"


async def test_the_pool_replaces_a_lost_idle_session(postgres_server: PostgresServer, pool: Pool) -> None:
    ((number, _, _),) = await sessions(postgres_server, NAME)
    await postgres_server.query("SELECT pg_terminate_backend(%s)", (number,))

    async def replaced() -> bool:
        return pool.free == 1 and number not in [pid for pid, _, _ in await sessions(postgres_server, NAME)]

    await until(replaced)


async def test_aiopg_waits_a_minute_by_default_and_asks_for_hstore(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    async with aiopg.create_pool(postgres_url, minsize=1) as plain:
        assert plain.timeout == 60
    async with aiopg.connect(f"{postgres_url}?application_name={NAME}") as connection:
        assert "hstore" in (await sessions(postgres_server, NAME))[0][2]
        assert not connection.closed


async def test_the_pool_asks_one_thing_when_it_connects(postgres_server: PostgresServer, pool: Pool) -> None:
    assert "set_config" in (await sessions(postgres_server, NAME))[0][2]
    assert pool._deadline == 2


async def test_the_private_parts_of_aiopg_are_as_we_know_them(postgres_url: str, pool: Pool) -> None:
    async with aiopg.connect(postgres_url) as connection:
        theirs, (ours,) = vars(connection), pool._sessions
        assert theirs.keys() - {"_source_traceback"} <= vars(ours).keys()
        # It is made for each statement.
        before, made, after = connection._waiter, connection._create_waiter("test"), connection._waiter
        assert before is None
        assert made is after
        with pytest.raises(RuntimeError):
            connection._create_waiter("test")
        made.cancel()
        connection._waiter = None
    assert connection.closed
    ours.raw.close()
    with pytest.raises(Unavailable):
        await ours.fetch("SELECT 1", (), 1)


async def test_what_aiopg_offers_besides_works_on_our_connection(pool: Pool) -> None:
    (connection,) = pool._sessions
    async with connection.cursor(timeout=5) as cursor:
        await cursor.execute("SELECT generate_series(1, 3)")
        assert [row async for row in cursor] == [(1,), (2,), (3,)]
        with pytest.raises(Timeout):
            await cursor.execute("SELECT pg_sleep(30)", timeout=0.1)
    assert not connection.usable


def test_nothing_of_psycopg2_extras_is_used() -> None:
    """Its execute_values corrupts an asynchronous connection instead of failing."""
    texts = {path: path.read_text() for path in (ROOT / "storage").rglob("*.py")}
    assert texts
    assert [path for path, text in texts.items() if re.search(r"psycopg2\.extras|import extras", text)] == []
