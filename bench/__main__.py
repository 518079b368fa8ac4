"""`python -m bench COMMAND`: what the gate is measured by, beside others and by itself."""

import argparse
import fnmatch
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import acceptance, compare, environment, gallery, growing, plans, runner, summary, targets
from bench.micro import instructions, regression, timing
from bench.micro.paths import PATHS
from bench.progress import say
from bench.results import Facts, Plan, Results, ResultsError, chosen
from bench.targets import Target, TargetError

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
    # Whoever is told to end leaves no server behind, and results that can be continued.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
    _add_run(commands.add_parser("run", help="the gate beside its peers: what scripts/bench does by itself"))
    _add_suites(commands)
    command = commands.add_parser(
        "compare", help="what changed from run A to run B, and is it more than noise"
    )
    command.add_argument("first", type=Path, metavar="A")
    command.add_argument("second", type=Path, metavar="B")
    command.set_defaults(run=_compare)
    command = commands.add_parser("report", help="make summary, page and plots of a run again")
    command.add_argument("directory", type=Path)
    command.set_defaults(run=_report)
    command = commands.add_parser("cells", help="list scenarios, targets and cells")
    command.set_defaults(run=lambda _: _list())
    command = commands.add_parser("verify", help="check that a target keeps the contract, measure nothing")
    command.add_argument("target", nargs="+", help="a name, * and ? stand for any")
    command.set_defaults(run=_verify)
    _add_micro(commands)
    return parser


def _add_run(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Measures the gate beside its peers. Without --targets and --scenarios: the gate, on both databases, "
        "and ten chosen peers on eight scenarios, all others on hello and write."
    )
    command.add_argument("--targets", nargs="+", default=[], metavar="NAME", help="these alone")
    command.add_argument("--scenarios", nargs="+", default=[], metavar="NAME", help="these alone")
    command.add_argument("--quick", action="store_true", help="1 round of 1 s of hello and write, in minutes")
    command.add_argument("--rounds", type=_positive, help=f"default {plans.ROUNDS}")
    command.add_argument("--seconds", type=_positive, help="of one measurement (default: what fits)")
    command.add_argument(
        "--minutes", type=_positive, default=plans.MINUTES, help="that all may take (default %(default).0f)"
    )
    command.add_argument(
        "--plan", action="store_true", help="say what would be measured, and how long it takes"
    )
    _add_run_options(command)
    command.set_defaults(run=_run)


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, help="of the order (default: any; it is recorded)")
    command.add_argument("--resume", type=Path, metavar="DIRECTORY", help="go on with an interrupted run")
    command.add_argument(
        "--results", type=Path, default=environment.RESULTS, metavar="DIRECTORY", help="where the run is kept"
    )


