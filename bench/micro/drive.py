"""`python -m bench.micro.drive PATH COUNT` answers COUNT requests of one path, to be counted from outside."""

import argparse
import itertools
import sys
import time
from collections.abc import Callable

import uvloop

from bench import contract
from bench.micro.gate import InProcess, in_process
from bench.micro.paths import PATHS, Path, Requests, preparations

# Rounds of requests before anything counts: caches fill, heads become known.
WARM_UP = 4


class Driver:
    """Sends the requests of one path to a gate of this process."""

    def __init__(self, gate: InProcess, path: Path, token: str) -> None:
        self._gate = gate
        self._path = path
        self._requests: Requests = path.requests(token)

    async def run(self, count: int, clock: Callable[[], float] = time.process_time) -> float:
        """Answer `count` requests; what `clock` went on per request, all threads of the process included.

        RuntimeError if an answer is not the path's.
        """
        requests = list(itertools.islice(self._requests, count))
        before = clock()
        await self._gate.send(requests, self._path.connections)
        spent = clock() - before
        self._gate.take(count, self._path.answer)
        return spent / count


async def prepare(gate: InProcess, path: Path) -> Driver:
    """Store what the path reads, and warm it up."""
    token = contract.token()
    await gate.check(preparations(token), b'"rejected_count":0')
    # The first read fills the cache of latest values.
    await gate.check([contract.request("GET", contract.LATEST, token)] * 2, b'"value":21.5')
    driver = Driver(gate, path, token)
    await driver.run(WARM_UP * path.connections)
    return driver


async def drive(path: Path, count: int) -> None:
    """Answer `count` requests of a path after its warm-up."""
    async with in_process() as gate:
        driver = await prepare(gate, path)
        if count:
            await driver.run(count)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m bench.micro.drive", description=__doc__)
    parser.add_argument("path", choices=PATHS)
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    uvloop.run(drive(PATHS[options.path], options.count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
