"""`python -m bench instructions`: instructions per request, which do not depend on the machine's mood.

A process under valgrind answers some requests and then more of them; the difference, divided, is free of what
happens once. Instructions miss cache misses, branches and system calls' work: they tell one version from
another, not one server from another.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from bench.environment import ROOT
from bench.micro.callgrind import CallgrindError
from bench.micro.paths import PATHS

TIMEOUT = 600.0


def run(names: Sequence[str], jobs: int, profile: Path | None) -> int:
    """Count and print a table; into the directory `profile` go callgrind's files, if it is given."""
    print("instructions per request (callgrind)")
    for name, found in counted(names, jobs, profile):
        print(f"{name:12} {found:>12,.0f}  {PATHS[name].meaning}", flush=True)
    if profile is not None:
        print(f"callgrind_annotate {profile}/callgrind.NAME.2 shows where they go")
    return 0


def counted(names: Sequence[str], jobs: int, profile: Path | None = None) -> Iterator[tuple[str, float]]:
    """Each path with its instructions per request, as soon as it is counted. CallgrindError."""
    if shutil.which("valgrind") is None:
        raise CallgrindError("valgrind is not installed (Debian: apt install valgrind)")
    with ThreadPoolExecutor(jobs) as pool, tempfile.TemporaryDirectory(prefix="tidegate-callgrind-") as apart:
        home = Path(apart) if profile is None else profile.resolve()
        home.mkdir(parents=True, exist_ok=True)
        runs = [(name, pool.submit(_count, name, home)) for name in names]
        for name, each in runs:
            yield name, each.result()


def _count(name: str, home: Path) -> float:
    out = home / f"callgrind.{name}"
    callgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
    done = subprocess.run(
        # Addresses are hashed here and there, so they have to be the same each time.
        [
            "setarch",
            "--addr-no-randomize",
            *callgrind,
            sys.executable,
            "-m",
            "bench.micro.counted",
            name,
            str(out),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONMALLOC": "pymalloc"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise CallgrindError(
            f"{name} was not counted: {done.stderr.decode(errors='replace').strip()[-2000:]}"
        )
    return msgspec.json.decode(done.stdout, type=float)
