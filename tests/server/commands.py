"""The installed command, run as a person would."""

import asyncio
import os
import sys
from pathlib import Path

from tests.running import PATIENCE, ROOT


class Ran:
    """What became of a command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"<{self.code} {self.out!r} {self.err!r}>"


def environment(data: Path | None = None, **settings: str) -> dict[str, str]:
    """The environment of a command: this one, with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    if data is not None:
        kept["TIDEGATE_DATA"] = str(data)
    return kept | {f"TIDEGATE_{name}": value for name, value in settings.items()}


async def run(*command: str, env: dict[str, str], cwd: Path = ROOT) -> Ran:
    """Run a program to its end."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        # A process that starts on a busy machine takes its time.
        async with asyncio.timeout(3 * PATIENCE):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


async def tidegate(*arguments: str, data: Path | None = None, **settings: str) -> Ran:
    """Run `tidegate ...`."""
    return await run(sys.executable, "-m", "server", *arguments, env=environment(data, **settings))
