"""The data directory: one process at a time, and an epoch for each log."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import StorageError
from storage.sqlite.directory import DataDirectory, DirectoryLocked, HeadFile
from storage.sqlite.engine import SqliteEngine
from tests.running import ROOT, open_files
from tests.storage.sqlite.store import Store, store
from tests.storage.writes import numbers

HOLD = """
import sys
from pathlib import Path
from storage.sqlite.directory import DataDirectory
held = DataDirectory(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def now() -> int:
    return 1_000_000


async def test_a_second_engine_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    first = await SqliteEngine.open(tmp_path, now)
    with pytest.raises(DirectoryLocked):
        await SqliteEngine.open(tmp_path, now)
    await first.close()
    await (await SqliteEngine.open(tmp_path, now)).close()


def test_another_process_holds_the_directory_until_it_is_gone_even_by_kill_9(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DirectoryLocked):
            DataDirectory(tmp_path)
        other.send_signal(signal.SIGKILL)
        other.wait()
    DataDirectory(tmp_path).release()


async def test_an_engine_that_fails_to_open_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_files()
    with monkeypatch.context() as patch:
        patch.setattr("storage.sqlite.reader.open_reader", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await SqliteEngine.open(tmp_path, now)
    assert open_files() == files
    await (await SqliteEngine.open(tmp_path, now)).close()


async def test_what_is_no_database_is_refused_in_our_words(tmp_path: Path) -> None:
    (tmp_path / "tidegate.db").write_bytes(b"no database at all" * 500)
    with pytest.raises(StorageError):
        await SqliteEngine.open(tmp_path, now)


async def test_a_directory_that_cannot_be_used_is_refused_in_our_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        await SqliteEngine.open(tmp_path / "file", now)
    (tmp_path / "head").mkdir()
    with pytest.raises(StorageError):
        await SqliteEngine.open(tmp_path, now)


def put_back(log: Store, copy: Path) -> None:
    """Stop, replace the database by the copy, start."""
    log.close()
    shutil.copyfile(copy, log.path)
    log._open()


def saved(log: Store) -> Path:
    """A copy of the database, as a backup makes it."""
    copy = log.folder / "copy.db"
    log.ask(f"VACUUM INTO '{copy}'")
    return copy


def test_a_restart_keeps_the_epoch_and_a_new_database_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with store(tmp_path) as log, store(tmp_path / "other") as other:
        epoch = log.writer.state.epoch
        assert epoch != other.writer.state.epoch
        for n in range(3):
            log.stored(numbers("d", "m", [n]))
            log.reopen()
            assert log.writer.state.epoch == epoch
            assert log.writer.state.head == n + 1


def test_a_database_put_back_from_an_older_copy_begins_a_new_epoch(tmp_path: Path) -> None:
    with store(tmp_path) as log:
        log.stored(numbers("d", "m", [1]))
        copy, epoch = saved(log), log.writer.state.epoch
        put_back(log, copy)
        assert log.writer.state.epoch == epoch, "nothing was lost: the positions still hold"
        log.stored(numbers("d", "m", [2]))
        put_back(log, copy)
        assert log.writer.state.epoch != epoch
        assert log.writer.state.head == 1
        epoch = log.writer.state.epoch
        log.reopen()
        assert log.writer.state.epoch == epoch


def test_a_copy_of_the_data_without_its_head_file_begins_a_new_epoch(tmp_path: Path) -> None:
    with store(tmp_path) as log:
        log.stored(numbers("d", "m", [1]))
        epoch = log.writer.state.epoch
        log.close()
        (tmp_path / "head").unlink()
        log._open()
        assert log.writer.state.epoch != epoch
        assert log.writer.state.head == 1


@pytest.mark.parametrize("content", ["", "other 1", "nonsense", "a b c", "\xff\xfe 9", "x -1"])
def test_a_head_file_of_another_log_or_of_none_begins_a_new_epoch(tmp_path: Path, content: str) -> None:
    with store(tmp_path) as log:
        log.stored(numbers("d", "m", [1]))
        epoch = log.writer.state.epoch
        log.close()
        (tmp_path / "head").write_text(content, "latin-1")
        log._open()
        assert log.writer.state.epoch != epoch


def test_a_crash_between_the_commit_and_the_head_file_keeps_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store(tmp_path) as log:
        log.stored(numbers("d", "m", [1]))
        epoch = log.writer.state.epoch
        with monkeypatch.context() as patch:
            patch.setattr(HeadFile, "write", lambda *_: None)
            log.stored(numbers("d", "m", [2]))
        log.reopen()
        assert (log.writer.state.epoch, log.writer.state.head) == (epoch, 2)


def test_a_head_file_on_a_full_disk_is_no_error(tmp_path: Path) -> None:
    full = HeadFile(Path("/dev/full"))
    full.write("epoch", 1)
    full.close()
