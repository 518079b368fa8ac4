"""What the disk takes for a durable write by itself: the part of a commit that no server can do without."""

import os
import tempfile
import time

from bench.environment import DATA

# About what a small commit appends to the WAL: four pages.
SIZE = 16 * 1024
SYNCS = 400


def sync_times(count: int = SYNCS, directory: str = DATA) -> list[float]:
    """Seconds of each of `count` appends with fdatasync, one after the other."""
    page = os.urandom(SIZE)
    times = []
    with tempfile.NamedTemporaryFile(prefix="tidegate-sync-", dir=directory) as file:
        for _ in range(count):
            began = time.perf_counter()
            os.write(file.fileno(), page)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return times
