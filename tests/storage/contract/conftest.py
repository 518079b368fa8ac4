"""Every test here runs over every engine."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.running import PATIENCE
from tests.storage.contract.stores import Fresh, PostgresStore, SqliteStore, Store, opened


@pytest.fixture(params=["sqlite", "postgres", pytest.param("pgbouncer", marks=pytest.mark.system)])
def fresh(request: pytest.FixtureRequest) -> Fresh:
    """Makes empty logs, one after the other."""
    if request.param == "sqlite":
        return _fresh_sqlite
    url = request.getfixturevalue("postgres_url" if request.param == "postgres" else "pgbouncer_url")
    made = PostgresStore(url)

    @asynccontextmanager
    async def fresh_postgres() -> AsyncIterator[Store]:
        if await made.ask("SELECT to_regclass('tidegate.head')") != [(None,)]:
            await made.clear()
        async with opened(made) as store:
            yield store

    return fresh_postgres


@asynccontextmanager
async def _fresh_sqlite() -> AsyncIterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        async with opened(SqliteStore(Path(folder))) as store:
            yield store


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is promised here is what happens, not how soon: large writes on a starved server."""
    monkeypatch.setattr("storage.postgres.writer.DEADLINE", PATIENCE)


@pytest.fixture
async def store(fresh: Fresh) -> AsyncIterator[Store]:
    """An empty log."""
    async with fresh() as made:
        yield made
