"""What is read against naive computations over all rows."""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import NotFound
from storage.log import Range, RangePage
from storage.models import FUNCTIONS, Bucket, Draft, Reading, Revocation, Value
from storage.patterns import Selection, parse_pattern
from storage.sqlite import reader as reader_module
from storage.sqlite import registry
from storage.sqlite.reader import Reader
from storage.sqlite.values import decode_value
from tests.storage.sqlite.store import EVERYTHING, Store, numbers, store, write

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
metrics = st.lists(st.sampled_from([*METRICS, "none"]), unique=True, max_size=3).map(tuple)
patterns = st.lists(st.sampled_from(["a", "a.>", "*.z", "b", ">", "nobody", "*"]), min_size=1, max_size=3)
quick = settings(max_examples=60, deadline=None)


@contextmanager
def filled(readings: list[Draft], removed: str, oldest: int) -> Iterator[tuple[Store, Reader]]:
    """A log with these readings, one device deleted with its own, and some gone by age."""
    with tempfile.TemporaryDirectory() as folder, store(Path(folder)) as log, log.reader() as reader:
        log.append(*(write(draft, received=n) for n, draft in enumerate(readings)))
        if any(draft[0] == removed for draft in readings):
            log.writer.delete_device(removed, readings=True)
        if oldest:
            log.sweep(oldest)
        yield log, reader


def naive(log: Store) -> list[Reading]:
    """All that is there."""
    return [
        Reading(o, device, metric, ts, decode_value(value)) for o, device, metric, ts, value in log.rows()
    ]


def joined(device: str, page: RangePage) -> list[Reading]:
    """The readings of a page."""
    columns = zip(page.offsets, page.metrics, page.times, page.values, strict=True)
    return [Reading(offset, device, metric, ts, value) for offset, metric, ts, value in columns]


def ask(reader: Reader, work: Callable[..., Any], *args: Any) -> Any:
    """As a thread does it."""
    try:
        return work(reader, *args)
    finally:
        reader.rest()


@given(drafts, st.sampled_from(DEVICES), st.integers(0, 9), patterns, metrics, st.integers(1, 7), st.data())
@quick
def test_pages_of_the_log_join_to_all_that_was_selected(
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
    with filled(readings, removed, oldest) as (log, reader), pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "SEARCH_ROWS", rows)
        until = data.draw(st.integers(0, log.writer.state.head))
        found, offset = [], 0
        while offset < until:
            page = ask(reader, Reader.read_from, offset, until, limit, selection)
            assert len(page.readings) <= limit
            assert offset < page.scanned <= until
            assert all(offset < r.offset <= page.scanned for r in page.readings)
            found += page.readings
            offset = page.scanned
        assert found == [r for r in naive(log) if r.offset <= until and selection.takes(r.device, r.metric)]


