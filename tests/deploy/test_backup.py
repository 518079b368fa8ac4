"""Backup and restore as docs/operations.md has them: the readings come back, under a new epoch."""

import asyncio
from pathlib import Path

import pytest

from tests.deploy.operations import commands
from tests.running import Caller, run_process
from tests.servers.postgres import PostgresServer
from tests.servers.programs import installed

pytestmark = pytest.mark.system

READINGS = [{"metric": "m", "ts": ts, "value": ts} for ts in range(100)]


async def test_postgresql_comes_back_from_a_dump_with_a_new_epoch(
    tmp_path: Path, postgres_server: PostgresServer, postgres_url: str
) -> None:
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    async with run_process(tmp_path / "before", DATABASE_URL=postgres_url) as gate:
        position = await _filled(gate)
    empty = await postgres_server.create_database()
    restored = postgres_server.database_url(empty)
    try:
        for command in commands("pg_dump", "pg_restore"):
            await _run(command, tmp_path, {"$OLD": postgres_url, "$NEW": restored})
        async with run_process(tmp_path / "after", DATABASE_URL=restored) as gate:
            await _is_back(gate, position)
    finally:
        await postgres_server.drop_database(empty)


async def test_a_copy_of_the_disk_is_given_a_new_epoch_by_hand(tmp_path: Path, postgres_url: str) -> None:
    (tmp_path / "data").mkdir()
    async with run_process(tmp_path / "data", DATABASE_URL=postgres_url) as gate:
        position = await _filled(gate)
    (command,) = commands("psql")
    await _run(command, tmp_path, {"$NEW": postgres_url})
    async with run_process(tmp_path / "data", DATABASE_URL=postgres_url) as gate:
        await _is_back(gate, position)


async def test_sqlite_comes_back_from_a_copy_with_a_new_epoch(tmp_path: Path) -> None:
    data = tmp_path / "data"
    backup, *rest = commands("sqlite3", "rm", "cp")
    async with run_process(data) as gate:
        position = await _filled(gate)
        await _run(backup, tmp_path, {})
        # What is written behind the backup is what a restore loses.
        assert (await gate.write("late.one", *READINGS)).status == 200
    for command in rest:
        await _run(command, tmp_path, {})
    async with run_process(data) as gate:
        await _is_back(gate, position)
        assert (await gate.get("/v1/devices/late.one")).status == 404


async def _filled(gate: Caller) -> str:
    reply = await gate.write("a.b", *READINGS)
    assert reply.status == 200, reply
    position: str = reply.json["position"]
    return position


async def _is_back(gate: Caller, position: str) -> None:
    """All readings are there; a position of before is refused and says why."""
    page = await gate.get("/v1/readings?limit=1000&since=earliest")
    assert [item["value"] for item in page.json["items"]] == [reading["value"] for reading in READINGS]
    gone = await gate.get(f"/v1/readings?since={position}")
    assert (gone.status, gone.json["code"], gone.json["reason"]) == (410, "position_gone", "unknown_epoch")
    assert (await gate.write("a.b", {"metric": "m", "ts": 1000, "value": 1})).json["accepted"] == 1


async def _run(command: list[str], folder: Path, values: dict[str, str]) -> None:
    for name, value in values.items():
        command = [argument.replace(name, value) for argument in command]
    program = installed(command[0], "usr/lib/postgresql/*/bin")
    assert program is not None, f"{command[0]} is not installed"
    process = await asyncio.create_subprocess_exec(program, *command[1:], cwd=folder)
    async with asyncio.timeout(60):
        assert await process.wait() == 0, command
