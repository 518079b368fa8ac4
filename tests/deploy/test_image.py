"""The image: its steps, replayed in an empty folder, make a gate that runs without rights."""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.deploy.dockerfile import Replay, Stage, context, instructions
from tests.raw import Raw, request
from tests.running import PATIENCE, ROOT
from tests.servers.programs import free_port

DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def image() -> Iterator[Stage]:
    """The last stage, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="tidegate-image-") as folder:
        os.chmod(folder, 0o755)
        yield Replay(Path(folder)).run(DOCKERFILE)


def test_only_what_is_needed_is_in_the_context() -> None:
    tops = {path.parts[0] for path in context()}
    assert tops == {
        *("requirements", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"),
        *("server", "handlers", "auth", "storage", "deploy"),
    }
    assert {str(path) for path in context() if path.parts[0] in ("deploy", "requirements")} == {
        "deploy/healthcheck.py",
        "requirements/build.txt",
        "requirements/runtime.txt",
    }


def test_everything_that_comes_from_outside_is_pinned_by_its_hash() -> None:
    installs = [
        part.strip()
        for name, arguments in instructions(DOCKERFILE)
        if name == "RUN"
        for part in arguments.split("&&")
        if "pip " in part
    ]
    assert len(installs) == 4
    for install in installs:
        outside = "-r requirements/" in install
        assert outside == ("--require-hashes" in install), install
        assert outside or "--no-deps" in install, install
        assert "--no-cache-dir" in install, install


@pytest.mark.system
async def test_the_installed_gate_runs_without_rights_and_its_health_is_seen(image: Stage) -> None:
    before = _files(image)
    environment = image.variables() | {"TIDEGATE_PORT": str(free_port())}
    async with _running(image, environment) as process:
        async with await Raw.open(int(environment["TIDEGATE_PORT"])) as client:
            assert (await client.ask(request("GET", "/livez"))).status == 200
            assert (await client.ask(request("GET", "/"))).status == 200
        async with asyncio.timeout(PATIENCE):
            while not await _healthy(image, environment):
                pass
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "\nUid:\t10001\t10001\t10001\t10001\n" in status
        process.terminate()
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0
        assert not await _healthy(image, environment)
    # A read-only root will do.
    written = {path for path in _files(image) - before if not path.is_relative_to(image.path("/data"))}
    assert written == set()


@pytest.mark.system
def test_the_image_has_the_gate_and_nothing_beside(image: Stage) -> None:
    assert image.user == "10001:10001"
    assert (image.entrypoint, image.command) == (["tidegate"], ["serve"])
    assert (image.stop_signal, image.ports) == ("SIGTERM", [8080])
    (packages,) = (image.folder / "venv/lib").glob("python3.*/site-packages")
    assert {"server", "handlers", "auth", "storage"} <= {path.name for path in packages.iterdir()}
    assert not {"tests", "bench", "deploy"} & {path.name for path in packages.iterdir()}
    assert not (image.folder / "wheels").exists()
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())
    assert size < 150 * 1024 * 1024, "the gate and its packages"
    check = [str(image.folder / "venv/bin/python"), "-m", "pip", "check"]
    assert subprocess.run(check, check=False, timeout=60).returncode == 0


def _files(stage: Stage) -> set[Path]:
    return {path for path in stage.folder.rglob("*") if path.is_file()}


def _demoted(stage: Stage, command: list[str]) -> list[str]:
    """The command as the image's user, which takes root to become."""
    user, _, group = stage.user.partition(":")
    return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs", *command]


@asynccontextmanager
async def _running(stage: Stage, environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """The image's own command, until it says that it listens."""
    program, *arguments = stage.entrypoint + stage.command
    process = await asyncio.create_subprocess_exec(
        *_demoted(stage, [str(stage.folder / "venv/bin" / program), *arguments]),
        cwd=stage.path("."),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(3 * PATIENCE):
            assert (await process.stdout.readline()).startswith(b"tidegate listens on ")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _healthy(stage: Stage, environment: dict[str, str]) -> bool:
    """What HEALTHCHECK finds."""
    program, *arguments = stage.healthcheck
    process = await asyncio.create_subprocess_exec(
        *_demoted(stage, [str(stage.folder / "venv/bin" / program), *arguments]),
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(PATIENCE):
        return await process.wait() == 0
