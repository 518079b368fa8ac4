"""The pool: statements, errors, deadlines, cancelled callers, sessions that come and go."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator

import pytest

from storage.errors import Conflict, Full, Overloaded, Refused, StorageError, Timeout, Unavailable
from storage.postgres.pool import Pool
from tests.running import PATIENCE
from tests.servers.postgres import PostgresServer
from tests.servers.programs import free_port
from tests.storage.postgres.watching import ended_by, give_up, none_runs, sessions, until
from tests.watching import in_time, watch_lag

NAME = "tidegate-test"
STATEMENT_TIMEOUT = "canceling statement due to statement timeout"


@pytest.fixture
async def pool(postgres_url: str) -> AsyncIterator[Pool]:
    opened = await Pool.open(
        postgres_url, 2, name=NAME, statement_timeout=5.0, connect_timeout=PATIENCE, deadline=3.0
    )
    yield opened
    await opened.close()


async def pid(pool: Pool) -> int:
    number: int = (await pool.fetch("SELECT pg_backend_pid()"))[0][0]
    return number


async def test_the_rows_of_the_last_statement_are_given(pool: Pool) -> None:
    assert await pool.fetch("SELECT 1; SELECT %s::text, %s::int8", ("a%s'\\", 2**60)) == [("a%s'\\", 2**60)]
    assert await pool.fetch("CREATE TABLE t (a int)") == []
    assert await pool.fetch("SELECT '100%'") == [("100%",)]
    assert await pool.fetch("SELECT a FROM t") == []


async def test_several_statements_are_one_transaction(pool: Pool) -> None:
    await pool.fetch("CREATE TABLE t (a int)")
    with pytest.raises(Refused):
        await pool.fetch("INSERT INTO t VALUES (1); SELECT 1 / 0")
    assert await pool.fetch("SELECT count(*) FROM t") == [(0,)]


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("23505", Conflict),
        ("22003", Refused),
        ("23514", Refused),
        ("54000", Refused),
        ("53100", Full),
        ("53200", Unavailable),
        ("57014", Timeout),
        ("40P01", Unavailable),
        ("55P03", Unavailable),
        ("XX000", Unavailable),
        ("42P01", StorageError),
    ],
)
async def test_an_error_is_in_the_words_of_storage(pool: Pool, state: str, error: type[StorageError]) -> None:
    before = await pid(pool)
    with pytest.raises(StorageError) as raised:
        await pool.fetch(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$")
    assert type(raised.value) is error
    assert state in str(raised.value)
    assert await pid(pool) == before, "the session goes on"


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
async def test_a_text_that_cannot_be_held_is_refused(pool: Pool, text: str) -> None:
    with pytest.raises(Refused):
        await pool.fetch("SELECT %s", (text,))
    assert await pool.fetch("SELECT 1") == [(1,)]


async def test_the_session_gets_its_limits(pool: Pool) -> None:
    rows = await pool.fetch(
        "SELECT name, setting FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout', "
        "'idle_in_transaction_session_timeout', 'client_connection_check_interval', 'application_name')"
    )
    assert dict(rows) == {
        "statement_timeout": "5000",
        "lock_timeout": "2500",
        "idle_in_transaction_session_timeout": "5000",
        "client_connection_check_interval": "1000",
        "application_name": NAME,
    }
    (connection, *_) = pool._sessions
    with socket.socket(fileno=socket.dup(connection.raw.fileno())) as end:
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3000
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5


async def test_a_statement_that_the_server_ends_is_a_timeout(postgres_url: str) -> None:
    pool = await Pool.open(postgres_url, 1, statement_timeout=0.1, deadline=PATIENCE)
    before = await pid(pool)
    with pytest.raises(Timeout, match="57014"):
        await pool.fetch("SELECT pg_sleep(30)")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert await pid(pool) == before, "the session goes on"
    await pool.close()


async def test_after_its_deadline_a_statement_is_cancelled_in_the_server(
    postgres_server: PostgresServer, postgres_url: str, pool: Pool
) -> None:
    with pytest.raises(Timeout, match="within its deadline"):
        await pool.fetch("SELECT pg_sleep(30)", deadline=0.2)
    await until(lambda: none_runs(postgres_server, NAME))
    assert STATEMENT_TIMEOUT not in ended_by(postgres_server, postgres_url)
    await until(lambda: full(pool, 2))


async def full(pool: Pool, size: int) -> bool:
    return pool.size == pool.free == size


async def test_the_deadline_of_an_earlier_statement_does_not_end_a_later_one(pool: Pool) -> None:
    async with asyncio.timeout(PATIENCE):
        await pool.fetch("SELECT 1", deadline=2)
        await pool.fetch("SELECT pg_sleep(2.1)", deadline=PATIENCE)
        await pool.fetch("SELECT 1", deadline=30)
        with pytest.raises(Timeout):
            await pool.fetch("SELECT pg_sleep(30)", deadline=0.1)


async def test_a_cancelled_caller_cancels_in_the_server(
    postgres_server: PostgresServer, postgres_url: str, pool: Pool
) -> None:
    await give_up(postgres_server, postgres_url, pool, NAME)
    assert await pool.fetch("SELECT 1") == [(1,)]


async def test_a_caller_cancelled_when_the_answer_is_there_costs_no_session(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {connection.raw.info.backend_pid for connection in pool._sessions}
    task = asyncio.create_task(pool.fetch("SELECT 1"))
    await asyncio.sleep(0)
    (busy,) = pool._sessions.difference(pool._free)
    answered = busy._answered

    def answered_and_cancelled(waiter: asyncio.Future[None]) -> None:
        answered(waiter)
        task.cancel()

    monkeypatch.setattr(busy, "_answered", answered_and_cancelled)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await full(pool, 2)
    assert {connection.raw.info.backend_pid for connection in pool._sessions} == before


async def test_a_storm_of_cancelled_callers_piles_up_no_sessions(
    postgres_server: PostgresServer, postgres_url: str, pool: Pool
) -> None:
    tasks = [asyncio.create_task(pool.fetch("SELECT pg_sleep(30)", deadline=20)) for _ in range(500)]
    most = 0
    while tasks:
        await asyncio.sleep(0.01)
        for task in tasks[:10]:
            task.cancel()
        await asyncio.wait(tasks[:10])
        del tasks[:10]
        if len(tasks) % 50 == 0:
            most = max(most, len(await sessions(postgres_server, NAME)))
    # A process of the server outlives its session by a moment.
    assert most <= 4

    async def settled() -> bool:
        return len(await sessions(postgres_server, NAME)) == 2 and await none_runs(postgres_server, NAME)

    await until(settled)
    assert STATEMENT_TIMEOUT not in ended_by(postgres_server, postgres_url)
    assert await pool.fetch("SELECT 1") == [(1,)]


async def test_a_busy_pool_keeps_nobody_longer_than_the_deadline(pool: Pool) -> None:
    busy = [asyncio.create_task(pool.fetch("SELECT pg_sleep(30)", deadline=PATIENCE)) for _ in range(2)]
    await asyncio.sleep(0)
    assert (pool.size, pool.free) == (2, 0)
    with pytest.raises(Overloaded):
        await pool.fetch("SELECT 1", deadline=0.1)
    assert pool.waiting == 0
    for task in busy:
        task.cancel()
    assert await pool.fetch("SELECT 1", deadline=PATIENCE) == [(1,)]


async def test_who_waits_is_served_when_a_broken_session_comes_back(postgres_url: str) -> None:
    pool = await Pool.open(postgres_url, 1, name=NAME)
    broken = asyncio.create_task(pool.fetch("SELECT pg_sleep(30)", deadline=0.2))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(pool.fetch("SELECT 1", deadline=PATIENCE))
    with pytest.raises(Timeout):
        await broken
    assert await waiting == [(1,)]
    await pool.close()


async def test_a_cancelled_waiter_gives_back_what_it_was_given(pool: Pool) -> None:
    given, other = pool._free.pop(), pool._free.pop()
    waiting = asyncio.create_task(pool.fetch("SELECT 1"))
    await asyncio.sleep(0)
    pool._release(given)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    pool._release(other)
    assert await full(pool, 2)


async def test_thousands_who_wait_may_go_in_any_order(postgres_url: str) -> None:
    long = 2 * PATIENCE
    pool = await Pool.open(postgres_url, 1, statement_timeout=long, deadline=long)
    busy = asyncio.create_task(pool.fetch("SELECT pg_sleep(%s)", (long,)))
    await asyncio.sleep(0)
    first = asyncio.create_task(pool.fetch("SELECT 1"))

    async def play() -> float:
        waiting = [asyncio.create_task(pool.fetch("SELECT 1")) for _ in range(9_000)]
        await asyncio.sleep(0)
        assert pool.waiting == 9_001
        started = time.process_time()
        for task in reversed(waiting):
            task.cancel()
        await asyncio.wait(waiting)
        assert pool.waiting == 1
        return time.process_time() - started

    # A list that is searched for each of them needs 0.7 s.
    await in_time(play, 0.4)
    busy.cancel()
    assert await first == [(1,)]
    await pool.close()
    assert busy.cancelled()


async def test_waiters_are_served_in_order(postgres_url: str) -> None:
    pool = await Pool.open(postgres_url, 1)
    order: list[int] = []

    async def ask(number: int) -> None:
        await pool.fetch("SELECT 1")
        order.append(number)

    await asyncio.gather(*(ask(number) for number in range(20)))
    assert order == list(range(20))
    await pool.close()


async def test_megabytes_go_both_ways_and_others_go_on(pool: Pool) -> None:
    text = "x" * 8_000_000
    async with watch_lag() as lag:
        rows, other = await asyncio.gather(
            pool.fetch("SELECT %s::text", (text,), deadline=20), pool.fetch("SELECT 1", deadline=20)
        )
    assert rows == [(text,)]
    assert other == [(1,)]
    assert lag.samples


async def test_a_transaction_left_open_costs_the_session(pool: Pool) -> None:
    with pytest.raises(StorageError, match="left a transaction open"):
        await pool.fetch("BEGIN; SELECT 1")
    await until(lambda: full(pool, 2))


async def test_a_session_lost_while_idle_is_made_anew_before_anybody_asks(
    postgres_server: PostgresServer, pool: Pool
) -> None:
    before = {pid for pid, _, _ in await sessions(postgres_server, NAME)}
    for number in before:
        await postgres_server.query("SELECT pg_terminate_backend(%s)", (number,))

    async def replaced() -> bool:
        now = {connection.raw.info.backend_pid for connection in pool._sessions}
        return len(now) == 2 and not now & before

    await until(replaced)
    assert await pool.fetch("SELECT 1") == [(1,)]


async def test_a_session_lost_at_work_leaves_the_outcome_open(
    postgres_server: PostgresServer, pool: Pool
) -> None:
    task = asyncio.create_task(pool.fetch("SELECT pg_sleep(30)", deadline=PATIENCE))

    async def terminated() -> bool:
        for number, state, _ in await sessions(postgres_server, NAME):
            if state == "active":
                await postgres_server.query("SELECT pg_terminate_backend(%s)", (number,))
                return True
        return False

    await until(terminated)
    with pytest.raises(Timeout, match="administrator command"):
        await task


async def test_closing_refuses_what_waits_and_lets_run_what_runs(postgres_url: str) -> None:
    pool = await Pool.open(postgres_url, 1)
    running = asyncio.create_task(pool.fetch("SELECT pg_sleep(1), 7", deadline=PATIENCE))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(pool.fetch("SELECT 1"))
    await asyncio.sleep(0)
    await pool.close()
    assert (await running)[0][1] == 7
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await pool.fetch("SELECT 1")
    assert (pool.size, pool.free) == (0, 0)
    await pool.close()


async def test_closing_ends_threads_and_sessions(postgres_server: PostgresServer, postgres_url: str) -> None:
    before = threading.active_count()
    for _ in range(5):
        pool = await Pool.open(postgres_url, 2, name=NAME)
        await pool.fetch("SELECT 1")
        await pool.close()

    async def gone() -> bool:
        helpers = [thread for thread in threading.enumerate() if thread.name.startswith(NAME)]
        return not helpers and not await sessions(postgres_server, NAME)

    await until(gone)
    assert threading.active_count() <= before + 1, "but for a thread of asyncio's own"


async def test_where_nobody_listens_opening_fails_at_once() -> None:
    with pytest.raises(Unavailable):
        await Pool.open(f"postgresql://a@127.0.0.1:{free_port()}/b", 1)


async def test_where_nobody_answers_opening_fails_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        async with watch_lag() as lag:
            with pytest.raises(Unavailable):
                await Pool.open(f"postgresql://a@127.0.0.1:{port}/b", 1, connect_timeout=0.5)
        # It would be silent for ever.
        assert 0.4 < time.monotonic() - started < PATIENCE
        # Half of what a loop that waits itself would show in its few turns.
        assert lag.p99 < 0.25


@pytest.mark.parametrize("url", ["postgresql://a@[b/c", "postgresql://a@b/c?no=such", "host=a port=1,2"])
async def test_an_url_that_libpq_cannot_read_is_refused_without_its_words(url: str) -> None:
    with pytest.raises(StorageError) as raised:
        await Pool.open(url.replace("a@", "a:topsecret@"), 1)
    assert not isinstance(raised.value, Unavailable)
    assert "topsecret" not in str(raised.value)


async def test_names_are_looked_up_apart_from_the_loop(
    postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    threads = set()

    def slow(host: str, *args: object, **options: object) -> object:
        threads.add(threading.current_thread())
        time.sleep(0.5)
        assert host == "database.test"
        return real("127.0.0.1", *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    async with watch_lag() as lag:
        pool = await Pool.open(postgres_url.replace("127.0.0.1", "database.test"), 1)
        assert await pool.fetch("SELECT 1") == [(1,)]
        await pool.close()
    assert threads
    assert threading.main_thread() not in threads
    assert lag.p99 < 0.25


async def test_a_name_server_that_says_nothing_does_not_hold_the_end(
    postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await Pool.open(postgres_url.replace("127.0.0.1", "localhost"), 1, name=NAME)
    asked, answer = threading.Event(), threading.Event()

    def silent(*_: object, **__: object) -> object:
        asked.set()
        answer.wait(20)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    ((number, _, _),) = await sessions(postgres_server, NAME)
    await postgres_server.query("SELECT pg_terminate_backend(%s)", (number,))
    await asyncio.to_thread(asked.wait, 10)
    with pytest.raises(Unavailable):
        await pool.fetch("SELECT 1", deadline=0.1)
    started = time.monotonic()
    await pool.close()
    # Half of what the name server would have held it.
    assert time.monotonic() - started < 10
    answer.set()
