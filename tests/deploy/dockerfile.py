"""Replays a Dockerfile where there is no engine: its steps as they stand, in a folder for each stage.

It knows the instructions that ours uses and refuses any other. The base image is a fresh virtual environment
with the Python of the tests; absolute paths of the image lead into the stage's folder. So it shows that the
steps fit each other and the context, not that the base image has what they need.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.running import ROOT

# Folders of the base image; what else begins with a slash is the image's own.
_BASE = ("bin", "dev", "etc", "proc", "sbin", "tmp", "usr")
_ABSOLUTE = re.compile(r"(?<![\w.=:/-])/([A-Za-z][\w.-]*)|(?<==)/([A-Za-z][\w.-]*)")
_MOUNT = re.compile(r"--mount=type=bind,from=(\w+),source=(\S+?),target=(\S+)\s+")
TIMEOUT = 280.0


class Stage:
    """What the instructions of a stage have made so far."""

    def __init__(self, folder: Path, image: str) -> None:
        self.folder = folder
        self.image = image
        self.environment: dict[str, str] = {}
        self.directory = "/"
        self.user = ""
        self.volumes: list[str] = []
        self.ports: list[int] = []
        self.entrypoint: list[str] = []
        self.command: list[str] = []
        self.healthcheck: list[str] = []
        self.stop_signal = ""

    def path(self, inside: str) -> Path:
        """Where a path of the image really is."""
        return (
            self.folder / os.path.normpath(f"{self.directory}/{inside}" if inside[0] != "/" else inside)[1:]
        )

    def variables(self) -> dict[str, str]:
        """The environment of a process of the image."""
        kept = {
            name: text for name, text in os.environ.items() if not name.startswith(("TIDEGATE_", "PYTHON"))
        }
        # Without a home there is no user's configuration either; pip's index is that of the machine.
        path = f"{self.folder / 'venv/bin'}:{kept.get('PATH', '')}"
        return kept | {"PATH": path, "VIRTUAL_ENV": str(self.folder / "venv")} | self.environment


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Name and arguments of each instruction, comments and continuations undone."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, arguments = line.strip().partition(" ")
            yield name, arguments.strip()


def context() -> list[Path]:
    """The files that .dockerignore lets in: the last line that fits a file or a folder of it decides."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split(
        "\0"
    )

    def wanted(name: str) -> bool:
        taken = True
        for line in lines:
            pattern = line.removeprefix("!").removeprefix("**/")
            parts = [name, *(str(parent) for parent in Path(name).parents)]
            if any(fnmatch.fnmatch(part, pattern) for part in parts):
                taken = line.startswith("!")
        return taken

    return [Path(name) for name in names if name and (ROOT / name).is_file() and wanted(name)]


class Replay:
    """The stages, by name or number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.stages: dict[str, Stage] = {}

    @property
    def last(self) -> Stage:
        """The image."""
        return list(self.stages.values())[-1]

    def run(self, text: str) -> Stage:
        """Carry out all instructions; the last stage is the image."""
        for name, arguments in instructions(text):
            step = getattr(self, f"_{name.lower()}", None)
            assert step is not None, f"no replay of {name}"
            step(arguments)
        return self.last

    def _from(self, arguments: str) -> None:
        image, _, name = arguments.partition(" AS ")
        name = name or str(len(self.stages))
        assert image.startswith("python:")
        stage = self.stages[name] = Stage(self._folder / name, image)
        # As in the image, pip is there and nothing else.
        subprocess.run(
            [sys.executable, "-m", "venv", str(stage.folder / "venv")], check=True, timeout=TIMEOUT
        )

    def _workdir(self, arguments: str) -> None:
        self.last.directory = os.path.normpath(f"/{arguments}")
        self.last.path(".").mkdir(parents=True, exist_ok=True)

    def _copy(self, arguments: str) -> None:
        *sources, target = arguments.split()
        stage, files = self.last, context()
        for source in map(Path, sources):
            taken = [file for file in files if file == source or source in file.parents]
            assert taken, f"COPY {source}: it is not in the context"
            for file in taken:
                inner = file.relative_to(source) if file != source else Path(file.name)
                into = stage.path(target) / inner if target.endswith("/") else stage.path(target)
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, into)

    def _run(self, arguments: str) -> None:
        stage, links = self.last, []
        for name, source, target in _MOUNT.findall(arguments):
            links.append(stage.path(target))
            links[-1].symlink_to(self.stages[name].path(source))
        command = self._inside(_MOUNT.sub("", arguments))
        run = subprocess.run(
            ["sh", "-euc", command],
            cwd=stage.path("."),
            env=stage.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        assert run.returncode == 0, f"{command}\n{run.stdout}"
        for link in links:
            link.unlink()

    def _inside(self, command: str) -> str:
        """The command with the image's own absolute paths led into the stage."""

        def lead(found: re.Match[str]) -> str:
            top = found[1] or found[2]
            return found[0] if top in _BASE else f"{self.last.folder}/{top}"

        return _ABSOLUTE.sub(lead, command)

    def _env(self, arguments: str) -> None:
        for pair in shlex.split(arguments):
            name, _, text = pair.partition("=")
            self.last.environment[name] = self._inside(text) if text.startswith("/") else text

    def _user(self, arguments: str) -> None:
        self.last.user = arguments

    def _volume(self, arguments: str) -> None:
        self.last.volumes.append(arguments)

    def _expose(self, arguments: str) -> None:
        self.last.ports.append(int(arguments))

    def _stopsignal(self, arguments: str) -> None:
        self.last.stop_signal = arguments

    def _healthcheck(self, arguments: str) -> None:
        self.last.healthcheck = self._list(arguments.partition("CMD ")[2])

    def _entrypoint(self, arguments: str) -> None:
        self.last.entrypoint = self._list(arguments)

    def _cmd(self, arguments: str) -> None:
        self.last.command = self._list(arguments)

    def _list(self, arguments: str) -> list[str]:
        # The shell form would leave signals to a shell.
        found: list[str] = json.loads(arguments)
        return [self._inside(argument) if argument.startswith("/") else argument for argument in found]
