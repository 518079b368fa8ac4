"""Who is asked: a folder a target under targets/, with target.toml, an application and pinned requirements.

`target.toml` is read as a Target. `{port}`, `{data}` (a fresh directory), `{secret}` (of the tokens),
`{warm_up}`, `{seconds}` and `{scenario}` (of loops) are filled in, in the command and in the variables.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from bench.environment import ROOT

HOME = Path(__file__).parent / "targets"
INSTALL_TIMEOUT = 600.0


class TargetError(Exception):
    """A target cannot be had, and why."""


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """A target.

    `command`: the arguments of its Python. `environment`: a virtual environment of its own, or the
    house's. `kind`: a server, or a loop that measures itself. `database`: the file that it keeps its
    rows in, under its data; `rows`: the SQL that counts them.
    """

    title: str
    command: list[str]
    scenarios: list[str]
    environment: Literal["own", "house"] = "own"
    kind: Literal["server", "loop"] = "server"
    database: str = ""
    rows: str = ""
    variables: dict[str, str] = {}
    name: str = ""

    @property
    def home(self) -> Path:
        """Where it is started."""
        return ROOT if self.environment == "house" else HOME / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        if self.environment == "house":
            return Path(sys.executable)
        return HOME / self.name / ".venv" / "bin" / "python"

    def filled(self, values: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """Command line and variables of the environment, with `values` in their places."""
        arguments = [argument.format_map(values) for argument in self.command]
        variables = {name: text.format_map(values) for name, text in self.variables.items()}
        return [str(self.python), *arguments], variables


def load(home: Path = HOME) -> dict[str, Target]:
    """All targets by name; TargetError says which description is wrong."""
    targets = {}
    for path in sorted(home.glob("*/target.toml")):
        name = path.parent.name
        try:
            target = msgspec.toml.decode(path.read_bytes(), type=Target)
        except (msgspec.DecodeError, OSError) as error:
            raise TargetError(f"{path}: {error}") from error
        targets[name] = msgspec.structs.replace(target, name=name)
    return targets


def prepare(target: Target) -> None:
    """Make the target's own environment with its pinned requirements, if it is not there; TargetError."""
    if target.environment == "house":
        return
    home = HOME / target.name
    environment = home / ".venv"
    stamp = environment / "requirements.txt"
    wanted = (home / "requirements.txt").read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {target.name}", file=sys.stderr)
    pip = [str(target.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    _install([sys.executable, "-m", "venv", "--clear", str(environment)], target)
    _install([*pip, "--quiet", "-r", str(home / "requirements.txt")], target)
    stamp.write_text(wanted)


def _install(command: list[str], target: Target) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
    except subprocess.CalledProcessError as error:
        raise TargetError(f"{target.name} cannot be installed: {error.stderr.strip()[-1000:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"{target.name} cannot be installed: {error}") from error


def versions(targets: Iterable[Target]) -> dict[str, dict[str, str]]:
    """The installed packages of each target."""
    found = {}
    for target in targets:
        command = [str(target.python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        listed = json.loads(done.stdout) if done.returncode == 0 else []
        found[target.name] = {package["name"]: package["version"] for package in listed}
    return found
