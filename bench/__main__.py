"""`python -m bench COMMAND`: what the gate is measured by, beside others and by itself."""

import argparse
import fnmatch
import random
import sys
from pathlib import Path

from bench import acceptance, environment, runner, targets
from bench.micro import instructions, timing
from bench.micro.paths import PATHS
from bench.results import Plan, Results, ResultsError, chosen
from bench.targets import TargetError

# The cells of a command that has no --only.
EVERY = ("*",)
INGEST = ("write", "batch")
# Files that a crowd, or its target, has open at most.
FILES = 6_000
# Seconds of one measurement of streams.
SECONDS_MAX = 12


def main() -> int:
    """The command line of the bench: 0, 1 (something does not count), 2 (it was asked wrongly)."""
    options = _parser().parse_args()
    try:
        code: int = options.run(options)
    except (TargetError, ResultsError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    requests, streams = runner.REQUESTS, runner.STREAMS
    for name, suite, cells, meaning in (
        ("floors", requests, EVERY, "the gate beside the floors and other servers, in interleaved rounds"),
        ("ingest", requests, INGEST, "the part of it that writes: one reading per request, and 1,000"),
        ("live", streams, EVERY, "the streams: fan-out beside others, memory, latency, one who is slow"),
    ):
        command = commands.add_parser(name, help=meaning, description=meaning)
        command.add_argument("--rounds", type=_positive, default=5, help="default 5")
        command.add_argument("--seconds", type=_positive, default=5, help="of one measurement (default 5)")
        command.add_argument(
            "--only",
            nargs="+",
            default=cells,
            metavar="CELL",
            help="SCENARIO@TARGET, SCENARIO or @TARGET, with * and ?",
        )
        command.add_argument("--quick", action="store_true", help="2 rounds of 1 s, to see that all works")
        command.add_argument("--seed", type=int, help="of the order (default: any; it is recorded)")
        command.add_argument("--resume", type=Path, metavar="DIRECTORY", help="go on with an interrupted run")
        command.set_defaults(run=_measure, suite=suite, whole=cells is EVERY)

    command = commands.add_parser("cells", help="list scenarios, targets and cells")
    command.set_defaults(run=lambda _: _list())
    command = commands.add_parser("verify", help="check that a target keeps the contract, measure nothing")
    command.add_argument("target", nargs="+", help="a name, * and ? stand for any")
    command.set_defaults(run=_verify)
    command = commands.add_parser("report", help="print the report of a run again")
    command.add_argument("directory", type=Path)
    command.set_defaults(run=_report)

    paths = f"of {', '.join(PATHS)} (default: all)"
    command = commands.add_parser("micro", help="CPU time per request, in-process")
    command.add_argument("paths", nargs="*", metavar="PATH", help=paths)
    command.add_argument("--repeats", type=_positive, default=15, help="measurements (default 15)")
    command.set_defaults(run=lambda given: timing.run(_paths(given.paths), given.repeats))
    command = commands.add_parser("instructions", help="instructions per request, in-process, by valgrind")
    command.add_argument("paths", nargs="*", metavar="PATH", help=paths)
    command.add_argument("--jobs", type=_positive, default=2, help="processes at a time (default 2)")
    command.add_argument("--profile", type=Path, metavar="DIRECTORY", help="keep callgrind's files there")
    command.set_defaults(run=lambda given: instructions.run(_paths(given.paths), given.jobs, given.profile))
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected a number from 1 on")
    return number


def _paths(names: list[str]) -> list[str]:
    if unknown := sorted(set(names) - set(PATHS)):
        raise ResultsError(f"no path is named {', '.join(unknown)}; there are: {' '.join(PATHS)}")
    return names or list(PATHS)


def _measure(options: argparse.Namespace) -> int:
    if faults := environment.faults():
        raise TargetError("; ".join(faults))
    environment.allow_files(FILES)
    known = targets.load()
    if options.resume is not None:
        return runner.run(Results.read(options.resume), known)
    cells = chosen(runner.all_cells(known, options.suite), options.only)
    rounds, seconds, warm_up = (2, 1, 1) if options.quick else (options.rounds, options.seconds, 2)
    if options.suite is runner.STREAMS and seconds > SECONDS_MAX:
        raise ResultsError(f"a measurement of streams takes at most {SECONDS_MAX} s: pings come after that")
    # Not for secrets.
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    plan = Plan(cells, rounds, seconds, warm_up, seed)
    partial = options.quick or not options.whole or tuple(options.only) != EVERY
    return runner.run(runner.begin(plan, partial=partial), known)


def _list() -> int:
    known = targets.load()
    for suite in (runner.REQUESTS, runner.STREAMS):
        for scenario in suite.scenarios.values():
            print(f"{scenario.name:18} {scenario.title}")
    print()
    for target in known.values():
        print(f"{target.name:20} {target.title}: {' '.join(target.scenarios)}")
    requests, streams = (len(runner.all_cells(known, suite)) for suite in (runner.REQUESTS, runner.STREAMS))
    print(f"\n{requests} cells of requests, {streams} of streams (bench live)")
    return 0


def _verify(options: argparse.Namespace) -> int:
    known = targets.load()
    wanted = [name for pattern in options.target for name in fnmatch.filter(known, pattern) or [pattern]]
    if unknown := sorted(set(wanted) - set(known)):
        raise TargetError(f"no target is named {', '.join(unknown)}; there are: {' '.join(known)}")
    bad = 0
    for name in dict.fromkeys(wanted):
        target = known[name]
        try:
            targets.prepare(target)
            for finding in acceptance.examine(target):
                bad += bool(finding.complaint)
                print(f"{name}: {finding}", flush=True)
        except TargetError as error:
            bad += 1
            print(error)
        for scenario, reason in target.cannot.items():
            print(f"{name}: {scenario}: takes no part: {reason}")
        if target.limited and (absent := acceptance.absent(target)):
            print(f"{name}: nothing is said of {', '.join(absent)} (scenarios or [cannot] in target.toml)")
    return 1 if bad else 0


def _report(options: argparse.Namespace) -> int:
    results = Results.read(options.directory)
    render = runner.suite_of(results.plan).render
    print(render(results.plan, results.final(), targets.load()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