def test_a_page_of_the_log_searches_so_many_rows_at_most_also_where_a_device_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "SEARCH_ROWS", 10)
    with store(tmp_path) as log, log.reader() as reader:
        log.stored(numbers("d", "m", range(95)), numbers("e", "m", [1]))
        log.writer.delete_device("d", readings=True)
        offset, pages = 0, []
        while offset < 96:
            pages.append(ask(reader, Reader.read_from, offset, 96, 100, EVERYTHING))
            offset = pages[-1].scanned
        assert [page.scanned for page in pages] == [*range(10, 100, 10), 96]
        assert [r.device for page in pages for r in page.readings] == ["e"]


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
def test_pages_of_a_range_join_to_the_whole_in_order(
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
    with filled(readings, removed, oldest) as (log, reader):
        if device == removed:
            with pytest.raises(NotFound):
                ask(reader, Reader.range, span, None, 100, limit)
            return
        until = data.draw(st.integers(0, log.writer.state.head))
        expected = sorted(
            (
                r
                for r in naive(log)
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
        while page := joined(device, ask(reader, Reader.range, span, after, until, limit)):
            assert len(page) <= limit
            found += page
            after = page[-1].ts, page[-1].offset
            # What comes later does not enter a range whose end in the log is set.
            log.append(numbers(device, "m", [min(start + len(found), 40)], "late"))
        assert found == expected


@given(drafts, st.sampled_from([True, False]))
@quick
def test_a_place_outside_the_range_does_not_widen_it(readings: list[Draft], descending: bool) -> None:
    span = Range(readings[0][0], (), 10, 20, descending)
    with filled(readings, "", 0) as (_, reader):
        for place in ((0, 0), (40, 10**9)):
            page = ask(reader, Reader.range, span, place, 10**9, 100)
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
def test_pages_of_buckets_join_to_what_the_readings_amount_to(
    readings: list[Draft],
    names: tuple[str, ...],
    start: int,
    end: int,
    every: int,
    functions: tuple[str, ...],
    limit: int,
) -> None:
    device = readings[0][0]
    with filled(readings, "", 0) as (log, reader):
        rows = [
            r
            for r in naive(log)
            if r.device == device and (not names or r.metric in names) and start <= r.ts < end
        ]
        expected = [
            Bucket(b.ts, b.metric, {name: b.figures[name] for name in functions})
            for b in naive_buckets(rows, every)
        ]
        found: list[Bucket] = []
        after = None
        span = Range(device, names, start, end)
        while page := ask(reader, Reader.buckets, span, every, functions, after, limit):
            assert len(page) <= limit
            found += page
            after = page[-1].ts, page[-1].metric
        assert [(b.ts, b.metric) for b in found] == [(b.ts, b.metric) for b in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.figures == pytest.approx(other.figures, rel=1e-12)
            assert list(one.figures) == list(functions)


@given(drafts, st.sampled_from(DEVICES), st.integers(0, 9), patterns, st.integers(1, 3))
@quick
def test_the_newest_values_are_those_with_the_greatest_time_and_pages_join(
    readings: list[Draft], removed: str, oldest: int, wanted: list[str], limit: int
) -> None:
    selection = Selection([parse_pattern(text) for text in wanted], [parse_pattern(">")])
    with filled(readings, removed, oldest) as (log, reader):
        newest: dict[str, dict[str, Reading]] = {}
        for r in naive(log):
            known = newest.setdefault(r.device, {}).get(r.metric)
            if known is None or r.ts > known.ts:
                newest[r.device][r.metric] = r
        devices = dict(log.ask("SELECT device, last_offset FROM devices ORDER BY device"))
        found, registered = [], []
        after = ""
        while page := ask(reader, Reader.latest_page, selection, after, limit):
            assert len(page) <= limit
            found += page
            after = page[-1].device
        after = ""
        while listed := ask(reader, Reader.devices, selection, after, limit):
            registered += listed
            after = listed[-1].device
        selected = [device for device in devices if selection.takes_device(device)]
        assert [latest.device for latest in found] == [d.device for d in registered] == selected
        for latest in found:
            assert latest == ask(reader, Reader.latest, latest.device)
            assert latest.offset == devices[latest.device]
            expected = newest.get(latest.device, {})
            assert {m: (s.ts, s.value, s.offset) for m, s in latest.metrics.items()} == {
                m: (r.ts, r.value, r.offset) for m, r in expected.items()
            }


def test_the_list_of_a_few_devices_does_not_walk_through_those_before_them(tmp_path: Path) -> None:
    with store(tmp_path) as log, log.reader() as reader:
        log.stored(*(numbers(f"d{n:05}", "m", [1]) for n in range(3_000)), numbers("z.z", "m", [1]))
        steps = 0

        def count() -> bool:
            nonlocal steps
            steps += 1
            return False

        reader._connection.set_progress_handler(count, 100)
        few = Selection([parse_pattern("z.>")], [parse_pattern(">")])
        assert [d.device for d in ask(reader, Reader.devices, few, "", 10)] == ["z.z"]
        assert [d.device for d in ask(reader, Reader.devices, few, "d00002", 10)] == ["z.z"]
        assert steps < 5


def test_clients_devices_and_revocations_are_kept_as_they_were_given(tmp_path: Path) -> None:
    with store(tmp_path) as log, log.reader() as reader:
        run = log.writer.run
        assert run(registry.put_device, "d", "one", '{"a":"b"}', 5)
        assert not run(registry.put_device, "d", "two", '{"c":"d"}', 6)
        device = ask(reader, Reader.device, "d")
        assert (device.name, device.labels, device.created_at, device.last_seen) == ("two", {"c": "d"}, 5, 0)
        run(registry.revoke, Revocation("subject", "x", 10, 100))
        run(registry.revoke, Revocation("subject", "x", 8, 120))
        run(registry.revoke, Revocation("token", "x", 9, 50))
        assert ask(reader, Reader.revocations, 51) == [Revocation("subject", "x", 10, 120)]
        assert len(ask(reader, Reader.revocations, 50)) == 2
        log.writer.forget_expired(51 * 1_000_000)
        assert log.ask("SELECT id, kind FROM revocations") == [("x", "subject")]


def test_an_error_that_is_kept_with_its_traceback_leaves_no_old_snapshot_behind(tmp_path: Path) -> None:
    """Each of its frames holds cursors that are half read."""
    kept: list[BaseException] = []
    with store(tmp_path) as log, log.reader() as reader:
        log.stored(*(numbers("d", metric, range(50)) for metric in METRICS))
        works: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (Reader.range, (Range("d", (), 0, 50), None, 10**9, 100)),
            (Reader.read_from, (0, 10**9, 100, EVERYTHING)),
            (Reader.latest_page, (EVERYTHING, "", 100)),
            (Reader.devices, (EVERYTHING, "", 100)),
            (Reader.buckets, (Range("d", (), 0, 50), 10, ("avg",), None, 100)),
        ]
        for n, (work, args) in enumerate(works):
            with pytest.MonkeyPatch.context() as patch:
                for name in ("decode_value", "decode_values", "_bucket_place"):
                    patch.setattr(reader_module, name, broken)
                patch.setattr(Reader, "_device", broken)
                with pytest.raises(ArithmeticError) as caught:
                    ask(reader, work, *args)
                kept.append(caught.value)
            log.stored(numbers("d", "m", [1_000 + n]))
            assert ask(reader, Reader.latest, "d").metrics["m"].ts == 1_000 + n
            assert not reader._connection.in_transaction
        # Nobody's snapshot holds the WAL: it can be folded in whole.
        done = log.writer.run(lambda c: c.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE))
        assert done == (0, 0)
    assert len(kept) == len(works)


def broken(*_: object) -> Any:
    raise ArithmeticError


def test_an_interrupt_between_two_statements_ends_the_job_and_not_the_next(tmp_path: Path) -> None:
    with store(tmp_path) as log, log.reader() as reader:
        log.stored(numbers("d", "m", range(5)))
        reader.interrupt()
        with pytest.raises(apsw.InterruptError):
            ask(reader, Reader.latest, "d")
        assert ask(reader, Reader.latest, "d").offset == 5


def test_a_statement_is_compiled_once_whatever_is_bound(tmp_path: Path) -> None:
    compiled: list[str | None] = []

    def note(_: int, table: str | None, *__: object) -> int:
        """SQLite asks while it compiles."""
        compiled.append(table)
        return apsw.SQLITE_OK

    with store(tmp_path) as log, log.reader() as reader:
        log.stored(numbers("d", "m", range(50)))
        reader._connection.authorizer = note
        ask(reader, Reader.range, Range("d", (), 0, 50), None, 10**9, 10)
        assert "readings" in compiled
        compiled.clear()
        for start in range(10):
            ask(reader, Reader.range, Range("d", (), start, 50 - start), None, 10**9, 10)
        assert not compiled
