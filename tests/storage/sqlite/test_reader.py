"""What the contract of the engines does not see of the reader: what it costs, and what it leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from storage.log import Range
from storage.models import Revocation
from storage.patterns import Selection, parse_pattern
from storage.sqlite import reader as reader_module
from storage.sqlite import registry
from storage.sqlite.reader import Reader
from tests.storage.sqlite.store import store
from tests.storage.writes import EVERYTHING, numbers

METRICS = ["m", "n", "o"]


def ask(reader: Reader, work: Callable[..., Any], *args: Any) -> Any:
    """As a thread does it."""
    try:
        return work(reader, *args)
    finally:
        reader.rest()


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
