"""Commits whose answer never came: what became of them is found out before anything else is appended."""

import asyncio
import contextlib
import random
import statistics
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.errors import StorageError, Timeout, Unavailable
from storage.models import Idempotency, Outcome, Write
from storage.postgres import writer
from tests.running import PATIENCE
from tests.servers.postgres import PostgresServer, postgres
from tests.storage.contract.stores import PostgresStore, opened
from tests.storage.postgres.tap import Fault, Tap, tap
from tests.storage.writes import numbers, write
from tests.watching import own_time

_SECOND_SESSION = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'tidegate-commit' OFFSET 1"


@pytest.fixture
async def line(postgres_url: str) -> AsyncIterator[Tap]:
    async with tap(postgres_url) as made:
        yield made


@pytest.fixture
async def store(line: Tap, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PostgresStore]:
    """An engine behind the tap, with a little in it; patient, for a starved server is none that is lost."""
    monkeypatch.setattr(writer, "DEADLINE", PATIENCE)
    async with opened(PostgresStore(line.url)) as made:
        await made.stored(numbers("d", "m", range(3)))
        yield made


def plain() -> list[Write]:
    return [numbers("d", "m", [10, 11]), numbers("e", "m", [5], "text")]


def given() -> list[Write]:
    return [
        write(("d", "m", None, 1), ("d", "m", None, 2), ("e", "m", 9 + n, 3), received=50) for n in range(2)
    ]


def mixed() -> list[Write]:
    return [
        write(("d", "m", 1, 1), ("d", "m", 2, 5), ("d", "m", None, 1), received=70),
        write(("d", "m", 80, 1), idempotency=Idempotency("p", "k", b"x")),
        write(("new", "m", 1, 1), ("d", "m", 2, 6), strict=True),
    ]


async def recovered(store: PostgresStore, *writes: Write) -> list[Any]:
    """The results once the engine takes writes again."""
    async with asyncio.timeout(PATIENCE):
        while True:
            results = await store.append(*writes)
            if not any(isinstance(result, Unavailable) for result in results):
                return results
            await asyncio.sleep(0.01)


async def healthy(store: PostgresStore) -> None:
    """Wait until the engine says so."""
    while True:
        with contextlib.suppress(Unavailable, Timeout):
            await store.engine.ping()
            return
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("work", [plain, given, mixed])
@pytest.mark.parametrize("fault", ["answer", "question"])
async def test_a_connection_lost_at_the_commit_changes_no_answer(
    store: PostgresStore, line: Tap, work: Any, fault: Fault, postgres_server: PostgresServer
) -> None:
    line.fault = fault
    appended = await store.appended(*work())
    assert not line.armed()
    # The same on a log where nothing is lost.
    name = await postgres_server.create_database()
    async with opened(PostgresStore(postgres_server.database_url(name))) as other:
        await other.stored(numbers("d", "m", range(3)))
        expected = await other.appended(*work())
        assert appended.results == expected.results
        assert appended.batch is not None
        assert expected.batch is not None
        assert appended.batch.readings == expected.batch.readings
        assert appended.batch.epoch == store.engine.state().epoch
        assert await other.rows() == await store.rows()
        assert await other.devices() == await store.devices()
        assert await other.series() == await store.series()
    assert store.engine.state().head == (await store.engine.refresh()).head == len(await store.rows())
    assert await store.append(numbers("d", "m", [500])) == [Outcome(1, 0, (), store.engine.state().head)]
    await postgres_server.drop_database(name)


@pytest.mark.parametrize("fault", ["answer", "question"])
async def test_while_nobody_knows_nothing_is_appended_and_then_the_log_goes_on(
    store: PostgresStore, line: Tap, fault: Fault
) -> None:
    line.fault = fault
    line.closed = True
    committing = asyncio.create_task(store.append(numbers("d", "m", [10])))
    async with asyncio.timeout(PATIENCE):
        await line.struck.wait()
    line.cut()
    # That the database is away is known before the deadline.
    async with asyncio.timeout(PATIENCE / 2):
        assert [type(r) for r in await committing] == [Timeout]
        assert [type(r) for r in await store.append(numbers("d", "m", [11]))] == [Unavailable]
        with pytest.raises(Unavailable):
            await store.engine.ping()
    line.closed = False
    stored = fault == "answer"
    async with asyncio.timeout(PATIENCE):
        await healthy(store)
    appended = await store.appended(numbers("d", "m", [11]))
    assert appended.results == [Outcome(1, 0, (), 4 + stored)]
    # Nobody has published it yet, and what is answered from here on must show.
    late = appended.late
    assert ([] if late is None else [(r.offset, r.ts) for r in late.readings]) == [(4, 10)] * stored
    # Who was told that nobody knows asks again, and gets each reading in once.
    again = await store.append(numbers("d", "m", [10]))
    assert again == [Outcome(not stored, stored, (), 5)]
    assert [row[0] for row in await store.rows()] == [1, 2, 3, 4, 5]
    await store.engine.ping()


