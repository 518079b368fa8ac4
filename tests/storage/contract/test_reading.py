"""What is read against naive computations over all rows."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import NotFound
from storage.log import Range, RangePage
from storage.models import FUNCTIONS, Bucket, Draft, Reading, Value
from storage.patterns import Selection, parse_pattern
from tests.storage.contract.stores import Fresh, Store
from tests.storage.writes import EVERYTHING, numbers, write

DEVICES = ["a", "a.b", "a.c", "b", "zz.z"]
METRICS = ["m", "n", "o"]
VALUES: list[Value] = [0, 7, -2, 0.5, 2.25, True, False, "text", ""]
drafts: st.SearchStrategy[list[Draft]] = st.lists(
    st.tuples(
        st.sampled_from(DEVICES), st.sampled_from(METRICS), st.integers(0, 40), st.sampled_from(VALUES)
    ),
    min_size=1,
    max_size=60,
)
metrics = st.lists(st.sampled_from([*METRICS, "none", "NULL"]), unique=True, max_size=3).map(tuple)
patterns = st.lists(st.sampled_from(["a", "a.>", "*.z", "b", ">", "nobody", "*"]), min_size=1, max_size=3)
quick = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@asynccontextmanager
async def filled(fresh: Fresh, readings: list[Draft], removed: str, oldest: int) -> AsyncIterator[Store]:
    """A log with these readings, one device deleted with its own, and some gone by age."""
    async with fresh() as log:
        await log.append(*(write(draft, received=n) for n, draft in enumerate(readings)))
        if any(draft[0] == removed for draft in readings):
            await log.engine.delete_device(removed, readings=True)
        if oldest:
            await log.engine.sweep(oldest)
        yield log


async def naive(log: Store) -> list[Reading]:
    """All that is there."""
    return [Reading(*row) for row in await log.rows()]


def joined(device: str, page: RangePage) -> list[Reading]:
    """The readings of a page."""
    columns = zip(page.offsets, page.metrics, page.times, page.values, strict=True)
    return [Reading(offset, device, metric, ts, value) for offset, metric, ts, value in columns]


@given(drafts, st.sampled_from(DEVICES), st.integers(0, 9), patterns, metrics, st.integers(1, 7), st.data())
@quick
async def test_pages_of_the_log_join_to_all_that_was_selected(
    fresh: Fresh,
    readings: list[Draft],
    removed: str,
    oldest: int,
    wanted: list[str],
    names: tuple[str, ...],
    limit: int,
    data: st.DataObject,
) -> None:
    selection = Selection([parse_pattern(text) for text in wanted], [parse_pattern(">")], names)
    rows = data.draw(st.sampled_from([1, 3, 1_000]))
    async with filled(fresh, readings, removed, oldest) as log:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{log.searching}.SEARCH_ROWS", rows)
            until = data.draw(st.integers(0, log.engine.state().head))
            found, offset = [], 0
            while offset < until:
                page = await log.engine.read_from(offset, until, limit, selection)
                assert len(page.readings) <= limit
                assert offset < page.scanned <= until
                assert all(offset < r.offset <= page.scanned for r in page.readings)
                found += page.readings
                offset = page.scanned
        everything = await naive(log)
        assert found == [r for r in everything if r.offset <= until and selection.takes(r.device, r.metric)]


async def test_a_page_of_the_log_searches_so_many_rows_at_most_also_where_a_device_was_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{store.searching}.SEARCH_ROWS", 10)
    await store.stored(numbers("d", "m", range(95)), numbers("e", "m", [1]))
    await store.engine.delete_device("d", readings=True)
    offset, pages = 0, []
    while offset < 96:
        pages.append(await store.engine.read_from(offset, 96, 100, EVERYTHING))
        offset = pages[-1].scanned
    assert [page.scanned for page in pages] == [*range(10, 100, 10), 96]
    assert [r.device for page in pages for r in page.readings] == ["e"]


async def test_a_hole_in_the_log_is_no_end_of_it(store: Store) -> None:
    await store.stored(numbers("d", "m", range(3_000)), numbers("e", "m", range(5_000, 5_010)))
    await store.engine.sweep(3_000)
    found, offset, pages = [], 0, 0
    while offset < 3_010:
        page = await store.engine.read_from(offset, 3_010, 4, EVERYTHING)
        found += [r.offset for r in page.readings]
        offset, pages = page.scanned, pages + 1
    assert found == list(range(3_001, 3_011))
    assert pages < 10


@given(
    drafts,
    st.sampled_from(DEVICES),
    st.integers(0, 9),
    metrics,
    st.integers(0, 41),
    st.integers(0, 41),
    st.booleans(),
    st.integers(1, 5),
    st.data(),
)
@quick
async def test_pages_of_a_range_join_to_the_whole_in_order(
    fresh: Fresh,
    readings: list[Draft],
    removed: str,
    oldest: int,
    names: tuple[str, ...],
    start: int,
    end: int,
    descending: bool,
    limit: int,
    data: st.DataObject,
) -> None:
    device = readings[0][0]
    span = Range(device, names, start, end, descending)
    async with filled(fresh, readings, removed, oldest) as log:
        if device == removed:
            with pytest.raises(NotFound):
                await log.engine.range(span, None, 100, limit)
            return
        until = data.draw(st.integers(0, log.engine.state().head))
        expected = sorted(
            (
                r
                for r in await naive(log)
                if r.device == device
                and (not names or r.metric in names)
                and start <= r.ts < end
                and r.offset <= until
            ),
            key=lambda r: (r.ts, r.offset),
            reverse=descending,
        )
        found: list[Reading] = []
        after = None
        while page := joined(device, await log.engine.range(span, after, until, limit)):
            assert len(page) <= limit
            found += page
            after = page[-1].ts, page[-1].offset
            # What comes later does not enter a range whose end in the log is set.
            await log.append(numbers(device, "m", [min(start + len(found), 40)], "late"))
        assert found == expected


@given(drafts, st.sampled_from([True, False]))
@quick
async def test_a_place_outside_the_range_does_not_widen_it(
    fresh: Fresh, readings: list[Draft], descending: bool
) -> None:
    span = Range(readings[0][0], (), 10, 20, descending)
    async with filled(fresh, readings, "", 0) as log:
        for place in ((0, 0), (40, 10**9)):
            page = await log.engine.range(span, place, 10**9, 100)
            assert all(10 <= ts < 20 for ts in page.times)


def naive_buckets(rows: list[Reading], every: int) -> list[Bucket]:
    groups: dict[tuple[int, str], list[Reading]] = {}
    for r in sorted(rows, key=lambda r: r.ts):
        if isinstance(r.value, int | float) and not isinstance(r.value, bool):
            groups.setdefault((r.ts // every * every, r.metric), []).append(r)
    buckets = []
    for (ts, metric), members in sorted(groups.items()):
        v: list[Any] = [r.value for r in members]
        figures = {
            "avg": math.fsum(v) / len(v),
            "min": min(v),
            "max": max(v),
            "count": len(v),
            "sum": math.fsum(v),
            "first": v[0],
            "last": v[-1],
        }
        buckets.append(Bucket(ts, metric, figures))
    return buckets


@given(
    drafts,
    metrics,
    st.integers(0, 41),
    st.integers(0, 41),
    st.sampled_from([1, 3, 10, 1000]),
    st.lists(st.sampled_from(FUNCTIONS), min_size=1, max_size=3, unique=True).map(tuple),
    st.integers(1, 4),
)
@quick
async def test_pages_of_buckets_join_to_what_the_readings_amount_to(
    fresh: Fresh,
    readings: list[Draft],
    names: tuple[str, ...],
    start: int,
    end: int,
    every: int,
    functions: tuple[str, ...],
    limit: int,
) -> None:
    device = readings[0][0]
    async with filled(fresh, readings, "", 0) as log:
        rows = [
            r
            for r in await naive(log)
            if r.device == device and (not names or r.metric in names) and start <= r.ts < end
        ]
        expected = [
            Bucket(b.ts, b.metric, {name: b.figures[name] for name in functions})
            for b in naive_buckets(rows, every)
        ]
        found: list[Bucket] = []
        after = None
        span = Range(device, names, start, end)
        while page := await log.engine.buckets(span, every, functions, after, limit):
            assert len(page) <= limit
            found += page
            after = page[-1].ts, page[-1].metric
        assert [(b.ts, b.metric) for b in found] == [(b.ts, b.metric) for b in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.figures == pytest.approx(other.figures, rel=1e-12)
            assert list(one.figures) == list(functions)
            assert all(type(one.figures[n]) is type(other.figures[n]) for n in functions)


async def test_buckets_of_a_device_that_is_not_there_are_not_found(store: Store) -> None:
    await store.stored(numbers("d", "m", [1], "text"))
    assert await store.engine.buckets(Range("d", (), 0, 9), 5, ("avg",), None, 9) == []
    with pytest.raises(NotFound):
        await store.engine.buckets(Range("e", (), 0, 9), 5, ("avg",), None, 9)


async def test_a_sum_that_no_double_holds_is_infinite(store: Store) -> None:
    await store.stored(write(*(("d", "m", n, 1.7e308) for n in range(3)), ("d", "m", 9, -1.7e308)))
    figures = [
        b.figures
        for b in await store.engine.buckets(Range("d", (), 0, 10), 3, ("sum", "max", "count"), None, 9)
    ]
    assert figures == [
        {"sum": math.inf, "max": 1.7e308, "count": 3},
        {"sum": -1.7e308, "max": -1.7e308, "count": 1},
    ]


@given(drafts, st.sampled_from(DEVICES), st.integers(0, 9), patterns, st.integers(1, 3))
@quick
async def test_the_newest_values_are_those_with_the_greatest_time_and_pages_join(
    fresh: Fresh, readings: list[Draft], removed: str, oldest: int, wanted: list[str], limit: int
) -> None:
    selection = Selection([parse_pattern(text) for text in wanted], [parse_pattern(">")])
    async with filled(fresh, readings, removed, oldest) as log:
        newest: dict[str, dict[str, Reading]] = {}
        for r in await naive(log):
            known = newest.setdefault(r.device, {}).get(r.metric)
            if known is None or r.ts > known.ts:
                newest[r.device][r.metric] = r
        devices = {device: offset for device, (_, offset) in sorted((await log.devices()).items())}
        found, registered = [], []
        after = ""
        while page := await log.engine.latest_page(selection, after, limit):
            assert len(page) <= limit
            found += page
            after = page[-1].device
        after = ""
        while listed := await log.engine.devices(selection, after, limit):
            assert len(listed) <= limit
            registered += listed
            after = listed[-1].device
        selected = [device for device in devices if selection.takes_device(device)]
        assert [latest.device for latest in found] == [d.device for d in registered] == selected
        for device in registered:
            assert device == await log.engine.device(device.device)
        for latest in found:
            assert latest == await log.engine.latest(latest.device)
            assert latest.offset == devices[latest.device]
            expected = newest.get(latest.device, {})
            assert {m: (s.ts, s.value, s.offset) for m, s in latest.metrics.items()} == {
                m: (r.ts, r.value, r.offset) for m, r in expected.items()
            }
