"""What the contract of the engines does not see of this one: reading beside writing, the WAL, deadlines."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.errors import Timeout, Unavailable
from storage.log import LogState, Range
from storage.models import Appended
from storage.sqlite import engine as engine_module
from storage.sqlite.engine import SqliteEngine
from storage.sqlite.reader import Reader
from storage.sqlite.writer import Writer
from tests.storage.sqlite.store import store
from tests.storage.writes import numbers

# A statement that runs until it is interrupted.
ENDLESS = "WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SqliteEngine]:
    opened = await SqliteEngine.open(tmp_path, lambda: 1_000_000, deadline=20)
    yield opened
    await opened.close()


def wal(engine: SqliteEngine) -> int:
    return engine._directory.database.with_name("tidegate.db-wal").stat().st_size


async def append(engine: SqliteEngine, *stamps: int) -> Appended:
    return await engine.append([numbers("d", "m", stamps, "x" * 100)])


async def test_a_long_read_blocks_no_commit_and_the_wal_is_bounded_after_it(engine: SqliteEngine) -> None:
    await append(engine, 1)
    held, release = threading.Event(), threading.Event()

    def long_read(reader: Reader) -> Any:
        reader._hold()
        before = reader._must_exist("d")[5]
        held.set()
        assert release.wait(20)
        return before, reader._must_exist("d")[5]

    reading = asyncio.create_task(engine._read(long_read))
    assert await asyncio.to_thread(held.wait, 20)
    try:
        for n in range(100):
            await append(engine, *range(10 + n * 500, 510 + n * 500))
    finally:
        release.set()
    grown = await asyncio.to_thread(wal, engine)
    assert grown > 8_000_000
    assert await reading == (1, 1)
    for n in range(100, 200):
        await append(engine, *range(10 + n * 500, 510 + n * 500))
    # The same room is used again.
    assert await asyncio.to_thread(wal, engine) < grown + 1_000_000
    assert (await engine.latest("d")).offset == 100_001


def test_reads_that_always_overlap_do_not_let_the_wal_grow_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sqlite.writer.FOLD_PAGES", 100)
    monkeypatch.setattr("storage.sqlite.writer.WAIT_PAGES", 500)
    stop = threading.Event()

    def overlap(readers: list[Reader]) -> None:
        """At every moment one of the two is reading."""
        for mine, other in itertools.cycle([readers, readers[::-1]]):
            mine._hold()
            mine._must_exist("d")
            other.rest()
            if stop.wait(0.005):
                return

    with store(tmp_path) as log, log.reader() as one, log.reader() as other:
        log.stored(numbers("d", "m", [1]))
        thread = threading.Thread(target=overlap, args=([one, other],))
        thread.start()
        largest = 0
        try:
            for n in range(150):
                log.stored(numbers("d", "m", range(10 + n * 300, 310 + n * 300), "x" * 100))
                largest = max(largest, log.path.with_name("tidegate.db-wal").stat().st_size)
        finally:
            stop.set()
            thread.join()
        one.rest()
        other.rest()
        # All commits together are more than 9 MB.
        assert largest < 5_000_000


@pytest.mark.parametrize("end", ["deadline", "cancelled"])
async def test_after_an_interrupted_read_the_next_one_on_that_connection_sees_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(engine_module, "READERS", 1)
    engine = await SqliteEngine.open(tmp_path, lambda: 1_000_000, deadline=20)
    kept: list[BaseException] = []
    await append(engine, *range(100))

    for n in range(10):
        started = threading.Event()

        def endless(reader: Reader, started: threading.Event = started) -> None:
            # Half-read cursors, as a merge of several series has them, then what does not end.
            rows = reader._lane(Range("d", (), 0, 100), 1, None, 10**9)
            next(rows)
            started.set()
            try:
                reader._execute(ENDLESS, ()).fetchall()
            except BaseException as error:
                kept.append(error)
                raise

        if end == "deadline":
            engine._deadline = 0.05
            with pytest.raises(Timeout):
                await engine._read(endless)
            engine._deadline = 20
        else:
            reading = asyncio.create_task(engine._read(endless))
            assert await asyncio.to_thread(started.wait, 20)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
        await append(engine, 1_000 + n)
        latest = await engine.latest("d")
        assert (latest.metrics["m"].ts, latest.offset) == (1_000 + n, 101 + n)
    assert kept
    await engine.close()


async def test_commits_are_never_refused_because_others_wait_for_the_writer(
    engine: SqliteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, release = threading.Event(), threading.Event()

    def hold(writer: Writer) -> None:
        held.set()
        assert release.wait(20)

    first = engine._writing.submit(hold)
    assert await asyncio.to_thread(held.wait, 20)
    others = [
        asyncio.create_task(engine.put_device("d", str(n), {}))
        for n in range(engine_module.WRITES_WAITING + 5)
    ]
    await asyncio.sleep(0)
    commit = engine.append([numbers("d", "m", [1])])
    release.set()
    assert (await commit).batch is not None
    await first
    results = await asyncio.gather(*others, return_exceptions=True)
    assert sum(isinstance(result, Unavailable) for result in results) == 6


async def test_a_sweep_does_not_tell_of_a_commit_that_is_not_answered_yet(engine: SqliteEngine) -> None:
    await append(engine, 10)
    # The thread has committed and swept more than the loop has heard of.
    engine._writer.state = LogState(engine.state().epoch, 9, 7)
    await engine.sweep(0)
    assert engine.state() == LogState(engine.state().epoch, 1, 1)
