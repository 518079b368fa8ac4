"""Results on disk: a directory a run, with a line of JSON per cell, written as soon as it is measured."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from bench.environment import Cores
from bench.live.figures import Live
from bench.load.open_loop import Open

PLAN, CELLS, ENVIRONMENT, SUMMARY = "plan.json", "cells.jsonl", "environment.json", "summary.md"
CANARY, TARGETS = "canary.jsonl", "targets.json"


_Kind = TypeVar("_Kind")


class ResultsError(Exception):
    """Results that cannot be used, and why."""


class Plan(Struct, frozen=True):
    """What a run measures: each of `cells` (SCENARIO@TARGET) once a round, in an order that `seed` gives.

    `curves`: scenarios that are also asked at fixed rates. `canary`: the cell that is measured now and then
    to see whether the machine is still the same ("": none).
    """

    cells: list[str]
    rounds: int
    seconds: int
    warm_up: int
    seed: int
    curves: list[str] = []
    canary: str = ""


class Figures(Struct, frozen=True):
    """What a cell found.

    `rate`: of what the scenario counts, per second. `p50_ms`, `p99_ms`: of the closed loop, so an
    overload's. `open`: what the open loop found, at half of `rate`; `curve`: at fixed rates.
    `sync_p99_ms`: of the disk alone, right before and after. `answered`, `stored`: readings, where they
    are counted. `cpu_us`: microseconds of the target's CPU for each that is counted, `beside_us` of its
    database. `start_ms`: until it was ready; `idle_mib`, `loaded_mib`: its memory (PSS) then, and after
    the load; of a loop, nothing. `live`: of streams.
    """

    rate: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    open: Open | None = None
    sync_p99_ms: float = 0.0
    answered: int = 0
    stored: int = 0
    cores: Cores | None = None
    live: Live | None = None
    curve: list[Open] = []
    cpu_us: float = 0.0
    beside_us: float = 0.0
    start_ms: float = 0.0
    idle_mib: float = 0.0
    loaded_mib: float = 0.0


class Cell(Struct, frozen=True):
    """One measurement, begun at `started` (UTC), that took so many seconds: figures, or why it is void."""

    round: int
    scenario: str
    target: str
    started: str
    took: float
    void: str = ""
    figures: Figures | None = None

    @property
    def name(self) -> str:
        """SCENARIO@TARGET."""
        return f"{self.scenario}@{self.target}"


class Facts(Struct, frozen=True):
    """What a run knows of a target: its title, installed packages and size, or why it could not be had.

    `cannot`: by scenario, why it takes no part.
    """

    title: str
    versions: dict[str, str] = {}
    size_mib: float = 0.0
    broken: str = ""
    cannot: dict[str, str] = {}


class Results:
    """The directory of one run. `canaries`: what the canary said; `facts`: of the targets, by name."""

    def __init__(
        self,
        directory: Path,
        plan: Plan,
        cells: Sequence[Cell] = (),
        canaries: Sequence[Cell] = (),
        facts: Mapping[str, Facts] | None = None,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.plan = plan
        self.cells = list(cells)
        self.canaries = list(canaries)
        self.facts = dict(facts or {})
        self.environment = dict(environment or {})

    @classmethod
    def create(cls, home: Path, name: str, plan: Plan, environment: Mapping[str, Any]) -> "Results":
        """A new directory under `home`; a name that is taken gets a number."""
        directory, number = home / name, 1
        while directory.exists():
            number += 1
            directory = home / f"{name}-{number}"
        directory.mkdir(parents=True)
        (directory / PLAN).write_bytes(_indented(plan))
        (directory / ENVIRONMENT).write_bytes(_indented(environment))
        return cls(directory, plan, environment=environment)

    @classmethod
    def read(cls, directory: Path) -> "Results":
        """A run as far as it got; a last line that was cut off is dropped. ResultsError."""
        try:
            plan = msgspec.json.decode((directory / PLAN).read_bytes(), type=Plan)
            cells, canaries = _lines(directory / CELLS), _lines(directory / CANARY)
            facts = _optional(directory / TARGETS, dict[str, Facts])
            environment = _optional(directory / ENVIRONMENT, dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise ResultsError(f"{directory} holds no results: {error}") from error
        return cls(directory, plan, cells, canaries, facts, environment)

    def add(self, cell: Cell) -> None:
        """Keep a cell, on disk first."""
        _append(self.directory / CELLS, cell)
        self.cells.append(cell)

    def add_canary(self, cell: Cell) -> None:
        """Keep what the canary said, on disk first."""
        _append(self.directory / CANARY, cell)
        self.canaries.append(cell)

    def keep_facts(self, facts: Mapping[str, Facts]) -> None:
        """Write what is known of the targets beside the raw results."""
        self.facts = dict(facts)
        (self.directory / TARGETS).write_bytes(_indented(self.facts))

    def has(self, round: int, name: str) -> bool:
        """Whether a cell was measured; one that is void was not, and gets another chance."""
        return any(cell.round == round and cell.name == name and not cell.void for cell in self.cells)

    def titles(self) -> dict[str, str]:
        """The titles of the targets, as far as they are known."""
        return {name: facts.title for name, facts in self.facts.items()}

    def final(self) -> list[Cell]:
        """The last word on each cell of each round."""
        last = {(cell.round, cell.name): cell for cell in self.cells}
        return [last[key] for key in sorted(last)]

    def keep_summary(self, text: str) -> None:
        """Write the report beside the raw results."""
        (self.directory / SUMMARY).write_text(text)


def directory_name(commit: str, *, dirty: bool, partial: bool) -> str:
    """<date>-<commit>, with what keeps it from being a run to show."""
    marks = ("-dirty" if dirty else "") + ("-partial" if partial else "")
    return f"{datetime.now(UTC):%Y-%m-%d}-{commit}{marks}"


def chosen(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """The names that match a pattern: SCENARIO@TARGET, SCENARIO or @TARGET, with * and ?.

    ResultsError if a pattern matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        full = pattern if "@" in pattern else pattern + "@*"
        full = "*" + full if full.startswith("@") else full
        matching = fnmatch.filter(names, full)
        if not matching:
            raise ResultsError(f"no cell is named {pattern}; there are: {' '.join(names)}")
        found.update(matching)
    return [name for name in names if name in found]


def _lines(path: Path) -> list[Cell]:
    """The cells of a file; a last line that was cut off is dropped, there too."""
    text = path.read_bytes() if path.exists() else b""
    whole = text[: text.rfind(b"\n") + 1]
    cells = [msgspec.json.decode(line, type=Cell) for line in whole.splitlines()]
    if len(whole) < len(text):
        path.write_bytes(whole)
    return cells


def _append(path: Path, cell: Cell) -> None:
    with path.open("ab") as file:
        file.write(msgspec.json.encode(cell) + b"\n")


def _optional(path: Path, kind: type[_Kind]) -> _Kind:
    """What a file holds; empty without one."""
    return msgspec.json.decode(path.read_bytes() if path.exists() else b"{}", type=kind)


def _indented(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
