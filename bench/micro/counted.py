"""`python -m bench.micro.counted PATH OUT` counts the instructions of one path, under callgrind."""

import argparse
import sys
from pathlib import Path as File

import msgspec
import uvloop

from bench.micro.callgrind import Callgrind, CallgrindError
from bench.micro.drive import prepare
from bench.micro.gate import in_process
from bench.micro.paths import PATHS, Path


def counts(path: Path) -> tuple[int, int]:
    """Whole rounds of the path's connections: few, and more."""
    return (4 * path.connections, 20 * path.connections) if path.connections > 1 else (2, 12)


async def count(path: Path, callgrind: Callgrind) -> float:
    """Instructions per request: of more requests less those of few, so that what each run has once is out."""
    async with in_process() as gate:
        driver = await prepare(gate, path)
        found = []
        for requests in counts(path):
            callgrind.start()
            try:
                await driver.run(requests)
            finally:
                found.append(callgrind.stop())
        few, more = counts(path)
        return (found[1] - found[0]) / (more - few)


def main() -> int:
    """The process that valgrind runs."""
    parser = argparse.ArgumentParser("python -m bench.micro.counted", description=__doc__)
    parser.add_argument("path", choices=PATHS)
    parser.add_argument("out", type=File)
    options = parser.parse_args()
    try:
        found = uvloop.run(count(PATHS[options.path], Callgrind(options.out)))
    except CallgrindError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
