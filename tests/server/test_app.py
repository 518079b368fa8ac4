"""The parts together: upkeep goes on, what breaks is told, what was opened is closed."""

import asyncio
import threading
from pathlib import Path

import pytest

from server import app
from storage.errors import Unavailable
from tests.raw import until
from tests.running import Running, open_files, run_gate


async def test_a_gate_that_has_ended_leaves_no_task_file_or_thread(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "first") as gate:
        assert (await gate.get("/readyz")).status == 200
    files, tasks = open_files(), len(asyncio.all_tasks())
    threads = {thread.name for thread in threading.enumerate()}
    for _ in range(3):
        async with run_gate(tmp_path / "data") as gate:
            assert (await gate.write("d", {"metric": "m", "value": 1})).status == 200
            assert (await gate.get("/v1/latest")).status == 200
    assert len(asyncio.all_tasks()) == tasks
    assert open_files() <= files
    left = {thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio")}
    assert left <= threads


async def test_upkeep_goes_on_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SWEEP_EVERY", 0.01)
    errors = [Unavailable("away"), Unavailable("still away")]
    swept = asyncio.Event()

    async def sweep(self: app.Gate) -> None:
        if errors:
            raise errors.pop()
        swept.set()

    monkeypatch.setattr(app.Gate, "sweep", sweep)
    async with run_gate(tmp_path / "data") as gate:
        await asyncio.wait_for(swept.wait(), 5)
        assert gate.logged().count("upkeep failed") == 2


async def test_readiness_names_the_part_that_is_away_and_liveness_stays_green(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = await gate.get("/readyz", token="")
    assert (ready.status, ready.json["status"]) == (200, "ready")
    gate.gate.commit.stuck = True
    away = await gate.get("/readyz", token="")
    assert away.status == 503
    assert away.json["parts"]["commit"]["status"] == "unavailable"
    assert away.json["parts"]["database"]["status"] == "ok"
    answer = await gate.write("d", {"metric": "m", "value": 1})
    assert (answer.status, answer.json["code"]) == (503, "unavailable")
    assert "Retry-After" in answer.headers
    assert (await gate.get("/livez", token="")).status == 200
    gate.gate.commit.stuck = False


async def test_the_figures_of_every_part_are_there(gate: Running) -> None:
    await gate.write("d", {"metric": "m", "value": 1, "ts": 1}, {"metric": "m", "value": 1, "ts": 1})
    text = (await gate.get("/metrics", token="")).body.decode()
    for line in (
        "tidegate_readings_stored_total 1.0",
        "tidegate_readings_duplicate_total 1.0",
        "tidegate_log_head 1.0",
        "tidegate_bodies_bytes 0.0",
        "tidegate_connections_open 1.0",
        "tidegate_parse_errors_total 0.0",
    ):
        assert line in text, text[:5000]


async def test_keys_are_reloaded_in_place(gate: Running) -> None:
    old = gate.token()
    (gate.settings.data / "jwt.secret").unlink()
    gate.gate.reload.set()
    await until(lambda: "the keys were reloaded" in gate.logged())
    assert (await gate.get("/v1/devices", token=old)).status == 401
