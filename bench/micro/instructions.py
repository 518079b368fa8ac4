"""`python -m bench instructions`: instructions per request, which do not depend on the machine's mood.

valgrind counts a process that answers a number of requests and one that answers more of them; the
difference, divided, is free of start-up and warm-up. Instructions miss cache misses, branches and
system calls' work: they tell one version from another, not one server from another.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path as File

from bench.environment import ROOT
from bench.micro.paths import PATHS, Path

TIMEOUT = 900.0
_COLLECTED = re.compile(r"Collected : ([0-9]+)")


def run(names: Sequence[str], jobs: int, profile: File | None) -> int:
    """Count and print a table; into the directory `profile` go callgrind's files, if it is given."""
    print("instructions per request (callgrind)")
    with ThreadPoolExecutor(jobs) as pool, tempfile.TemporaryDirectory(prefix="tidegate-callgrind-") as apart:
        home = File(apart) if profile is None else profile
        home.mkdir(parents=True, exist_ok=True)
        runs = [(name, [pool.submit(_count, name, n, home) for n in _counts(PATHS[name])]) for name in names]
        for name, both in runs:
            fewer, more = _counts(PATHS[name])
            low, high = (counted.result() for counted in both)
            print(f"{name:12} {(high - low) / (more - fewer):>12,.0f}  {PATHS[name].meaning}", flush=True)
    if profile is not None:
        print(f"callgrind_annotate {profile}/callgrind.NAME.COUNT shows where they go")
    return 0


def _counts(path: Path) -> tuple[int, int]:
    """Whole rounds of the path's connections: few, and more."""
    rounds = 2 if path.connections > 1 else 1
    return rounds * path.connections, (rounds + (16 if path.connections > 1 else 10)) * path.connections


def _count(name: str, requests: int, home: File) -> int:
    """Instructions of a process that answers so many requests, from its start to its end."""
    done = subprocess.run(
        [
            "setarch",
            "--addr-no-randomize",
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={home / f'callgrind.{name}.{requests}'}",
            sys.executable,
            "-m",
            "bench.micro.drive",
            name,
            str(requests),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONMALLOC": "pymalloc"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    found = _COLLECTED.search(done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"valgrind ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return int(found[1])
