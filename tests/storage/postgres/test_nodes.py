"""Several processes on one database: offsets in commit order, identities once, times that only grow."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from storage.errors import KeyReused, NotFound
from storage.models import Batch, Draft, Idempotency, Outcome, Reading
from tests.storage.contract.stores import PostgresStore, opened
from tests.storage.writes import EVERYTHING, numbers, write

NODES = 3


@pytest.fixture
async def nodes(postgres_url: str) -> AsyncIterator[list[PostgresStore]]:
    """Engines that start at the same moment on an empty database."""
    stores = [PostgresStore(postgres_url) for _ in range(NODES)]
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(opened(store)) for store in stores))
        yield stores


async def test_those_that_start_at_once_migrate_once_and_agree_on_the_epoch(
    nodes: list[PostgresStore],
) -> None:
    applied = [name for node in nodes for name in node.engine.migrated]
    assert len(applied) == len(set(applied)) >= 4
    assert len({node.engine.state().epoch for node in nodes}) == 1
    assert nodes[0].engine.state().epoch


async def test_identities_that_several_write_at_the_same_moment_are_stored_once(
    nodes: list[PostgresStore],
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    batches: list[Batch] = []
    accepted, duplicates, conflicts = 0, 0, 0

    async def node(number: int) -> None:
        nonlocal accepted, duplicates, conflicts
        own = random.Random(seed + number)
        for _ in range(60):
            writes = [
                numbers(
                    f"d{own.randrange(3)}",
                    "m",
                    [own.randrange(40) for _ in range(own.randrange(1, 8))],
                    value,
                )
                for value in own.choices([1, 1.0, 2, True], k=own.randrange(1, 5))
            ]
            appended = await nodes[number].appended(*writes)
            for result in appended.results:
                assert isinstance(result, Outcome)
                accepted += result.accepted
                duplicates += result.duplicates
                conflicts += len(result.conflicts)
            if appended.batch is not None:
                batches.append(appended.batch)
            if own.random() < 0.1:
                await asyncio.sleep(chance.random() / 100)

    await asyncio.gather(*(node(number) for number in range(NODES)))
    stored = await nodes[0].rows()
    assert len({row[1:4] for row in stored}) == len(stored) == accepted
    assert [row[0] for row in stored] == list(range(1, accepted + 1))
    assert duplicates
    assert conflicts
    # Together the nodes published exactly what is stored, each offset once.
    told = sorted((r.offset, r.device, r.metric, r.ts, r.value) for b in batches for r in b.readings)
    assert told == stored
    heads = [(await each.engine.refresh()).head for each in nodes]
    assert heads == [accepted] * NODES


async def test_a_batch_is_contiguous_however_many_commit_at_once(nodes: list[PostgresStore]) -> None:
    async def commit(node: PostgresStore, number: int) -> list[Reading]:
        drafts: list[Draft] = [(f"n{number}", "m", None, n) for n in range(50)]
        appended = await node.appended(*(write(draft, received=5) for draft in drafts))
        assert appended.batch is not None
        assert [r.offset for r in appended.batch.readings] == [
            *range(appended.batch.first, appended.batch.last + 1)
        ]
        assert [r.value for r in appended.batch.readings] == [*range(50)]
        return appended.batch.readings

    await asyncio.gather(*(commit(node, n) for n, node in enumerate(nodes) for _ in range(10)))
    assert [row[0] for row in await nodes[0].rows()] == list(range(1, NODES * 500 + 1))


async def test_times_that_several_give_in_one_series_are_unique_and_only_grow_though_clocks_differ(
    nodes: list[PostgresStore],
) -> None:
    async def node(number: int) -> None:
        for n in range(40):
            # The clocks are a second apart.
            received = 1_000_000 * number + n
            drafts: list[Draft] = [("d", "m", None, number)] * (1 + n % 3)
            for reading in await nodes[number].stored(write(*drafts, received=received)):
                assert reading.ts >= received

    await asyncio.gather(*(node(number) for number in range(NODES)))
    times = [row[3] for row in await nodes[0].rows()]
    assert times == sorted(set(times))


async def test_a_key_used_at_one_node_answers_at_all(nodes: list[PostgresStore]) -> None:
    def keyed(digest: bytes = b"x") -> object:
        return write(("d", "m", None, 1), idempotency=Idempotency("p", "k", digest))

    results = await asyncio.gather(*(node.append(keyed()) for node in nodes for _ in range(3)))  # type: ignore[arg-type]
    assert results == [[Outcome(1, 0, (), 1)]] * NODES * 3
    assert isinstance((await nodes[1].append(keyed(b"y")))[0], KeyReused)  # type: ignore[arg-type]
    assert len(await nodes[0].rows()) == 1


async def test_what_a_node_remembers_of_a_device_that_another_deletes_does_no_harm(
    nodes: list[PostgresStore],
) -> None:
    one, other, third = nodes
    for turn in range(3):
        await one.stored(numbers("d", "m", [10 * turn]), numbers("d", "n", [turn]))
        for n, node in enumerate(nodes):
            await node.stored(numbers("d", "m", [10 * turn + 1 + n]))
            page = await node.engine.read_from(0, 10**6, 100, EVERYTHING)
            assert {(r.device, r.metric) for r in page.readings} == {("d", "m"), ("d", "n")}
        head = (await one.engine.refresh()).head
        await other.engine.delete_device("d", readings=True)
        # All of it can be written again: nothing goes to the series that is about to be swept.
        assert await third.append(numbers("d", "m", [10 * turn + 9])) == [Outcome(1, 0, (), head + 1)]
        assert await one.append(numbers("d", "m", [10 * turn])) == [Outcome(1, 0, (), head + 2)]
        for node in nodes:
            page = await node.engine.read_from(0, 10**6, 100, EVERYTHING)
            assert [r.offset for r in page.readings] == [head + 1, head + 2]
        await other.engine.sweep(0)
        assert [row[3] for row in await one.rows()] == [10 * turn + 9, 10 * turn]
        await one.engine.delete_device("d", readings=True)
        for node in nodes:
            with pytest.raises(NotFound):
                await node.engine.latest("d")
            assert (await node.engine.read_from(0, 10**6, 100, EVERYTHING)).readings == []


async def test_registering_a_device_at_two_nodes_makes_one(nodes: list[PostgresStore]) -> None:
    await asyncio.gather(*(node.append(numbers("new", f"m{n % 5}", [n])) for n, node in enumerate(nodes * 5)))
    assert (await nodes[0].engine.device("new")).metrics == ("m0", "m1", "m2", "m3", "m4")
    assert await nodes[0].count("series") == 5


async def test_refresh_tells_of_what_others_have_committed(nodes: list[PostgresStore]) -> None:
    one, other, _ = nodes
    await other.stored(numbers("d", "m", range(5)))
    assert one.engine.state().head == 0
    assert (await one.engine.refresh()).head == one.engine.state().head == 5
    await other.engine.sweep(3)
    assert (await one.engine.refresh()).floor == 3


async def test_sweeps_at_the_same_time_are_as_one(
    nodes: list[PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.upkeep.SWEEP_ROWS", 30)
    await nodes[0].stored(*(numbers(f"d{n}", "m", range(100)) for n in range(10)))
    await nodes[0].engine.delete_device("d9", readings=True)
    await asyncio.gather(*(node.engine.sweep(40) for node in nodes))
    rows = await nodes[1].rows()
    assert len(rows) == 9 * 60
    assert await nodes[0].count("readings") == 9 * 60
    assert {(await node.engine.refresh()).floor for node in nodes} == {840}
