"""Fixtures of real servers: one PostgreSQL and one Redis for the whole run, empty for each test that asks."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

import pytest

from tests.servers import programs
from tests.servers.pgbouncer import Pgbouncer, pgbouncer
from tests.servers.postgres import PostgresServer, postgres
from tests.servers.redis import RedisCluster, RedisServer, redis, redis_cluster

T = TypeVar("T")


@contextmanager
def _for_all(server: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Keep `server` for tests whose event loops differ: what runs it here is a loop of its own."""
    with asyncio.Runner() as runner:

        def complete(coroutine: Coroutine[Any, Any, Any]) -> Any:
            return runner.get_loop().run_until_complete(coroutine)

        entered = complete(_await(server.__aenter__()))
        try:
            yield entered
        finally:
            complete(_await(server.__aexit__(None, None, None)))


async def _await(awaitable: Any) -> Any:
    return await awaitable


@pytest.fixture(scope="session")
def programs_found() -> Iterator[None]:
    """At the end removes what was copied of wheels for the unprivileged user."""
    yield
    programs.remove_copies()


@pytest.fixture(scope="session")
def postgres_server(
    programs_found: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PostgresServer]:
    """One PostgreSQL for the run. Whoever stops or freezes one takes one of his own."""
    with _for_all(postgres(tmp_path_factory.mktemp("postgres"))) as server:
        yield server


@pytest.fixture
async def postgres_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """A new empty database."""
    name = await postgres_server.create_database()
    yield postgres_server.database_url(name)
    await postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def pgbouncer_server(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pgbouncer]:
    """A pgbouncer before the PostgreSQL of the run, in transaction mode."""
    with _for_all(pgbouncer(postgres_server, tmp_path_factory.mktemp("pgbouncer"))) as bouncer:
        yield bouncer


@pytest.fixture
def pgbouncer_url(pgbouncer_server: Pgbouncer, postgres_url: str) -> str:
    """The new empty database, through pgbouncer."""
    return pgbouncer_server.through(postgres_url)


@pytest.fixture(scope="session")
def redis_server(programs_found: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for the run."""
    with _for_all(redis(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture
async def redis_url(redis_server: RedisServer) -> str:
    """The Redis of the run, emptied."""
    await redis_server.clear()
    return redis_server.url


@pytest.fixture(scope="session")
def redis_cluster_server(
    programs_found: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisCluster]:
    """A cluster of three primaries for the run."""
    with _for_all(redis_cluster(tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster
