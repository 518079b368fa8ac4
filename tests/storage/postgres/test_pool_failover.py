"""A URL with several hosts: the pool stays with the one that takes writes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.errors import Refused, StorageError, Timeout, Unavailable
from storage.postgres.pool import Pool
from tests.running import PATIENCE
from tests.servers.postgres import USER, PostgresServer, postgres, replica
from tests.storage.postgres.watching import until
from tests.watching import own_time, watch_lag

Pair = tuple[PostgresServer, PostgresServer]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with postgres(tmp_path) as primary, replica(primary, tmp_path) as standby:
        yield primary, standby


def together(*servers: PostgresServer, options: str = "") -> str:
    hosts = ",".join(f"{server.host}:{server.port}" for server in servers)
    return f"postgresql://{USER}@{hosts}/postgres{options}"


async def port(pool: Pool) -> int:
    number: int = (await pool.fetch("SELECT inet_server_port()"))[0][0]
    return number


async def follows(pool: Pool, server: PostgresServer) -> float:
    """Seconds until the pool writes to `server`."""

    async def there() -> bool:
        try:
            return await port(pool) == server.port
        except StorageError:
            return False

    return await until(there)


async def test_only_the_primary_is_used_wherever_it_stands(pair: Pair) -> None:
    primary, standby = pair
    for url in (together(primary, standby), together(standby, primary)):
        pool = await Pool.open(url, 2)
        assert await port(pool) == primary.port
        await pool.close()
    with pytest.raises(Unavailable, match="read-only"):
        await Pool.open(together(standby), 1)
    pool = await Pool.open(together(standby, options="?target_session_attrs=any"), 1)
    with pytest.raises(Unavailable, match="25006"):
        await pool.fetch("CREATE TABLE t (a int)")
    await pool.close()


async def test_a_lost_primary_is_left_for_the_promoted_standby(pair: Pair) -> None:
    primary, standby = pair
    pool = await Pool.open(together(primary, standby), 2)
    await pool.fetch("CREATE TABLE t AS SELECT 1 AS a")
    await primary.kill()
    with pytest.raises((Unavailable, Timeout)):
        await asyncio.gather(*(pool.fetch("INSERT INTO t VALUES (2)") for _ in range(2)))
    await standby.promote()
    took = [await follows(pool, standby)]
    await pool.fetch("INSERT INTO t VALUES (3)")
    # A later loss of it is not waited for in vain either.
    await primary.start()
    await standby.stop("immediate")
    took.append(await follows(pool, primary))
    # Whoever is starved only takes longer.
    assert min(took) < 2.5
    await pool.close()


async def test_a_frozen_primary_is_left_for_the_promoted_standby(pair: Pair) -> None:
    primary, standby = pair
    pool = await Pool.open(together(primary, standby), 2, deadline=1)
    primary.freeze()
    async with watch_lag() as lag:
        started = own_time()
        with pytest.raises(Timeout):
            await pool.fetch("SELECT 1")
        assert own_time() - started < 1.5
        await standby.promote()
        await follows(pool, standby)
    assert lag.p99 < 0.05
    await pool.close()


async def test_a_host_that_does_not_exist_costs_no_time(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(host: str, *_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, f"{host} is not known")

    # The name server's own time would count.
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    url = together(postgres_server).replace("@", "@no-such-host.invalid:1,")
    started = own_time()
    pool = await Pool.open(url, 1, connect_timeout=PATIENCE)
    assert own_time() - started < PATIENCE / 2
    with pytest.raises(Refused):
        await pool.fetch("SELECT 1 / 0")
    await pool.close()
