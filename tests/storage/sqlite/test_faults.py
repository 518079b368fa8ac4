"""Full disks and I/O errors: what was acknowledged is there, what was not does no harm (F27)."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from storage import errors
from storage.models import Outcome
from storage.sqlite import connection, registry
from storage.sqlite.connection import open_writer
from tests.storage.sqlite.faults import NAME, Faults, faults
from tests.storage.sqlite.store import Store, store
from tests.storage.writes import numbers


@pytest.fixture
def faulty() -> Iterator[Faults]:
    with faults() as made:
        yield made


def limit(log: Store, pages: int) -> None:
    """Let the database grow to so many pages at most."""
    log.writer.run(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchall())


def test_a_full_disk_stores_nothing_says_so_and_recovers_when_there_is_space(tmp_path: Path) -> None:
    with store(tmp_path) as log:
        log.stored(numbers("d", "m", range(5)))
        before, state = log.rows(), log.writer.state
        limit(log, 1)
        for _ in range(3):
            refused = log.append(*(numbers("e", "m", [n], "x" * 1024) for n in range(300)))
            assert {type(result) for result in refused} == {errors.Full}
            assert log.rows() == before
            assert log.writer.state == state
            assert [row[0] for row in log.ask("SELECT device FROM devices")] == ["d"]
        limit(log, 1_000_000)
        assert [r.offset for r in log.stored(numbers("e", "m", [1]))] == [6]


def test_a_full_disk_is_called_full_by_every_statement_that_writes(tmp_path: Path) -> None:
    with store(tmp_path) as log:
        log.stored(numbers("d", "m", [1]))
        limit(log, 1)
        with pytest.raises(errors.Full):
            log.writer.run(registry.put_device, "d", "x" * 100_000, "{}", 1)
        limit(log, 1_000_000)
        assert log.writer.run(registry.put_device, "other", "", "{}", 1)


def test_a_disk_that_is_full_at_any_call_is_called_full(tmp_path: Path, faulty: Faults) -> None:
    with store(tmp_path, NAME) as log, log.reader():
        for n in range(1, 30):
            faulty.arm(n, apsw.SQLITE_FULL)
            results = log.append(numbers("d", "m", [n]), numbers(f"e{n}", "m", [n]))
            hit = faulty.hits
            faulty.arm(0)
            assert {type(result) for result in results} == ({errors.Full} if hit else {Outcome})
            if not hit:
                break
        else:
            pytest.fail("no call of a commit was left")
        assert n > 3
        assert [row[0] for row in log.rows()] == [1, 2]


def history(log: Store) -> tuple[set[int], set[int]]:
    """Write this and that; the timestamps that were acknowledged, and those that were not."""
    acked: set[int] = set()
    failed: set[int] = set()
    for n in range(10, 22):
        if n == 14:
            attempt(lambda: log.writer.delete_device("gone", readings=True))
        if n == 17:
            attempt(lambda: log.sweep(3))
        if n == 19:
            attempt(lambda: log.writer.run(registry.put_device, "d", "name", "{}", 1))
        writes = [numbers("d", "m", [n], f"value {n}"), numbers("d", f"m{n}", [n], "x" * 1024)]
        results = log.append(*writes)
        assert len({type(result) for result in results}) == 1
        if isinstance(results[0], Outcome):
            acked.add(n)
        else:
            assert isinstance(results[0], errors.Unavailable), results
            failed.add(n)
    return acked, failed


def attempt(work: Callable[[], object]) -> None:
    with contextlib.suppress(errors.Unavailable):
        work()


@pytest.mark.parametrize("error", [apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_WRITE])
def test_after_an_io_error_at_any_call_what_was_acknowledged_is_there_and_the_log_goes_on(
    tmp_path: Path, faulty: Faults, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    # Checkpoints fall into the history too.
    monkeypatch.setattr("storage.sqlite.writer.FOLD_PAGES", 25)
    for n in range(1, 1_000):
        with tempfile.TemporaryDirectory() as folder, store(Path(folder), NAME) as log:
            log.stored(numbers("gone", "m", range(5)), numbers("d", "m", range(5)))
            # As in the engine: a connection that closes is not the last one.
            with log.reader():
                faulty.arm(n, error)
                faulty.broken.clear()
                faulty.touched.clear()
                acked, failed = history(log)
                hit = faulty.hits
                faulty.arm(0)
                check(log, acked, failed, n)
                if failed:
                    assert not faulty.touched, f"call {n}: synced again after a failed sync"
                # It goes on, and a restart finds the same.
                again = log.append(*(numbers("d", "m", [t], f"value {t}") for t in failed))
                assert [r.accepted + r.duplicates for r in again] == [1] * len(failed)
                log.stored(numbers("d", "m", [99]))
            before, state = log.rows(), log.writer.state
            log.reopen()
            assert (log.rows(), log.writer.state) == (before, state)
            if not hit:
                break
    else:
        pytest.fail("the history never came to its end")
    assert n > 40


def check(log: Store, acked: set[int], failed: set[int], n: int) -> None:
    assert log.ask("PRAGMA integrity_check") == [("ok",)]
    stamps = [row[3] for row in log.rows() if row[1:3] == ("d", "m")]
    assert len(stamps) == len(set(stamps))
    assert acked <= set(stamps), f"call {n}: acknowledged and lost"
    assert len(failed) <= 1, f"call {n}: one error spoiled {failed}"
    # With readers in, what failed does not come back.
    assert not failed & set(stamps)
    offsets = [row[0] for row in log.ask("SELECT offset FROM readings ORDER BY offset")]
    assert offsets[-2 * len(acked) :] == list(range(11, 11 + 2 * len(acked)))
    assert log.writer.state.head == offsets[-1]


def test_a_writer_that_cannot_reopen_says_so_and_goes_on_when_it_can(
    tmp_path: Path, faulty: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store(tmp_path, NAME) as log, log.reader():
        log.stored(numbers("d", "m", [1]))
        faulty.arm(1)
        assert isinstance(log.append(numbers("d", "m", [2]))[0], errors.Unavailable)
        faulty.arm(0)
        with monkeypatch.context() as patch:
            patch.setattr(
                "storage.sqlite.writer.open_writer", lambda path, vfs: open_writer(path / "nowhere", vfs)
            )
            for n in (3, 4):
                assert isinstance(log.append(numbers("d", "m", [n]))[0], errors.Unavailable)
                with pytest.raises(errors.Unavailable):
                    log.writer.run(registry.put_device, "d", "", "{}", 1)
                with pytest.raises(errors.Unavailable):
                    log.writer.sweep(1)
                with pytest.raises(errors.Unavailable):
                    log.writer.delete_device("d", readings=True)
        assert [r.offset for r in log.stored(numbers("d", "m", [5]))] == [2]
        assert [row[3] for row in log.rows()] == [1, 5]


def test_a_deletion_whose_outcome_is_unknown_leaves_no_memory_of_its_series(
    tmp_path: Path, faulty: Faults
) -> None:
    """Else a later reading would join a series that is about to be swept."""
    with store(tmp_path, NAME) as log, log.reader():
        log.stored(numbers("d", "m", [1]))
        faulty.arm(1)
        with pytest.raises(errors.Unavailable):
            log.writer.delete_device("d", readings=True)
        faulty.arm(0)
        assert not log.writer._series
        log.writer.delete_device("d", readings=True)
        log.stored(numbers("d", "m", [2]))
        log.sweep(0)
        assert [row[3] for row in log.rows()] == [2]


def test_a_commit_that_failed_and_comes_back_by_recovery_keeps_its_offsets(
    tmp_path: Path, faulty: Faults
) -> None:
    """Alone on the file, SQLite recovers frames whose sync failed: an unknown outcome, read again."""
    with store(tmp_path, NAME) as log:
        log.stored(numbers("d", "m", [1]))
        faulty.arm(1)
        log.append(numbers("d", "m", [2]))
        calls = faulty.calls
        faulty.arm(calls + 20)
        log.append(numbers("d", "m", [3]))
        faulty.arm(0)
        again = log.append(numbers("d", "m", [1, 2, 3, 4]))[0]
        assert again.accepted + again.duplicates == 4
        assert [row[0] for row in log.rows()] == [1, 2, 3, 4]
        assert sorted(row[3] for row in log.rows()) == [1, 2, 3, 4]


def test_a_commit_whose_writers_were_told_that_it_failed_does_not_come_back_in_this_process(
    tmp_path: Path, faulty: Faults
) -> None:
    """Its frames lie whole in the WAL; only a recovery would take them in."""
    with store(tmp_path, NAME) as log, log.reader() as reader:
        log.stored(numbers("d", "m", [1]))
        faulty.arm(0)
        log.stored(numbers("d", "m", [2]))
        # The sync of the commit fails, and everything after it for a while.
        faulty.arm(faulty.calls, apsw.SQLITE_IOERR_FSYNC, times=10**6)
        for n in (3, 4, 5):
            assert isinstance(log.append(numbers("d", "m", [n]))[0], errors.Unavailable)
        assert faulty.broken
        faulty.arm(0)
        assert [r.offset for r in log.stored(numbers("d", "m", [6]))] == [3]
        assert [row[3] for row in log.rows()] == [1, 2, 6]
        assert reader.latest("d").offset == 3


def test_the_writer_really_waits_for_the_device(tmp_path: Path, faulty: Faults) -> None:
    made = open_writer(tmp_path / "x.db", NAME)
    assert made.execute("PRAGMA journal_mode").get == "wal"
    assert made.execute("PRAGMA synchronous").get == 2
    made.close()


@pytest.mark.parametrize(("name", "wanted"), [("journal_mode", "MEMORY"), ("synchronous", "NORMAL")])
def test_a_database_that_cannot_keep_the_promise_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, wanted: str
) -> None:
    """As on a file system without shared memory, where WAL silently stays off."""
    vital = tuple((n, wanted if n == name else w, confirmed) for n, w, confirmed in connection._VITAL)
    monkeypatch.setattr(connection, "_VITAL", vital)
    with pytest.raises(errors.StorageError, match=name):
        open_writer(tmp_path / "x.db")
