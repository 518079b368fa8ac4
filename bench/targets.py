"""Who is asked: a folder a target under targets/, with target.toml, an application and pinned requirements.

`target.toml` is read as a Target. `{port}`, `{data}` (a fresh directory), `{database}` (URL of a fresh
PostgreSQL database), `{redis}` (URL of a fresh Redis), `{secret}` (of the tokens), `{limit}` (requests per
minute of a principal), `{common}` (the folder of what Python targets share), `{warm_up}`, `{seconds}` and
`{scenario}` (of loops) are filled in, in the command and in the variables.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from bench.contract import Hello
from bench.environment import ROOT
from bench.toolchains import TOOLCHAINS, Toolchain, ToolchainError

HOME = Path(__file__).parent / "targets"
POSTGRESQL = "postgresql"
# What has the latest values of a device: the process, Redis, the database.
Level = Literal["memory", "redis", "database"]


class TargetError(Exception):
    """A target cannot be had, and why."""


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """A target.

    `command`: the arguments of its program, which `environment` gives: a virtual environment of its own, or
    the house's; node; a program built from Go. `kind`: a server, or a loop that measures itself.
    `database`: "postgresql", or the file that it keeps its rows in, under its data; `rows`: the SQL that
    counts them; `table`: where they are. `redis`: whether it needs one. `cannot`: by scenario, why it takes
    no part. `hello`: where and what it answers to that, if not as all. `limited`: whether it refuses by
    `{limit}`. `deaf`: it does not end by SIGTERM, so it is killed.

    `variant_of`: the target that it is but for what it says itself, variable by variable. `group`: of a
    target that only the command of this name measures. `tables`: of a loop on PostgreSQL the target that
    makes them, and is verified on them before. `levels`: by scenario, what of the gate has to answer.
    """

    title: str
    command: list[str]
    scenarios: list[str]
    environment: Literal["own", "house", "node", "go"] = "own"
    kind: Literal["server", "loop"] = "server"
    database: str = ""
    rows: str = ""
    table: str = "readings"
    redis: bool = False
    cannot: dict[str, str] = {}
    hello: Hello = Hello()
    limited: bool = False
    deaf: bool = False
    variant_of: str = ""
    group: str = ""
    tables: str = ""
    levels: dict[str, Level] = {}
    variables: dict[str, str] = {}
    name: str = ""

    @property
    def home(self) -> Path:
        """Where it is started."""
        return ROOT if self.environment == "house" else self.folder

    @property
    def folder(self) -> Path:
        """Where its environment is: a variant shares that of what it is one of."""
        return HOME / (self.variant_of or self.name)

    @property
    def toolchain(self) -> Toolchain:
        """What it is written in."""
        return TOOLCHAINS[self.environment]

    def filled(self, values: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """Command line and variables of the environment, with `values` in their places."""
        arguments = [argument.format_map(values) for argument in self.command]
        variables = {name: text.format_map(values) for name, text in self.variables.items()}
        return [*self.toolchain.program(self.folder), *arguments], variables


def load(home: Path = HOME) -> dict[str, Target]:
    """All targets by name, the template left out; TargetError says which description is wrong."""
    targets = {}
    for path in sorted(home.glob("[!_]*/target.toml")):
        try:
            target = msgspec.convert(_described(path), Target)
        except (msgspec.MsgspecError, OSError) as error:
            raise TargetError(f"{path}: {error}") from error
        targets[path.parent.name] = msgspec.structs.replace(target, name=path.parent.name)
    return targets


def _described(path: Path) -> dict[str, Any]:
    """A description; that of a variant with what it does not say itself."""
    own = msgspec.toml.decode(path.read_bytes(), type=dict[str, Any])
    if not (name := own.get("variant_of")):
        return own
    base = _described(path.parent.parent / str(name) / path.name)
    variables = {**base.get("variables", {}), **own.get("variables", {})}
    # It need not say why it takes no part in something.
    return {**base, **own, "variables": variables, "cannot": {}}


def prepare(target: Target) -> None:
    """Make the target's own environment with its pins, if it is not there; TargetError."""
    try:
        target.toolchain.prepare(target.folder)
    except (ToolchainError, OSError) as error:
        raise TargetError(f"{target.name} cannot be installed: {error}") from error


def versions(targets: Iterable[Target]) -> dict[str, dict[str, str]]:
    """The installed packages of each target."""
    return {target.name: target.toolchain.versions(target.folder) for target in targets}


def size(target: Target) -> int:
    """Bytes that a target and what it depends on take on disk, less the interpreter."""
    return target.toolchain.size(target.folder)
