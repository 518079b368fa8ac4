"""What a target is written in: how its environment is made of its own pins, and the program that runs it.

An environment lies in the target's folder, out of git, and is made again when a pin or a source of a
compiled target changes.
"""

import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.environment import ROOT

INSTALL_TIMEOUT = 600.0
LIST_TIMEOUT = 60.0
# What the gate is.
PACKAGES = ("server", "handlers", "storage", "auth")
# Not needed to run: what Python compiles as it goes, and the installer.
_BESIDE = {"__pycache__", "pip"}
_VERSIONS = """
import importlib.metadata, json
print(json.dumps({each.name: each.version for each in importlib.metadata.distributions()}))
"""


class ToolchainError(Exception):
    """An environment cannot be made, and why."""


class Toolchain(ABC):
    """One of them. `sources`: patterns of the files that an environment depends on."""

    sources: tuple[str, ...] = ()

    def prepare(self, home: Path) -> bool:
        """Make the environment of `home` if it is not there; whether it was made. ToolchainError."""
        wanted = "".join(f"{path.name}\n{path.read_text()}" for path in self.files(home))
        stamp = self.place(home) / "stamp"
        with _alone(home):
            if stamp.exists() and stamp.read_text() == wanted:
                return False
            print(f"installing {home.name}", file=sys.stderr)
            self.install(home)
            stamp.write_text(wanted)
        return True

    def files(self, home: Path) -> list[Path]:
        """The files that the environment depends on."""
        return sorted(path for pattern in self.sources for path in home.glob(pattern))

    def size(self, home: Path) -> int:
        """Bytes that the target and what it needs take on disk, less the interpreter."""
        return _size(home.rglob("*"))

    @abstractmethod
    def place(self, home: Path) -> Path:
        """The directory of the environment."""

    @abstractmethod
    def program(self, home: Path) -> list[str]:
        """What a target's command is given to."""

    @abstractmethod
    def install(self, home: Path) -> None:
        """Make it anew; ToolchainError."""

    @abstractmethod
    def versions(self, home: Path) -> dict[str, str]:
        """What is installed, by name."""


class Python(Toolchain):
    """A virtual environment with requirements.txt; uv makes it where there is one, else venv and pip."""

    sources = ("requirements.txt",)

    def place(self, home: Path) -> Path:
        """The virtual environment."""
        return home / ".venv"

    def program(self, home: Path) -> list[str]:
        """Its interpreter."""
        return [str(self.place(home) / "bin" / "python")]

    def install(self, home: Path) -> None:
        """Packages as wheels."""
        place, pins = str(self.place(home)), str(home / "requirements.txt")
        python = self.program(home)
        if uv := _uv():
            _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, place], home)
            _run([uv, "pip", "install", "--quiet", "--python", *python, "-r", pins], home)
        else:
            pip = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
            _run([sys.executable, "-m", "venv", "--clear", place], home)
            _run([*python, *pip, "-r", pins], home)

    def versions(self, home: Path) -> dict[str, str]:
        """Of its packages."""
        versions: dict[str, str] = json.loads(_listed([*self.program(home), "-c", _VERSIONS], home) or "{}")
        return versions


class House(Python):
    """The virtual environment that runs the bench: for the code of this working tree."""

    def prepare(self, home: Path) -> bool:
        """It is there."""
        return False

    def place(self, home: Path) -> Path:
        """Where the interpreter is."""
        return Path(sys.prefix)

    def program(self, home: Path) -> list[str]:
        """The interpreter that runs the bench."""
        return [sys.executable]

    def size(self, home: Path) -> int:
        """Of the gate's packages, and what requirements/runtime.txt pins."""
        pins = (ROOT / "requirements" / "runtime.txt").read_text()
        names = re.findall(r"^([A-Za-z0-9._-]+)==", pins, re.MULTILINE)
        paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*")]
        for name in names:
            try:
                files = importlib.metadata.files(name) or []
            except importlib.metadata.PackageNotFoundError:
                # Its marker is not this machine's.
                continue
            paths += [Path(str(file.locate())) for file in files]
        return _size(paths)


class Node(Toolchain):
    """Node.js, with what package-lock.json names in node_modules."""

    sources = ("package.json", "package-lock.json")

    def place(self, home: Path) -> Path:
        """Its packages."""
        return home / "node_modules"

    def program(self, home: Path) -> list[str]:
        """The interpreter of the system."""
        return ["node"]

    def install(self, home: Path) -> None:
        """By the lock file alone; no package runs a script."""
        _needs("npm", "nodejs npm")
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], home)

    def versions(self, home: Path) -> dict[str, str]:
        """Of node and its packages."""
        lock = json.loads((home / "package-lock.json").read_text())
        packages = {
            name.rpartition("node_modules/")[2]: package["version"]
            for name, package in lock["packages"].items()
            if name
        }
        return {"node": _listed(["node", "--version"], home).strip(), **packages}


class Go(Toolchain):
    """A program built from *.go and the sources that Debian packages (no module proxy, no network)."""

    sources = ("*.go", "packages.txt")

    def place(self, home: Path) -> Path:
        """What was built."""
        return home / ".build"

    def program(self, home: Path) -> list[str]:
        """It."""
        return [str(self.place(home) / "server")]

    def install(self, home: Path) -> None:
        """Build it; `packages.txt` names the Debian packages that it needs."""
        packages = (home / "packages.txt").read_text().split()
        _needs("go", " ".join(packages))
        self.place(home).mkdir(exist_ok=True)
        cache = self.place(home) / "cache"
        variables = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(cache)}
        try:
            _run(["go", "build", "-o", *self.program(home), "."], home, variables)
        except ToolchainError as error:
            raise ToolchainError(f"{error} (Debian: apt install {' '.join(packages)})") from error
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    def versions(self, home: Path) -> dict[str, str]:
        """Of the compiler and the sources."""
        packages = (home / "packages.txt").read_text().split()
        form = ["-f", "${Package} ${Version}\n"]
        lines = _listed(["dpkg-query", "-W", *form, *packages], home).splitlines()
        found = dict(line.split(" ", 1) for line in lines)
        return {"go": _listed(["go", "version"], home).strip(), **found}


TOOLCHAINS: dict[str, Toolchain] = {"own": Python(), "house": House(), "node": Node(), "go": Go()}


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Other processes that want the same environment wait: no longer than INSTALL_TIMEOUT lets its maker."""
    folder = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _uv() -> str | None:
    """The uv beside the interpreter of the bench, or in PATH."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _needs(program: str, packages: str) -> None:
    if shutil.which(program) is None:
        raise ToolchainError(f"{program} is not installed (Debian: apt install {packages})")


def _run(command: list[str], home: Path, variables: dict[str, str] | None = None) -> None:
    try:
        subprocess.run(
            command,
            cwd=home,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            check=True,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT,
        )
    except subprocess.CalledProcessError as error:
        raise ToolchainError((error.stderr or error.stdout).strip()[-1000:]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(str(error)) from error


def _size(paths: Iterable[Path]) -> int:
    """Bytes of blocks, of several links to a file once."""
    seen: set[int] = set()
    total = 0
    for path in paths:
        if _BESIDE.isdisjoint(path.parts) and path.exists():
            status = path.lstat()
            total += status.st_blocks * 512 if status.st_ino not in seen else 0
            seen.add(status.st_ino)
    return total


def _listed(command: list[str], home: Path) -> str:
    """What a command prints; "" if it cannot."""
    try:
        done = subprocess.run(
            command, cwd=home, capture_output=True, text=True, timeout=LIST_TIMEOUT, check=False
        )
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""
