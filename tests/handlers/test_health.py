import asyncio
from pathlib import Path

import pytest

from storage.errors import Unavailable
from tests.handlers.wire import problem
from tests.running import Running, run_gate


async def test_livez_says_that_the_process_answers(gate: Running) -> None:
    reply = await gate.get("/livez", token="")
    assert (reply.status, reply.json) == (200, {"status": "ok"})
    assert reply.headers["Cache-Control"] == "no-store"


async def test_readyz_tells_each_part_and_is_503_while_one_does_not_work(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = await gate.get("/readyz", token="")
    assert reply.status == 200
    assert reply.json["status"] == "ready"
    assert {part["status"] for part in reply.json["parts"].values()} == {"ok"}
    assert "database" in reply.json["parts"]
    monkeypatch.setattr(gate.gate.commit, "stuck", True)
    reply = await gate.get("/readyz", token="")
    assert reply.status == 503
    assert reply.json["status"] == "unavailable"
    assert reply.json["parts"]["commit"]["status"] == "unavailable"
    assert reply.json["parts"]["database"]["status"] == "ok"
    assert (await gate.get("/livez", token="")).status == 200


async def test_readyz_waits_for_no_part_that_hangs(gate: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async def away() -> None:
        raise Unavailable("it is away")

    monkeypatch.setattr("handlers.health.PROBE_TIMEOUT", 0.05)
    monkeypatch.setitem(gate.gate.health._probes, "slow", hang)
    monkeypatch.setitem(gate.gate.health._probes, "gone", away)
    reply = await gate.get("/readyz", token="")
    assert reply.status == 503
    assert reply.json["parts"]["slow"]["status"] == "unavailable"
    assert reply.json["parts"]["gone"] == {"status": "unavailable", "detail": "it is away"}


async def test_a_gate_that_is_closing_should_get_no_traffic(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # New connections are turned away by then; those that are open may ask once more.
    await gate.get("/livez")
    monkeypatch.setattr(gate.gate.server.lane, "closing", True)
    reply = await gate.get("/readyz", token="")
    assert (reply.status, reply.json["parts"]["gate"]) == (503, {"status": "closing"})
    assert reply.headers["Connection"] == "close"


async def test_metrics_are_for_prometheus(gate: Running) -> None:
    await gate.write("a", {"metric": "t", "value": 1})
    reply = await gate.get("/metrics", token="")
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/plain")
    assert b"tidegate_readings_stored_total 1" in reply.body
    openmetrics = await gate.get("/metrics", headers={"Accept": "application/openmetrics-text, */*;q=0.1"})
    assert openmetrics.status == 200


async def test_metrics_ask_for_their_token_if_there_is_one(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", METRICS_TOKEN="scrape-me") as gate:
        for token in ("", "wrong", "scrape-m\u00e9"):
            reply = await gate.get("/metrics", token="", headers={"Authorization": f"Bearer {token}"})
            problem(reply, 401, "token_missing")
            assert "WWW-Authenticate" in reply.headers
        assert (await gate.get("/metrics", token="scrape-me")).status == 200


async def test_rejected_items_are_counted(gate: Running) -> None:
    await gate.write("a", {"metric": "t", "value": 1}, {}, {"metric": 1})
    assert b"tidegate_readings_rejected_total 2" in (await gate.get("/metrics")).body
