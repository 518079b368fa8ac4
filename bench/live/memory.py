"""What the processes of a server hold in memory, as the kernel counts it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bench.environment import family

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(group: int) -> int:
    """Bytes of a group, and of what it has started, that are in memory (RSS)."""
    return _PAGE * sum(int(text.split()[1]) for text in _each(group, "statm"))


def proportional(group: int) -> int:
    """Bytes of a group in memory, shared pages by their share (PSS); what sockets hold is the kernel's."""
    return 1024 * sum(map(pss, _each(group, "smaps_rollup")))


def pss(rollup: str) -> int:
    """The PSS of a smaps_rollup (man 5 proc), in KiB."""
    for line in rollup.splitlines():
        name, _, rest = line.partition(":")
        if name == "Pss":
            return int(rest.split()[0])
    raise ValueError("no Pss in smaps_rollup")


def _each(group: int, name: str) -> Iterator[str]:
    """A file of each process that has not ended meanwhile."""
    for pid in family(group):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield Path(f"/proc/{pid}/{name}").read_text()
