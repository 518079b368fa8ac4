"""Migrations, and which databases are refused."""

import asyncio

import pytest

from storage.errors import StorageError
from storage.migrations import Migration, MigrationError, load
from storage.postgres import schema
from storage.postgres.pool import Pool
from tests.servers.postgres import PostgresServer
from tests.storage.contract.stores import PostgresStore, opened
from tests.storage.writes import EVERYTHING, numbers


def migration(number: int, sql: str, checksum: str = "") -> Migration:
    return Migration(number, f"{number:04}_x.sql", sql, checksum or f"sum {number}")


def known(patch: pytest.MonkeyPatch, *steps: Migration) -> None:
    patch.setattr("storage.migrations.load", lambda package: list(steps))


async def migrated(url: str) -> list[str]:
    pool = await Pool.open(url, 1)
    try:
        return await schema.migrate(pool)
    finally:
        await pool.close()


async def test_each_is_applied_once_and_named(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = migration(1, "CREATE TABLE tidegate.a (x integer)")
    two = migration(2, "CREATE TABLE tidegate.b (x text DEFAULT '100%'); DROP TABLE tidegate.a")
    known(monkeypatch, one)
    assert await migrated(postgres_url) == ["0001_x.sql"]
    assert await migrated(postgres_url) == []
    known(monkeypatch, one, two)
    # Several at the same moment: each file is applied by one of them.
    at_once = await asyncio.gather(*(migrated(postgres_url) for _ in range(4)))
    assert sorted(at_once) == [[], [], [], ["0002_x.sql"]]


async def test_an_edited_file_and_a_newer_database_are_refused(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = migration(1, "SELECT 1"), migration(2, "SELECT 2")
    known(monkeypatch, one, two)
    await migrated(postgres_url)
    known(monkeypatch, one)
    with pytest.raises(MigrationError, match="run a newer version"):
        await migrated(postgres_url)
    known(monkeypatch, one, migration(2, "SELECT 3", "another sum"))
    with pytest.raises(MigrationError, match="was changed"):
        await migrated(postgres_url)


async def test_one_that_fails_leaves_nothing_behind_and_those_before_it_stay(
    postgres_url: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = migration(1, "CREATE TABLE tidegate.a (x integer)")
    known(
        monkeypatch, good, migration(2, "CREATE TABLE tidegate.b (x integer); INSERT INTO nowhere VALUES (1)")
    )
    with pytest.raises(StorageError, match="nowhere"):
        await migrated(postgres_url)
    name = postgres_url.rpartition("/")[2]
    found = await postgres_server.query(
        "SELECT to_regclass('tidegate.a')::text, to_regclass('tidegate.b')::text", database=name
    )
    assert found == [("tidegate.a", None)]
    known(monkeypatch, good, migration(2, "CREATE TABLE tidegate.b (x integer)"))
    assert await migrated(postgres_url) == ["0002_x.sql"]


async def test_the_migrations_of_the_engine_are_numbered() -> None:
    assert (await asyncio.to_thread(load, "storage.postgres"))[0].name == "0001_initial.sql"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'", "isolation"),
        (
            "CREATE DATABASE {}_latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
            "encoding LATIN1",
        ),
    ],
)
async def test_a_database_on_which_promises_would_not_hold_is_refused(
    postgres_url: str, postgres_server: PostgresServer, change: str, said: str
) -> None:
    name = postgres_url.rpartition("/")[2]
    await postgres_server.query(change.format(name))
    url = postgres_url + "_latin" if "_latin" in change else postgres_url
    with pytest.raises(StorageError, match=said):
        await migrated(url)
    await postgres_server.drop_database(f"{name}_latin")


async def test_a_role_that_only_owns_its_database_is_enough(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    name = postgres_url.rpartition("/")[2]
    role = f"owner_{name}"
    await postgres_server.query(f"CREATE ROLE {role} LOGIN")
    await postgres_server.query(f"ALTER DATABASE {name} OWNER TO {role}")
    async with opened(PostgresStore(postgres_url.replace("postgres@", f"{role}@"))) as store:
        await store.stored(numbers("d", "m", range(5)))
        await store.engine.delete_device("d", readings=True)
        await store.engine.sweep(3)
        await store.engine._upkeep.summarize(0)
        await store.engine.refresh()
        await store.engine.ping()
        assert (await store.engine.read_from(0, 5, 9, EVERYTHING)).readings == []
        await store.reopen()
    await postgres_server.drop_database(name)
    await postgres_server.query(f"DROP ROLE {role}")


async def test_a_commit_is_durable_even_where_the_server_would_not_wait(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    name = postgres_url.rpartition("/")[2]
    await postgres_server.query(f"ALTER DATABASE {name} SET synchronous_commit = off")
    # A trigger that runs at the very end tells what the commit is going to do.
    async with opened(PostgresStore(postgres_url)) as store:
        await store.ask(
            "CREATE TABLE seen (setting text); CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO public.seen VALUES (current_setting('synchronous_commit')); "
            "RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER look AFTER UPDATE ON tidegate.writers "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION look()"
        )
        await store.stored(numbers("d", "m", [1]))
        await store.append(numbers("d", "m", [1]), numbers("d", "m", [2]))
        assert set(await store.ask("SELECT setting FROM seen")) == {("on",)}
