"""Migrations: applied once, in order, and never to a database that they do not fit."""

import shutil
from pathlib import Path

import apsw
import pytest

from storage import migrations
from storage.errors import StorageError
from storage.migrations import Migration, MigrationError
from storage.sqlite.connection import migrate, open_writer
from storage.sqlite.engine import SqliteEngine
from tests.running import ROOT


def migration(number: int, sql: str, checksum: str = "") -> Migration:
    return Migration(number, f"{number:04}_x.sql", sql, checksum or f"sum {number}")


def known(patch: pytest.MonkeyPatch, *steps: Migration) -> None:
    patch.setattr("storage.migrations.load", lambda package: list(steps))


@pytest.fixture
def database(tmp_path: Path) -> apsw.Connection:
    return open_writer(tmp_path / "x.db")


def test_each_is_applied_once_and_named(database: apsw.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = migration(1, "CREATE TABLE a (x)"), migration(2, "CREATE TABLE b (x); DROP TABLE a")
    known(monkeypatch, one)
    assert migrate(database) == ["0001_x.sql"]
    assert migrate(database) == []
    known(monkeypatch, one, two)
    assert migrate(database) == ["0002_x.sql"]
    assert migrate(database) == []


async def test_an_engine_reports_what_it_applied(tmp_path: Path) -> None:
    for names in (["0001_initial.sql"], []):
        engine = await SqliteEngine.open(tmp_path, lambda: 1)
        assert engine.migrated[:1] == names
        await engine.close()


def test_an_edited_file_is_refused(database: apsw.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, migration(1, "CREATE TABLE a (x)"))
    migrate(database)
    known(monkeypatch, migration(1, "CREATE TABLE a (x, y)", "another sum"))
    with pytest.raises(MigrationError, match="was changed"):
        migrate(database)


def test_a_database_of_a_newer_version_is_refused(
    database: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, migration(1, "CREATE TABLE a (x)"), migration(2, "CREATE TABLE b (x)"))
    migrate(database)
    known(monkeypatch, migration(1, "CREATE TABLE a (x)"))
    with pytest.raises(MigrationError, match="run a newer version"):
        migrate(database)


def test_one_that_fails_leaves_nothing_behind_and_those_before_it_stay(
    database: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = (
        migration(1, "CREATE TABLE a (x)"),
        migration(2, "CREATE TABLE b (x); INSERT INTO nowhere VALUES (1)"),
    )
    known(monkeypatch, good, bad)
    with pytest.raises(StorageError, match="nowhere"):
        migrate(database)
    assert not database.in_transaction
    assert database.execute("SELECT number FROM migrations").fetchall() == [(1,)]
    assert not database.table_exists("main", "b")
    known(monkeypatch, good, migration(2, "CREATE TABLE b (x)"))
    assert migrate(database) == ["0002_x.sql"]


@pytest.mark.parametrize(
    "names", [["0001_a.sql", "0003_b.sql"], ["0002_a.sql"], ["0001_a.sql", "0001_b.sql"]]
)
def test_a_gap_in_the_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("SELECT 1")
    monkeypatch.setattr("storage.migrations.resources.files", lambda package: tmp_path)
    with pytest.raises(MigrationError, match="without a gap"):
        migrations.load("any")


def test_the_migrations_of_the_engine_are_numbered_and_change_their_sum_with_their_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = migrations.load("storage.sqlite")
    assert found[0].name == "0001_initial.sql"
    shutil.copytree(ROOT / "storage" / "sqlite" / "migrations", tmp_path / "migrations")
    with (tmp_path / "migrations" / "0001_initial.sql").open("a") as file:
        file.write("\n")
    (tmp_path / "migrations" / "README").write_text("no migration")
    monkeypatch.setattr("storage.migrations.resources.files", lambda package: tmp_path)
    edited = migrations.load("any")
    assert [m.name for m in edited] == [m.name for m in found]
    assert edited[0].checksum != found[0].checksum
