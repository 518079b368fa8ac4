"""`python -m bench instructions --check`: no path takes more instructions than recorded, without a reason.

instructions.toml holds, per path, the instructions of a request and why they last grew. A measured path may
be 3 % above its figure. A figure in the file may only rise beside a `why` that the commit before did not
have, so small rises cannot add up unseen.

A count belongs to an interpreter build and to the libraries in C. For another Python (3.12 for 3.11), or
other versions of those libraries, the check refuses: what it would find says nothing about the code. For
another build of the same Python each path is compared by the median of all paths' factors, which a build
moves together (Debian's 3.11.2 beside pyenv's 3.11.7: 0.92 to 0.96). One path that grew beside the others is
found there too, all of them growing alike is not; the output says so.
"""

import importlib.metadata
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.environment import ROOT
from bench.micro.callgrind import CallgrindError
from bench.micro.instructions import counted

RECORD = Path(__file__).parent.parent / "instructions.toml"
# Share by which a path may be above its figure; for another build of the same Python.
MARGIN, MARGIN_ELSEWHERE = 0.03, 0.06
# What is written in C, and stands in the paths.
LIBRARIES = ("aiohttp", "apsw", "msgspec", "uvloop")
# Paths that a common factor is taken of, at least.
_ENOUGH = 3


class Interpreter(Struct, frozen=True, forbid_unknown_fields=True):
    """What the counts belong to. `build`: compiler, C library and flags of the same Python version."""

    python: str
    build: str
    libraries: dict[str, str]


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """Instructions of a request of a path, and why they last grew."""

    instructions: int
    why: str = ""


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    interpreter: Interpreter
    paths: dict[str, Entry]


def interpreter() -> Interpreter:
    """What runs now."""
    parts = (sys.version.replace("\n", " "), "-".join(platform.libc_ver()), platform.machine())
    build = ", ".join(parts)
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return Interpreter(platform.python_version(), build, versions)


def read(text: str) -> Record:
    """A record; CallgrindError."""
    try:
        return msgspec.toml.decode(text, type=Record)
    except msgspec.DecodeError as error:
        raise CallgrindError(f"{RECORD.name} cannot be read: {error}") from error


def check(names: Sequence[str], jobs: int) -> int:
    """Compare with the record and print a table: 0, 1 (it grew), 2 (it cannot be told, and why)."""
    try:
        record = read(RECORD.read_text())
        reasons = unexplained(record, before(RECORD))
        same = comparable(record.interpreter, interpreter())
        found = dict(counted(names, jobs))
    except (CallgrindError, OSError) as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 2
    if not same:
        print(f"another build of Python {record.interpreter.python}: paths are compared with each other")
    lines, grown = compared(record, found, same)
    print("\n".join([*lines, *reasons]))
    return 1 if grown or reasons else 0


def comparable(recorded: Interpreter, here: Interpreter) -> bool:
    """Whether counts can be compared as they are; False: by each other alone. CallgrindError: not at all."""
    for what, old, new in (
        # Patch releases run the same bytecode.
        ("Python", _minor(recorded.python), _minor(here.python)),
        *((name, recorded.libraries.get(name, "none"), here.libraries[name]) for name in LIBRARIES),
    ):
        if old != new:
            raise CallgrindError(
                f"the figures were recorded with {what} {old}, this is {new}: no word about the code. "
                "Check with what was recorded, or record anew: instructions --write --why TEXT"
            )
    return recorded == here


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def compared(record: Record, found: Mapping[str, float], same: bool) -> tuple[list[str], bool]:
    """A line for each path, and whether one is above its figure by more than the margin."""
    factors = {
        name: count / record.paths[name].instructions for name, count in found.items() if name in record.paths
    }
    if not same and len(factors) < _ENOUGH:
        raise CallgrindError(f"another build needs {_ENOUGH} paths at least to compare them with each other")
    common = 1.0 if same or not factors else statistics.median(factors.values())
    margin = MARGIN if same else MARGIN_ELSEWHERE
    lines, grown = [], False
    for name, count in found.items():
        if name not in factors:
            lines.append(f"{name:12} {count:>12,.0f}  NOT RECORDED: instructions --write {name}")
            grown = True
            continue
        by = factors[name] / common - 1
        verdict = "good"
        if by > margin:
            verdict, grown = f"GREW by more than {margin:.0%}", True
        elif by < -margin:
            verdict = "less than recorded: instructions --write keeps it so"
        lines.append(f"{name:12} {count:>12,.0f}  {by:+.1%}  {verdict}")
    return lines, grown


