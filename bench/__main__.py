"""`python -m bench ingest`: durable writes, Tidegate beside FastAPI + SQLite."""

import argparse
import sys

from bench import ingest


def main() -> int:
    """The command line of the bench."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("ingest", help="one reading per request, and 1,000; 200 after the commit")
    command.add_argument("--seconds", type=int, default=5, help="of one measurement (default 5)")
    command.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    options = parser.parse_args()
    return ingest.run(options.seconds, options.rounds)


if __name__ == "__main__":
    sys.exit(main())
