"""`python -m bench COMMAND`: what the gate is measured by."""

import argparse
import sys
from pathlib import Path

from bench import ingest
from bench.micro import instructions, timing
from bench.micro.paths import PATHS


def main() -> int:
    """The command line of the bench."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("ingest", help="one reading per request, and 1,000; 200 after the commit")
    command.add_argument("--seconds", type=int, default=5, help="of one measurement (default 5)")
    command.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    command.set_defaults(run=lambda given: ingest.run(given.seconds, given.rounds))

    command = commands.add_parser("micro", help="CPU time per request, in-process")
    command.add_argument("paths", nargs="*", metavar="PATH", help=f"of {', '.join(PATHS)} (default: all)")
    command.add_argument("--repeats", type=int, default=15, help="measurements (default 15)")
    command.set_defaults(run=lambda given: timing.run(given.paths, given.repeats))

    command = commands.add_parser("instructions", help="instructions per request, in-process, by valgrind")
    command.add_argument("paths", nargs="*", metavar="PATH", help=f"of {', '.join(PATHS)} (default: all)")
    command.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    command.add_argument("--profile", type=Path, metavar="DIRECTORY", help="keep callgrind's files there")
    command.set_defaults(run=lambda given: instructions.run(given.paths, given.jobs, given.profile))

    options = parser.parse_args()
    if "paths" in options:
        if unknown := set(options.paths) - set(PATHS):
            parser.error(f"no such path: {', '.join(sorted(unknown))}; there are {', '.join(PATHS)}")
        options.paths = options.paths or list(PATHS)
    code: int = options.run(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