def unexplained(record: Record, earlier: Record | None) -> list[str]:
    """The figures that are higher than in the record before it, without a reason of their own."""
    if earlier is None:
        return []
    return [
        f"{name}: its figure was raised from {earlier.paths[name].instructions:,} to {entry.instructions:,}, "
        'but it has no new `why = "..."`'
        for name, entry in record.paths.items()
        if name in earlier.paths
        and entry.instructions > earlier.paths[name].instructions
        and (not entry.why or entry.why == earlier.paths[name].why)
    ]


def before(path: Path) -> Record | None:
    """The record that the one on disk came from: HEAD's if it differs, else that of the last change before.

    None without one (the first record, a shallow clone, no repository).
    """
    name = path.relative_to(ROOT).as_posix()
    head = _git("show", f"HEAD:{name}")
    if head is None:
        return None
    if head != path.read_text():
        return read(head)
    last = _git("log", "-1", "--format=%H", "--", name)
    earlier = _git("show", f"{last.strip()}^:{name}") if last else None
    return read(earlier) if earlier is not None else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def write(names: Sequence[str], jobs: int, why: str) -> int:
    """Record what is found: less always, more only with `why`; 0, or 2 and why not."""
    here = interpreter()
    try:
        old = read(RECORD.read_text()) if RECORD.exists() else Record(here, {})
        found = dict(counted(names, jobs))
        RECORD.write_text(written(updated(old, here, found, why)))
    except CallgrindError as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 2
    print(f"{RECORD} holds what was found")
    return 0


def updated(old: Record, here: Interpreter, found: Mapping[str, float], why: str) -> Record:
    """The record with what was found; CallgrindError if a path grew and nobody says why.

    What is above its figure by less than the margin keeps it: or small rises would add up.
    """
    if old.paths and old.interpreter != here and set(found) < set(old.paths):
        raise CallgrindError("another interpreter: record all paths together")
    paths = dict(old.paths)
    for name, count in found.items():
        entry, rounded = paths.get(name), round(count)
        if entry is None:
            paths[name] = Entry(rounded, why)
        elif rounded < entry.instructions:
            paths[name] = Entry(rounded, entry.why)
        elif rounded > entry.instructions * (1 + MARGIN) or old.interpreter != here:
            if not why:
                raise CallgrindError(
                    f"{name} grew from {entry.instructions:,} to {rounded:,}: say why, with --why"
                )
            paths[name] = Entry(rounded, why)
    return Record(here, paths)


def written(record: Record) -> str:
    """The file's text."""
    inner = record.interpreter
    lines = [
        "# Instructions per request (callgrind) of the main paths: `python -m bench instructions --check`",
        "# holds the code to them, `--write` records them (--why TEXT where they grew). The rules stand in",
        "# bench/micro/regression.py.",
        "[interpreter]",
        f"python = {_quoted(inner.python)}",
        f"build = {_quoted(inner.build)}",
        "",
        "[interpreter.libraries]",
        *(f"{name} = {_quoted(version)}" for name, version in sorted(inner.libraries.items())),
    ]
    for name, entry in record.paths.items():
        lines += [
            "",
            f"[paths.{name}]",
            f"instructions = {entry.instructions}",
            f"why = {_quoted(entry.why)}",
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # A basic string of TOML is escaped like one of JSON.
    return msgspec.json.encode(text).decode()
