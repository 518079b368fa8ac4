"""Partitions: made ahead and on demand, dropped whole by age, never in the way of a commit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import StorageError
from storage.models import Outcome
from storage.postgres.engine import PostgresEngine
from storage.postgres.partitions import AHEAD, PARTITIONS_MAX, WANTED_MAX, ahead, period
from tests.storage.contract.stores import PostgresStore
from tests.storage.writes import DAY, EVERYTHING, numbers, write


def micros(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


NOW = micros("2026-11-21T10:00")


class Dated(PostgresStore):
    """A log at a certain time."""

    now = NOW
    daily = False

    async def _open(self) -> PostgresEngine:
        return await PostgresEngine.open(self.url, lambda: self.now, deadline=20, daily=self.daily)

    async def partitions(self) -> dict[str, int]:
        """How many rows each has, in order of their names."""
        names = await self.ask(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = 'tidegate.readings'::regclass ORDER BY 1"
        )
        return {name: await self.count(name) for (name,) in names}


@asynccontextmanager
async def dated(url: str, *, daily: bool = False) -> AsyncIterator[Dated]:
    store = Dated(url)
    store.daily = daily
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@given(st.integers(0, micros("9999-10-31")), st.booleans())
def test_a_period_holds_its_time_and_joins_the_next(ts: int, daily: bool) -> None:
    found = period(ts, daily=daily)
    assert found.lower <= ts < found.upper
    assert found.upper - found.lower == DAY if daily else 28 * DAY <= found.upper - found.lower <= 31 * DAY
    assert period(found.upper, daily=daily).lower == found.upper
    assert [p.lower for p in ahead(NOW, daily=daily)][1:] == [p.upper for p in ahead(NOW, daily=daily)][:-1]


@pytest.mark.parametrize(
    ("daily", "names"),
    [
        (False, ["readings_2026_11", "readings_2026_12", "readings_2027_01"]),
        (True, ["readings_2026_11_21", "readings_2026_11_22", "readings_2026_11_23"]),
    ],
)
async def test_the_period_of_now_and_the_next_ones_are_there_from_the_start(
    postgres_url: str, daily: bool, names: list[str]
) -> None:
    async with dated(postgres_url, daily=daily) as store:
        assert len(names) == AHEAD + 1
        assert [*await store.partitions()] == [*names, "readings_rest"]
        times = [NOW, period(NOW, daily=daily).upper - 1, period(NOW, daily=daily).upper, 5]
        await store.stored(numbers("d", "m", times))
        assert [*(await store.partitions()).values()] == [2, 1, 0, 1]
        # Time goes on: the next sweep makes the next one.
        store.now = period(NOW, daily=daily).upper
        await store.engine.sweep(0)
        assert len(await store.partitions()) == AHEAD + 3


async def test_late_readings_get_a_partition_and_those_before_it_move_there(postgres_url: str) -> None:
    async with dated(postgres_url) as store:
        late = [micros("2024-02-29"), micros("2024-02-01"), micros("2024-03-01")]
        await store.stored(numbers("d", "m", late), numbers("clock", "m", [1, 10**12]))
        before = await store.rows()
        assert (await store.partitions())["readings_rest"] == 5
        await store.engine.sweep(0)
        found = await store.partitions()
        assert (found["readings_2024_02"], found["readings_2024_03"], found["readings_rest"]) == (2, 1, 2)
        assert await store.rows() == before
        assert await store.append(numbers("d", "m", late)) == [Outcome(0, 3, (), 5)]
        page = await store.engine.read_from(0, 5, 100, EVERYTHING)
        assert [r.offset for r in page.readings] == [1, 2, 3, 4, 5]


async def test_times_all_over_the_calendar_do_not_make_partitions_without_end(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.partitions.PARTITIONS_MAX", AHEAD + 4)
    assert PARTITIONS_MAX > AHEAD + 4
    async with dated(postgres_url) as store:
        for n in range(40):
            await store.stored(numbers("d", "m", [micros("2003-01-01") + n * 31 * DAY]))
            # Far ahead of now there is none to be had at all.
            await store.stored(numbers("d", "m", [micros("2090-01-01") + n * 31 * DAY]))
            assert len(store.engine._partitions._wanted) <= WANTED_MAX
        for _ in range(3):
            await store.engine.sweep(0)
        assert len(await store.partitions()) == AHEAD + 5
        assert len(await store.rows()) == 80


async def test_days_and_months_can_follow_each_other(postgres_url: str) -> None:
    async with dated(postgres_url, daily=True):
        pass
    async with dated(postgres_url) as store:
        # The rest of November, then whole months.
        found = await store.partitions()
        assert "readings_2026_11" in found
        await store.stored(
            numbers("d", "m", [micros("2026-11-24"), micros("2026-11-23"), micros("2026-12-05")])
        )
        assert (await store.partitions())["readings_2026_11"] == 1
        assert (await store.partitions())["readings_rest"] == 0
    async with dated(postgres_url, daily=True) as store:
        assert (await store.partitions()).keys() == found.keys()


async def test_retention_drops_whole_partitions_and_the_floor_lies_above_all_that_went(
    postgres_url: str,
) -> None:
    async with dated(postgres_url, daily=True) as store:
        first = period(NOW, daily=True).lower
        await store.stored(*(numbers(f"d{n}", "m", range(first, first + 300)) for n in range(10)))
        await store.stored(numbers("late", "m", [first + DAY + 5]), numbers("d1", "m", [first + 500]))
        await store.stored(
            numbers("d2", "m", range(first + DAY + 100, first + DAY + 200)), numbers("c", "m", [7])
        )
        store.now = NOW + 2 * DAY
        await store.engine.sweep(first + DAY)
        found = await store.partitions()
        assert "readings_2026_11_21" not in found
        # The newest that went is d1's, or the one of the clock that was never set.
        assert store.engine.state().floor == 3_103
        assert [row[1:4] for row in await store.rows()] == [
            ("late", "m", first + DAY + 5),
            *(("d2", "m", ts) for ts in range(first + DAY + 100, first + DAY + 200)),
        ]
        # A reading that comes after its time is swept from the rest.
        await store.stored(numbers("d1", "m", [first + 3]))
        await store.engine.sweep(first + DAY)
        assert store.engine.state().floor == 3_104
        assert await store.count("readings_rest") == 0


@pytest.mark.parametrize("rows", [0, 1, 5_000])
async def test_the_highest_offset_of_a_partition_is_found_whatever_lies_in_it(
    postgres_url: str, rows: int
) -> None:
    async with dated(postgres_url) as store:
        for n in range(0, rows, 1_000):
            await store.stored(numbers("d", "m", range(NOW + n, NOW + min(n + 1_000, rows))))
        await store.stored(numbers("d", "m", range(50)))
        assert await store.ask("SELECT tidegate.highest_offset('readings_2026_11')") == [(rows,)]
        assert await store.ask("SELECT tidegate.highest_offset('readings_rest')") == [(rows + 50,)]
        await store.engine._upkeep.summarize(0)
        assert await store.ask("SELECT tidegate.highest_offset('readings_2026_11')") == [(rows,)]


async def test_partitions_come_and_go_while_others_commit_and_read(postgres_url: str) -> None:
    async with dated(postgres_url, daily=True) as one, dated(postgres_url, daily=True) as two:
        done = asyncio.Event()
        written: list[int] = []

        async def commit() -> None:
            n = 0
            while not done.is_set():
                ts = one.now + n
                await one.stored(write(("d", "m", ts, n), ("d", "n", None, n), received=ts))
                written.append(ts)
                n += 1

        async def read() -> None:
            while not done.is_set():
                await two.engine.latest_page(EVERYTHING, "", 10)
                await two.engine.read_from(0, two.engine.state().head, 10, EVERYTHING)

        tasks = [asyncio.create_task(commit()), asyncio.create_task(read())]
        refusals = 0
        for day in range(8):
            one.now = two.now = NOW + day * DAY
            for store in (one, two):
                try:
                    await store.engine.sweep(one.now - 2 * DAY)
                except StorageError:
                    # It gives way to who reads or commits, and comes again.
                    refusals += 1
            assert not any(task.done() for task in tasks)
        done.set()
        await asyncio.gather(*tasks)
        assert refusals < 8
        oldest = one.now - 2 * DAY
        await one.engine.sweep(oldest)
        assert [row[3] for row in await one.rows() if row[2] == "m"] == [ts for ts in written if ts >= oldest]
        assert len(await one.partitions()) <= 2 + 1 + AHEAD + 1


async def test_brin_is_told_of_new_pages_once_there_are_many(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.upkeep.SUMMARIZE_ROWS", 20_000)
    async with dated(postgres_url) as store:
        for n in range(3):
            await store.stored(numbers("d", "m", range(NOW + n * 10_000, NOW + n * 10_000 + 10_000)))
        assert store.engine._summarizing is not None
        await store.engine._summarizing
        # Nothing is left that BRIN does not know of, but what was written after that.
        name = "tidegate.readings_2026_11_log_offset_idx"
        assert (await store.ask(f"SELECT brin_summarize_new_values('{name}') <= 1"))[0][0]
        # A page of the log costs one range of pages.
        plan = await store.ask(
            "SET enable_seqscan = off; EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) "
            "SELECT * FROM tidegate.readings_2026_11 WHERE log_offset > 100 AND log_offset <= 200"
        )
        text = "\n".join(line for (line,) in plan)
        assert "Bitmap Index Scan" in text, text
        assert int(text.partition("lossy=")[2].split()[0]) <= 128, text
