"""deploy/healthcheck.py, what the image's HEALTHCHECK runs: it finds a gate however that listens."""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.deploy.nginx import PLAIN
from tests.running import PATIENCE, ROOT, run_process
from tests.servers.programs import free_port


async def healthy(environment: Mapping[str, str]) -> bool:
    """What the check says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "deploy" / "healthcheck.py"),
        env={"PATH": os.environ["PATH"], **environment},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        _, said = await process.communicate()
    # A line, no traceback.
    assert said.count(b"\n") == (process.returncode or 0)
    return process.returncode == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_gate_that_answers_is_healthy(tmp_path: Path, host: str, tls: bool) -> None:
    settings = {"HOST": host, **PLAIN}
    if tls:
        files = await asyncio.to_thread(certificate, tmp_path)
        settings |= dict(zip(("TLS_CERT", "TLS_KEY"), map(str, files), strict=True))
    async with run_process(tmp_path / "data", **settings) as gate:
        environment = {f"TIDEGATE_{name}": text for name, text in settings.items()}
        assert await healthy({**environment, "TIDEGATE_PORT": str(gate.port)})


async def test_where_nobody_answers_it_is_not() -> None:
    assert not await healthy({"TIDEGATE_HOST": "127.0.0.1", "TIDEGATE_PORT": str(free_port())})
