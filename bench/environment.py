"""Where the bench runs: its directories and cores, and a record of the machine."""

import os
import platform
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
# Not /tmp, which may be memory: a commit has to reach a disk.
DATA = "/var/tmp"
SERVER_CORE, LOAD_CORE = 0, 1

_CPU = Path("/sys/devices/system/cpu")


# Shares of the time that others may take before a measurement is in doubt.
FOREIGN, STEAL = 0.10, 0.02


class Cores(Struct, frozen=True):
    """How busy cores were, as shares of the time that passed.

    `foreign`: what processes took that are neither the target nor its load; `steal`: what the host took.
    """

    server: float
    load: float
    foreign: float
    steal: float

    @property
    def disturbed(self) -> bool:
        """Whether others took so much that the measurement is in doubt."""
        return self.foreign > FOREIGN or self.steal > STEAL


class CoreWatch:
    """Watches the two cores from its making on.

    `target_cpu` gives the CPU seconds of the target so far; the load is in children that have ended.
    """

    def __init__(self, target_cpu: Callable[[], float]) -> None:
        self._target_cpu = target_cpu
        self._own = self._own_cpu()
        self._ticks = _ticks()
        self._began = time.monotonic()

    def read(self) -> Cores:
        """How busy they were since."""
        own, seconds = self._own_cpu() - self._own, time.monotonic() - self._began
        spent = {
            core: [now - then for now, then in zip(ticks, self._ticks[core], strict=True)]
            for core, ticks in _ticks().items()
        }
        server, load = _busy(spent[SERVER_CORE]), _busy(spent[LOAD_CORE])
        steal = sum(ticks[7] for ticks in spent.values()) / max(1, sum(map(sum, spent.values())))
        return Cores(server, load, max(0.0, server + load - own / seconds - 2 * steal), steal)

    def _own_cpu(self) -> float:
        used = self._target_cpu()
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            usage = resource.getrusage(who)
            used += usage.ru_utime + usage.ru_stime
        return used


def group_cpu(group: int) -> float:
    """CPU seconds of the processes of a group that live, and of those that they have started."""
    return sum(family(group).values()) / os.sysconf("SC_CLK_TCK")


def family(group: int) -> dict[int, int]:
    """The ticks of CPU that each process of a group has used, by its id, their descendants included.

    Workers may have groups of their own.
    """
    ticks, children, found = {}, defaultdict(list), []
    for path in Path("/proc").glob("[0-9]*/stat"):
        if fields := _stat(path):
            process = int(path.parent.name)
            ticks[process] = int(fields[11]) + int(fields[12])
            if int(fields[2]) == group:
                found.append(process)
            else:
                children[int(fields[1])].append(process)
    # It grows while it is gone through.
    for process in found:
        found += children[process]
    return {process: ticks[process] for process in found}


def tree_cpu(process: int) -> float:
    """CPU seconds of a process and its children, those that have ended included."""
    # utime, stime, and of the children that were waited for.
    first = _stat(Path(f"/proc/{process}/stat"))[11:15]
    ticks = sum(int(field) for field in first)
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in _read(task).split():
            fields = _stat(Path(f"/proc/{child}/stat"))[11:13]
            ticks += sum(int(field) for field in fields)
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(path: Path) -> list[str]:
    """What the kernel says of a process: state, parent, group and so on; nothing if it has gone."""
    # After the name, which may have blanks and parentheses.
    return _read(path).rpartition(")")[2].split()


def _busy(ticks: list[int]) -> float:
    return 1 - (ticks[3] + ticks[4]) / max(1, sum(ticks))


def _ticks() -> dict[int, list[int]]:
    """Per core: user, nice, system, idle, iowait, irq, softirq, steal (man 5 proc)."""
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    return {
        int(line[0][3:]): [int(field) for field in line[1:9]]
        for line in lines
        if line[0].startswith("cpu") and line[0] != "cpu"
    }


def faults() -> list[str]:
    """What this machine lacks to run the bench at all."""
    tools = ("wrk", "taskset", "setpriv")
    found = [f"{tool} is not installed" for tool in tools if shutil.which(tool) is None]
    if not {SERVER_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        found.append(f"the cores {SERVER_CORE} and {LOAD_CORE} are not both there")
    return found


def allow_files(count: int) -> None:
    """Let this process and its children have so many files open, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def commit() -> tuple[str, bool]:
    """The git commit, and whether the working tree differs from it; "unknown" outside of a repository."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if not head:
        return "unknown", False
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return head, bool(changed)


def record(command: list[str]) -> dict[str, object]:
    """The machine, its state and the software, to be kept with the results."""
    head, dirty = commit()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "commit": head,
        "dirty": dirty,
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "server_core": SERVER_CORE,
        "load_core": LOAD_CORE,
        "governor": _read(_CPU / "cpu0/cpufreq/scaling_governor"),
        "smt": _read(_CPU / "smt/active"),
        "siblings": _read(_CPU / f"cpu{SERVER_CORE}/topology/thread_siblings_list"),
        "mitigations": {path.name: _read(path) for path in sorted((_CPU / "vulnerabilities").glob("*"))},
        "virtual": _output("systemd-detect-virt") or _field("/proc/cpuinfo", "hypervisor"),
        "kernel": platform.release(),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "cpu_max": _read(Path("/sys/fs/cgroup/cpu.max")),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "load_before": os.getloadavg(),
        "data": _output("df", "--output=source,fstype,size,avail", DATA).split("\n")[-1],
        "python": sys.version,
        "python_flags": platform.python_compiler(),
        "sqlite_of_python": sqlite3.sqlite_version,
        "wrk": _output("wrk", "-v").partition("\n")[0],
    }


def _output(*command: str) -> str:
    """What a command prints; empty if there is none, or it fails to run. wrk -v ends with 1."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _field(path: str, name: str) -> str:
    lines = (line.partition(":") for line in _read(Path(path)).splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
