"""With which aiohttp the gate uses the fast lane, and what it says if it does not."""

import asyncio
import json
import re
import signal
import sys
from pathlib import Path

import aiohttp
import pytest
from aiohttp.http import HttpRequestParser

from server import compat
from tests.raw import Raw, request, until
from tests.running import PATIENCE, ROOT, Running, run_gate
from tests.server.commands import environment
from tests.server.lanes import HITS, figure
from tests.servers.programs import free_port


def test_the_pinned_aiohttp_is_one_that_was_tested_and_is_the_one_that_is_here() -> None:
    pins = re.findall(r"^ *aiohttp==(\S+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert len(pins) == 1
    assert pins[0] in compat.TESTED
    assert aiohttp.__version__ in compat.TESTED
    assert HttpRequestParser.__module__ == compat.C_PARSER
    assert compat.obstacle() == ""


@pytest.mark.parametrize("version", ["3.14.6", "3.15.0", "4.0.0a1", "3.14.4"])
async def test_with_an_untested_aiohttp_the_gate_starts_on_the_common_lane_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(aiohttp, "__version__", version)
    async with run_gate(tmp_path / "data", FAST_LANE="1", METRICS_PORT=str(free_port())) as gate:
        await warm(gate)
        assert await figure(gate, HITS) == 0
        await until(lambda: "the fast lane is off" in gate.logged())
    warnings = [line for line in map(json.loads, gate.logged().splitlines()) if line["level"] == "warning"]
    assert [line["message"] for line in warnings] == ["the fast lane is off"]
    reason = warnings[0]["reason"]
    assert f"aiohttp is {version}" in reason
    assert "3.14.5" in reason
    assert "TIDEGATE_FAST_LANE=0" in reason


async def test_who_does_not_want_the_fast_lane_is_not_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiohttp, "__version__", "3.15.0")
    async with run_gate(tmp_path / "data", FAST_LANE="0") as gate:
        await warm(gate)
    assert '"warning"' not in gate.logged()


async def test_with_the_tested_aiohttp_the_fast_lane_is_on_and_nothing_is_said(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", FAST_LANE="1") as gate:
        await warm(gate)
        assert await figure(gate, HITS) > 0
    assert '"warning"' not in gate.logged()


async def test_without_the_c_parser_it_starts_on_the_common_lane_and_says_so_once(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "server",
            "serve",
            cwd=ROOT,
            env=environment(tmp_path / "data", PORT="0", FAST_LANE="1") | {"AIOHTTP_NO_EXTENSIONS": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr.fileno(),
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = (await process.stdout.readline()).decode()
        async with await Raw.open(int(line.partition(",")[0].rpartition(":")[2])) as connection:
            for _ in range(4):
                assert (await connection.ask(request("GET", "/livez"))).status == 200
            text = (await connection.ask(request("GET", "/metrics"))).body.decode()
        assert 'tidegate_cache_hits_total{cache="head"} 0.0' in text
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (warning,) = [line for line in lines if line["level"] == "warning"]
    assert warning["message"] == "the fast lane is off"
    assert "C parser" in warning["reason"]
    assert "AIOHTTP_NO_EXTENSIONS" in warning["reason"]


async def warm(gate: Running) -> None:
    """The same request again and again, which the fast lane would know."""
    async with await Raw.open(gate.port) as connection:
        for _ in range(4):
            assert (await connection.ask(request("GET", "/livez"))).status == 200