def _add_suites(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    requests, streams = runner.REQUESTS, runner.STREAMS
    for name, suite, cells, group, meaning in (
        ("floors", requests, EVERY, "", "the gate beside floors and other servers, in interleaved rounds"),
        ("ingest", requests, INGEST, "", "the part of it that writes: one reading per request, and 1,000"),
        ("growing", requests, EVERY, growing.GROUP, "the gate on PostgreSQL, with Redis, with two workers"),
        ("live", streams, EVERY, "", "the streams: fan-out beside others, memory, latency, one who is slow"),
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
        _add_run_options(command)
        command.set_defaults(run=_measure, suite=suite, whole=cells is EVERY, group=group)


def _add_micro(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    paths = f"of {', '.join(PATHS)} (default: all)"
    command = commands.add_parser("micro", help="CPU time per request, in-process")
    command.add_argument("paths", nargs="*", metavar="PATH", help=paths)
    command.add_argument("--repeats", type=_positive, default=15, help="measurements (default 15)")
    command.set_defaults(run=lambda given: timing.run(_paths(given.paths), given.repeats))
    command = commands.add_parser("instructions", help="instructions per request, in-process, by valgrind")
    command.add_argument("paths", nargs="*", metavar="PATH", help=paths)
    command.add_argument("--jobs", type=_positive, default=2, help="processes at a time (default 2)")
    command.add_argument("--profile", type=Path, metavar="DIRECTORY", help="keep callgrind's files there")
    action = command.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare with what is recorded; 1 if it is more")
    action.add_argument("--write", action="store_true", help="record what is found")
    command.add_argument("--why", default="", metavar="TEXT", help="with --write: why a path takes more now")
    command.set_defaults(run=_instructions)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected a number from 1 on")
    return number


def _paths(names: list[str]) -> list[str]:
    if unknown := sorted(set(names) - set(PATHS)):
        raise ResultsError(f"no path is named {', '.join(unknown)}; there are: {' '.join(PATHS)}")
    return names or list(PATHS)


def _instructions(options: argparse.Namespace) -> int:
    names = _paths(options.paths)
    if options.check:
        return regression.check(names, options.jobs)
    if options.write:
        return regression.write(names, options.jobs, options.why)
    return instructions.run(names, options.jobs, options.profile)


def _run(options: argparse.Namespace) -> int:
    known = targets.load()
    if options.resume is not None:
        _make_ready()
        return runner.run(_interrupted(options.resume), known)
    plan = _plan(options, known)
    say(plans.described(plan, known))
    if options.plan:
        print("\n".join(plan.cells))
        return 0
    _make_ready()
    partial = options.quick or bool(options.targets or options.scenarios)
    return runner.run(runner.begin(plan, partial=partial, home=options.results), known)


def _interrupted(directory: Path) -> Results:
    """A run to go on with; ResultsError if it is of another commit: its rounds would not be of one thing."""
    results, (head, _) = Results.read(directory), environment.commit()
    if (begun := results.environment.get("commit", head)) != head:
        raise ResultsError(f"{directory} was begun on commit {begun}, this is {head}")
    return results


def _plan(options: argparse.Namespace, known: dict[str, Target]) -> Plan:
    """What `run` measures; ResultsError."""
    every = runner.all_cells(known, runner.REQUESTS, runner.STREAMS, named=options.targets)
    if options.targets or options.scenarios:
        cells = plans.select(every, known, options.scenarios, options.targets)
        if options.quick and not options.scenarios:
            cells = plans.quick(cells) or cells
    else:
        cells = plans.quick(every) if options.quick else plans.full(every)
    curves = [] if options.quick else plans.curves(cells)
    rounds = options.rounds or (1 if options.quick else plans.ROUNDS)
    seconds = options.seconds or (1 if options.quick else None)
    canary = plans.CANARY if plans.CANARY in cells and not options.quick else ""
    plan = Plan(cells, rounds, 1, plans.WARM_UP, _seed(options), curves, canary)
    return plans.fitting(plan, known, options.minutes, seconds)


def _seed(options: argparse.Namespace) -> int:
    # Not for secrets.
    return random.randrange(1_000_000) if options.seed is None else options.seed


def _make_ready() -> None:
    if faults := environment.faults():
        raise TargetError("; ".join(faults))
    environment.allow_files(FILES)


def _measure(options: argparse.Namespace) -> int:
    _make_ready()
    known = targets.load()
    if options.resume is not None:
        return runner.run(_interrupted(options.resume), known)
    every = runner.all_cells(known, options.suite, named=(options.group,))
    cells = chosen(growing.cells(every) if options.group else every, options.only)
    rounds, seconds, warm_up = (2, 1, 1) if options.quick else (options.rounds, options.seconds, 2)
    if options.suite is runner.STREAMS and seconds > SECONDS_MAX:
        raise ResultsError(f"a measurement of streams takes at most {SECONDS_MAX} s: pings come after that")
    plan = Plan(cells, rounds, seconds, warm_up, _seed(options))
    say(plans.described(plan, known))
    partial = options.quick or not options.whole or tuple(options.only) != EVERY
    return runner.run(runner.begin(plan, partial=partial, home=options.results), known)


def _list() -> int:
    known = targets.load()
    for suite in (runner.REQUESTS, runner.STREAMS):
        for scenario in suite.scenarios.values():
            print(f"{scenario.name:18} {scenario.title}")
    print()
    for target in known.values():
        print(f"{target.name:20} {target.title}: {' '.join(target.scenarios)}")
    requests, streams = (len(runner.all_cells(known, suite)) for suite in (runner.REQUESTS, runner.STREAMS))
    group = len(growing.cells(runner.all_cells(known, named=(growing.GROUP,))))
    print(f"\n{requests} cells of requests, {streams} of streams (bench live), {group} of bench growing")
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


def _compare(options: argparse.Namespace) -> int:
    print(compare.render(*_read(options.first, options.second)), end="")
    return 0


def _report(options: argparse.Namespace) -> int:
    (results,) = _read(options.directory)
    text = summary.render(results)
    results.keep_summary(text)
    gallery.keep(results, say)
    print(text, end="")
    return 0


def _read(*directories: Path) -> Sequence[Results]:
    """Runs from the disk; titles that an old one did not keep are those of today's targets."""
    known, read = targets.load(), []
    for directory in directories:
        results = Results.read(directory)
        for name in {cell.partition("@")[2] for cell in results.plan.cells} - set(results.facts):
            results.facts[name] = Facts(known[name].title if name in known else name)
        read.append(results)
    return read


if __name__ == "__main__":
    sys.exit(main())
