"""What the processes of a server hold in memory, as the kernel counts it."""

import os
from pathlib import Path

from bench.environment import family

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(group: int) -> int:
    """Bytes of a group, and of what it has started, that are in memory (RSS)."""
    return _PAGE * sum(int(_read(pid, "statm").split()[1]) for pid in family(group))


def proportional(group: int) -> int:
    """Bytes of a group in memory, shared pages by their share (PSS); what sockets hold is the kernel's."""
    return 1024 * sum(pss(_read(pid, "smaps_rollup")) for pid in family(group))


def pss(rollup: str) -> int:
    """The PSS of a smaps_rollup (man 5 proc), in KiB."""
    for line in rollup.splitlines():
        name, _, rest = line.partition(":")
        if name == "Pss":
            return int(rest.split()[0])
    raise ValueError("no Pss in smaps_rollup")


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()