@pytest.mark.parametrize("fault", ["answer", "question"])
@pytest.mark.parametrize("work", [plain, given, mixed])
async def test_the_answer_to_what_became_of_it_may_be_lost_too(
    store: PostgresStore, line: Tap, fault: Fault, work: Any
) -> None:
    # The writer's commit before this one must not be taken for it.
    await store.stored(numbers("d", "m", range(600, 650)))
    before = len(await store.rows())
    line.fault, line.then = fault, ("answer", b"tidegate.settle")
    first = (await store.append(*work()))[0]
    assert not line.armed()
    assert isinstance(first, Timeout) or first.accepted == 2 - (work is mixed)
    await recovered(store, numbers("d", "m", [700]))
    rows = await store.rows()
    # The commit as a whole and the one after it, or that one alone.
    assert (len(rows) > before + 1) is (fault == "answer")
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))


async def test_a_commit_that_arrives_after_it_was_given_up_stores_nothing(
    store: PostgresStore, line: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.fault = "hold"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "DEADLINE", 0.5)
        async with asyncio.timeout(PATIENCE / 2):
            assert [type(r) for r in await store.append(numbers("d", "m", [10]))] == [Timeout]
    assert await recovered(store, numbers("d", "m", [11])) == [Outcome(1, 0, (), 4)]
    line.release()
    # It is on its way now; the lock of the log says when it has been there.
    assert await recovered(store, numbers("d", "m", [12])) == [Outcome(1, 0, (), 5)]
    async with asyncio.timeout(PATIENCE):
        while await store.ask(_SECOND_SESSION):
            await asyncio.sleep(0.01)
    assert [row[3] for row in await store.rows()] == [0, 1, 2, 11, 12]
    assert await store.append(numbers("d", "m", [10])) == [Outcome(1, 0, (), 6)]


async def test_a_frozen_server_is_told_of_in_time_and_what_it_has_is_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert writer.DEADLINE < 2
    monkeypatch.setattr(writer, "DEADLINE", PATIENCE)
    async with postgres(tmp_path) as server, opened(PostgresStore(server.url)) as store:
        await store.stored(numbers("d", "m", range(3)))
        server.freeze()
        with monkeypatch.context() as patch:
            # Sooner, so that what the machine adds does not count.
            patch.setattr(writer, "DEADLINE", 0.5)
            started = own_time()
            assert [type(r) for r in await store.append(numbers("d", "m", [10]))] == [Timeout]
            assert own_time() - started < 2
        started = own_time()
        assert [type(r) for r in await store.append(numbers("d", "m", [11]))] == [Unavailable]
        assert own_time() - started < 0.5
        server.thaw()
        assert (await recovered(store, numbers("d", "m", [11])))[0].accepted == 1
        await recovered(store, numbers("d", "m", [10]))
        rows = await store.rows()
        assert sorted(row[3] for row in rows) == [0, 1, 2, 10, 11]
        assert [row[0] for row in rows] == [1, 2, 3, 4, 5]


async def test_a_server_that_is_away_says_so_at_once_and_is_back_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised = writer.DEADLINE
    monkeypatch.setattr(writer, "DEADLINE", PATIENCE)
    async with postgres(tmp_path) as server, opened(PostgresStore(server.url)) as store:
        epoch = store.engine.state().epoch
        await store.stored(numbers("d", "m", range(3)))
        await server.stop("immediate")
        took = []
        for n in range(5):
            started = own_time()
            with monkeypatch.context() as patch:
                patch.setattr(writer, "DEADLINE", promised)
                results = await store.append(numbers("d", "m", [10 + n]))
            assert isinstance(results[0], Unavailable | Timeout)
            with pytest.raises(StorageError):
                await store.engine.latest("d")
            took.append(own_time() - started)
        assert statistics.median(took) < 1.9
        await server.start()
        async with asyncio.timeout(PATIENCE):
            await healthy(store)
        # Who says that it can write can.
        assert (await store.append(numbers("d", "m", [50])))[0].accepted == 1
        # The same server, come up again after a crash: it has lost nothing.
        assert store.engine.state().epoch == epoch
        assert [row[3] for row in await store.rows()] == [0, 1, 2, 50]


async def test_backends_that_die_at_any_moment_lose_and_double_nothing(
    postgres_url: str, postgres_server: PostgresServer, long: bool
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    acked: dict[int, int] = {}
    unknown: set[int] = set()
    done = asyncio.Event()

    async def work(store: PostgresStore, parity: int) -> None:
        for n in range(parity, 1200 if long else 240, 2):
            async with asyncio.timeout(PATIENCE):
                result = (await store.append(numbers(f"d{n % 5}", "m", [n], n)))[0]
                while isinstance(result, Unavailable):
                    await asyncio.sleep(0.005)
                    result = (await store.append(numbers(f"d{n % 5}", "m", [n], n)))[0]
            if isinstance(result, Outcome):
                acked[n] = result.accepted
            else:
                assert isinstance(result, Timeout), result
                unknown.add(n)

    async def kill() -> None:
        chance = random.Random(seed)
        while not done.is_set():
            await asyncio.sleep(chance.random() / 20)
            await postgres_server.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'tidegate-commit' ORDER BY random() LIMIT 1"
            )

    async with opened(PostgresStore(postgres_url)) as one, opened(PostgresStore(postgres_url)) as two:
        killing = asyncio.create_task(kill())
        await asyncio.gather(work(one, 0), work(two, 1))
        done.set()
        await killing
        rows = await one.rows()
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    times = [row[3] for row in rows]
    assert len(times) == len(set(times))
    assert acked.keys() <= set(times) <= acked.keys() | unknown
    assert set(acked.values()) == {1}
