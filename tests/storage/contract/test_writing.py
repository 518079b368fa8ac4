"""Writes one by one: values, given times, refusals, poison, clean-up."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import KeyReused, Refused
from storage.log import Range
from storage.models import INTEGER_MAX, Appended, Draft, Idempotency, Outcome, Value
from tests.storage.contract.stores import Fresh, Store
from tests.storage.contract.test_model import DEVICES, START, exact
from tests.storage.writes import DAY, EVERYTHING, numbers, write

values: st.SearchStrategy[Value] = (
    st.booleans()
    | st.integers(-INTEGER_MAX, INTEGER_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
    | st.sampled_from(["NULL", "", '"', "\\", "{}", "%s", "'", ",", "\n\t", "\U0010ffff"])
)


@given(st.lists(values, min_size=1, max_size=30))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_value_comes_back_with_its_type_and_all_its_bits(store: Store, sent: list[Value]) -> None:
    head = store.engine.state().head
    stored = await store.stored(*(write(("d", "m", head + n, v)) for n, v in enumerate(sent)))
    assert [exact(r.value) for r in stored] == [exact(v) for v in sent]
    page = await store.engine.read_from(head, head + len(sent), len(sent), EVERYTHING)
    assert [exact(r.value) for r in page.readings] == [exact(v) for v in sent]
    ranged = await store.engine.range(Range("d", ("m",), head, head + len(sent)), None, 2**62, 100)
    assert [exact(v) for v in ranged.values] == [exact(v) for v in sent]
    newest = (await store.engine.latest("d")).metrics["m"]
    assert exact(newest.value) == exact(sent[-1])
    # And the same once more is a duplicate, whatever it is.
    again = await store.append(*(write(("d", "m", head + n, v)) for n, v in enumerate(sent)))
    assert {(r.accepted, r.duplicates, r.conflicts) for r in again} == {(0, 1, ())}


@pytest.mark.parametrize("series", [0, 1, 100_000])
async def test_given_times_of_a_series_only_grow_even_if_the_clock_steps_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, series: int
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    newest: dict[tuple[str, str], int] = {}
    store.remember(monkeypatch, series)
    for _ in range(150):
        received = START + chance.randrange(40)
        drafts: list[Draft] = [
            (chance.choice(DEVICES), "m", chance.choice([None, None, START + chance.randrange(60)]), 1)
            for _ in range(chance.randrange(1, 5))
        ]
        wanted = {(device, ts) for device, _, ts, _ in drafts}
        for reading in await store.stored(write(*drafts, received=received)):
            if (reading.device, reading.ts) in wanted:
                continue
            name = reading.device, reading.metric
            assert reading.ts >= received
            assert reading.ts > newest.get(name, 0)
            newest[name] = reading.ts


async def test_many_readings_without_a_time_get_one_microsecond_each(store: Store) -> None:
    writes = [
        write(("d", "m", None, n), ("d", "n", None, n), ("d", "m", None, n), received=50) for n in range(5)
    ]
    assert [r.ts for r in await store.stored(*writes) if r.metric == "m"] == list(range(50, 60))
    # The next one is received before the last of those: it follows them all the same.
    assert [r.ts for r in await store.stored(write(("d", "m", None, 1), received=55))] == [60]
    # What somebody else has set is gone round.
    await store.stored(numbers("d", "m", [61, 62, 64]))
    assert [r.ts for r in await store.stored(write(*[("d", "m", None, 1)] * 3, received=55))] == [63, 65, 66]


async def test_a_refused_strict_write_leaves_no_series_no_device_and_no_given_time_behind(
    store: Store,
) -> None:
    await store.stored(write(("a", "m", 5, 1), ("a", "n", None, 1), received=10))
    before = await store.table("series"), await store.table("devices"), await store.rows()
    refused = write(
        ("a", "n", None, 2), ("new", "m", None, 1), ("a", "fresh", 1, 1), ("a", "m", 5, 2), strict=True
    )
    assert await store.append(refused) == [Outcome(0, 0, (3,), 2)]
    assert (await store.table("series"), await store.table("devices"), await store.rows()) == before
    assert [r.ts for r in await store.stored(write(("a", "n", None, 3), received=11))] == [11]


@pytest.mark.parametrize("culprits", [{0}, {63}, {20}, {3, 4, 40}])
async def test_one_poisoned_reading_among_64_writers_spoils_only_its_own_write(
    store: Store, culprits: set[int]
) -> None:
    await store.stored(numbers("d", "m", [1]))
    await store.poison()
    writes = [
        write(("d", "m", 2 * n + 10, 1), ("d", "m", 2 * n + 11, 666 if n in culprits else n))
        for n in range(64)
    ]
    appended = await store.appended(*writes)
    assert {n for n, result in enumerate(appended.results) if isinstance(result, Refused)} == culprits
    good = [result for result in appended.results if isinstance(result, Outcome)]
    assert [(r.accepted, r.offset) for r in good] == [(2, 3 + 2 * n) for n in range(64 - len(culprits))]
    head = store.engine.state().head
    assert [row[0] for row in await store.rows()] == list(range(1, head + 1))
    assert appended.batch is not None
    assert (appended.batch.first, appended.batch.last) == (2, head)
    assert [r.offset for r in appended.batch.readings] == list(range(2, head + 1))


async def test_only_poisoned_writes_store_nothing_and_the_next_one_goes_on(store: Store) -> None:
    await store.poison()
    appended = await store.appended(*(numbers("d", "m", [n], 666) for n in range(5)))
    assert appended.batch is None
    assert all(isinstance(result, Refused) for result in appended.results)
    assert (await store.devices(), await store.series()) == ({}, set())
    assert [r.offset for r in await store.stored(numbers("d", "m", [1]))] == [1]


async def test_a_value_that_no_column_holds_is_refused_alone(store: Store) -> None:
    bad: list[Any] = ["\ud800", 2**64, object()]
    results = await store.append(*(numbers("d", "m", [n], value) for n, value in enumerate([1, *bad, 2])))
    assert [type(result) for result in results] == [Outcome, Refused, Refused, Refused, Outcome]
    assert [row[0] for row in await store.rows()] == [1, 2]


async def test_identities_of_a_deleted_device_can_be_written_anew_before_they_are_swept(
    store: Store,
) -> None:
    await store.stored(numbers("d", "m", range(10)), numbers("e", "m", range(3)))
    await store.engine.delete_device("d", readings=True)
    assert [row[1] for row in await store.rows()] == ["e"] * 3
    assert await store.append(numbers("d", "m", range(10), value=2)) == [Outcome(10, 0, (), 23)]
    await store.engine.sweep(0)
    assert await store.count("readings") == 13
    assert await store.count("doomed") == 0
    assert store.engine.state().floor == 0


async def test_a_device_that_was_forgotten_comes_back_with_its_next_reading(store: Store) -> None:
    await store.stored(numbers("d", "m", [1]))
    await store.engine.delete_device("d", readings=False)
    assert await store.devices() == {}
    await store.stored(write(("d", "m", 2, 1), received=7))
    assert await store.devices() == {"d": (7, 2)}
    assert (await store.engine.device("d")).created_at == 7
    # Its readings of before are still its own.
    assert await store.append(numbers("d", "m", [1], 5)) == [Outcome(0, 0, (0,), 2)]


async def test_a_sweep_goes_in_bounded_steps_and_removes_all_that_is_too_old(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{store.sweeping}.SWEEP_ROWS", 7)
    monkeypatch.setattr(f"{store.sweeping}.SWEEP_SERIES", 3)
    await store.stored(*(numbers(f"d{n}", "m", range(n, n + 10)) for n in range(12)))
    await store.engine.delete_device("d3", readings=True)
    await store.engine.sweep(8)
    assert await store.count("readings", "ts < 8") == 0
    kept = [(f"d{n}", ts) for n in range(12) if n != 3 for ts in range(max(n, 8), n + 10)]
    assert sorted((row[1], row[3]) for row in await store.rows()) == sorted(kept)
    # d7's reading with ts 7 was the newest that went.
    assert store.engine.state().floor == 71


async def test_an_idempotency_key_is_forgotten_after_a_day_and_not_before(store: Store) -> None:
    def keyed(ts: int, digest: bytes) -> Any:
        return write(("d", "m", ts, 1), received=DAY, idempotency=Idempotency("p", "k", digest))

    first = await store.append(keyed(1, b"1"))
    for later in (2 * DAY, 2 * DAY + 1):
        assert await store.append(keyed(1, b"1")) == first
        assert isinstance((await store.append(keyed(2, b"2")))[0], KeyReused)
        store.now = later
        await store.engine.sweep(0)
    assert await store.append(keyed(2, b"2")) == [Outcome(1, 0, (), 2)]


async def test_keys_of_one_batch_are_looked_up_in_order(store: Store) -> None:
    def keyed(key: str, ts: int, digest: bytes = b"1", strict: bool = False, value: int = 1) -> Any:
        return write(("d", "m", ts, value), idempotency=Idempotency("p", key, digest), strict=strict)

    results = await store.append(
        keyed("a", 1), keyed("a", 1), keyed("a", 2, b"2"), keyed("b", 1), keyed("c", 1, strict=True, value=2)
    )
    assert results[0] == results[1] == Outcome(1, 0, (), 1)
    assert isinstance(results[2], KeyReused)
    assert results[3:] == [Outcome(0, 1, (), 1), Outcome(0, 0, (0,), 1)]
    # A refused write has not used its key.
    assert await store.append(keyed("c", 5, b"other")) == [Outcome(1, 0, (), 2)]
    assert await store.append(keyed("b", 1)) == [Outcome(0, 1, (), 1)]


async def test_the_memory_of_series_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.remember(monkeypatch, 5)
    for n in range(30):
        await store.stored(numbers(f"d{n}", "m", [1]))
        assert store.remembered() <= 6


async def test_a_large_write_is_stored_whole(store: Store) -> None:
    drafts: list[Draft] = [(f"d{n % 100}", f"m{n % 7}", n, n / 8) for n in range(10_000)]
    readings = await store.stored(write(*drafts))
    assert [(r.device, r.metric, r.ts, r.value) for r in readings] == drafts
    assert await store.append(write(*drafts)) == [Outcome(0, 10_000, (), 10_000)]


async def test_offsets_are_contiguous_and_every_commit_is_read_back(store: Store) -> None:
    futures = [store.engine.append([numbers(f"d{n % 7}", "m", [n, n + 1])]) for n in range(100)]
    batches = [(await future).batch for future in futures]
    offsets = [offset for b in batches if b is not None for offset in range(b.first, b.last + 1)]
    head = store.engine.state().head
    assert offsets == list(range(1, head + 1))
    page = await store.engine.read_from(0, head, 10_000, EVERYTHING)
    assert [r.offset for r in page.readings] == offsets


async def test_a_batch_of_nothing_new_is_no_batch(store: Store) -> None:
    await store.stored(numbers("d", "m", [1]))
    assert await store.appended(numbers("d", "m", [1]), numbers("d", "m", [1], 2)) == Appended(
        [Outcome(0, 1, (), 1), Outcome(0, 0, (0,), 1)]
    )


async def test_logs_of_the_tests_are_their_own(fresh: Fresh) -> None:
    for _ in range(2):
        async with fresh() as log:
            assert await log.append(numbers("d", "m", [1])) == [Outcome(1, 0, (), 1)]
