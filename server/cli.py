"""The command line: serve, token, client, migrate, replay."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence

import uvloop

from auth.clients import InvalidClient
from auth.keys import ConfigurationError
from auth.principal import SCOPES
from handlers.times import InvalidTime, parse_duration
from server import admin, replay, serving, settings, sockets, worker, workers
from server.engines import open_engine
from server.identity import mint
from server.replay_csv import ReplayError
from server.serving import GateBroke
from server.worker import Post
from storage.errors import StorageError
from storage.patterns import InvalidPattern, parse_pattern

_DESCRIPTION = "A telemetry gate: readings in, durable; followed live, nothing missed."
_SERVE = "Settings are environment variables; name, default and meaning:\n\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The installed command `tidegate`; the exit code: 0, 1 (it failed), 2 (it was asked wrongly)."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    except ReplayError as error:
        print(error, file=sys.stderr)
        return error.code
    except (settings.SettingsError, ConfigurationError, InvalidClient) as error:
        print(f"tidegate: {error}", file=sys.stderr)
        return 2
    except (StorageError, GateBroke, OSError) as error:
        print(f"tidegate: {error}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tidegate", description=_DESCRIPTION)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="run the gate",
        description="Run the gate until SIGTERM or Ctrl-C.",
        epilog=_SERVE + settings.describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # How the parent of several workers starts one of them.
    serve.add_argument("--worker", type=Post.read, help=argparse.SUPPRESS)
    serve.set_defaults(run=_serve)

    token = commands.add_parser(
        "token",
        help="print a token",
        description="Print a token, signed with the key of the data directory or TIDEGATE_JWT_SECRET.",
    )
    token.add_argument("--sub", required=True, metavar="NAME", help="who it is for")
    token.add_argument("--scope", default="", help=f"space separated, of: {', '.join(SCOPES)}")
    token.add_argument("--devices", default="", help='patterns, space or comma separated: "demo.> acme.*.b1"')
    token.add_argument("--ttl", help="lifetime such as 90s, 1h, 7d (default: TIDEGATE_TOKEN_TTL)")
    token.set_defaults(run=_token)

    _add_client(commands)

    migrate = commands.add_parser(
        "migrate",
        help="bring the database up to date",
        description="Apply outstanding migrations; serve does the same at its start.",
    )
    migrate.set_defaults(run=_migrate)

    _add_replay(commands)
    return parser


def _add_client(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    client = commands.add_parser(
        "client",
        help="make, list and remove clients",
        description="Clients log in at /v1/token. Asks the running gate, else opens the data directory.",
    )
    actions = client.add_subparsers(title="actions", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a client and print its secret, once")
    create.add_argument("id", nargs="?", help="its name (default: one is made up)")
    create.add_argument("--scope", required=True, help=f"space separated, of: {', '.join(SCOPES)}")
    create.add_argument("--devices", default="", help="patterns, space or comma separated")
    create.add_argument("--ttl", help="lifetime of its tokens (default: TIDEGATE_TOKEN_TTL)")
    create.set_defaults(run=_client_create)
    listing = actions.add_parser("list", help="print all clients, a JSON object a line")
    listing.set_defaults(run=_client_list)
    delete = actions.add_parser("delete", help="remove a client and end its tokens")
    delete.add_argument("id")
    delete.set_defaults(run=_client_delete)


def _add_replay(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "replay",
        help="write a CSV of measurements to a running gate",
        description="Write a CSV of measurements to a running gate. Interrupted, it continues where it was; "
        "sent twice, nothing is doubled.",
    )
    parser.add_argument("file", metavar="FILE.csv")
    parser.add_argument("--device", required=True, help="the device that the measurements are of")
    parser.add_argument("--metric", default="", help="its metric, for a single value column")
    parser.add_argument("--ts-column", default="", help="the column with the time (default: found by itself)")
    parser.add_argument(
        "--value-column", action="append", default=[], help="a column with values (default: all others)"
    )
    parser.add_argument("--rate", default="max", metavar="N|max", help="readings per second (default: max)")
    parser.add_argument("--batch", type=int, default=500, help="readings per request (default: 500)")
    parser.add_argument("--timezone", default="UTC", help="of times without an offset (default: UTC)")
    parser.add_argument("--url", default="", help="the gate (default: TIDEGATE_HOST and TIDEGATE_PORT)")
    parser.add_argument("--token", default="", help="a token (default: one is made for the device)")
    parser.set_defaults(run=_replay)


def _serve(options: argparse.Namespace) -> int:
    chosen = settings.from_environment()
    if options.worker is not None:
        uvloop.run(worker.work(chosen, options.worker))
    elif chosen.workers > 1:
        return uvloop.run(workers.serve(chosen, settings.supervisor(), sys.stdout))
    else:
        uvloop.run(serving.serve(chosen, settings.supervisor(), sys.stdout))
    return 0


def _token(options: argparse.Namespace) -> int:
    chosen = settings.from_environment()
    ttl = chosen.token_ttl if options.ttl is None else _seconds(options.ttl)
    try:
        print(mint(chosen, options.sub, _scopes(options.scope), _patterns(options.devices), ttl))
    except ValueError as error:
        raise ConfigurationError(f"--ttl {options.ttl}: {error}") from error
    return 0


def _scopes(text: str) -> list[str]:
    scopes = text.replace(",", " ").split()
    for scope in scopes:
        if scope not in SCOPES:
            raise ConfigurationError(f"--scope {scope}: expected some of {', '.join(SCOPES)}")
    return scopes


def _seconds(text: str) -> int:
    try:
        return parse_duration(text) // 1_000_000
    except InvalidTime as error:
        raise ConfigurationError(f"--ttl {text}: {error}") from error


def _patterns(text: str) -> list[str]:
    patterns = text.replace(",", " ").split()
    for pattern in patterns:
        try:
            parse_pattern(pattern)
        except InvalidPattern as error:
            raise ConfigurationError(f"--devices {pattern}: {error}") from error
    return patterns


def _client_create(options: argparse.Namespace) -> int:
    ttl = 0 if options.ttl is None else _seconds(options.ttl)
    scopes, devices = _scopes(options.scope), _patterns(options.devices)
    made = asyncio.run(admin.create(settings.from_environment(), options.id, scopes, devices, ttl))
    print(json.dumps(made))
    return 0


def _client_list(_: argparse.Namespace) -> int:
    for client in asyncio.run(admin.listing(settings.from_environment())):
        print(json.dumps(client))
    return 0


def _client_delete(options: argparse.Namespace) -> int:
    asyncio.run(admin.delete(settings.from_environment(), options.id))
    return 0


def _migrate(_: argparse.Namespace) -> int:
    names = asyncio.run(_migrated(settings.from_environment()))
    print("\n".join(names) if names else "the database is up to date")
    return 0


async def _migrated(chosen: settings.Settings) -> list[str]:
    engine = await open_engine(chosen)
    await engine.close()
    return engine.migrated


def _replay(options: argparse.Namespace) -> int:
    chosen = settings.from_environment()
    token = options.token or mint(
        chosen, "replay", ["readings:write"], [options.device], chosen.token_ttl_max
    )
    try:
        rate = 0.0 if options.rate == "max" else float(options.rate)
    except ValueError as error:
        raise ConfigurationError(f"--rate {options.rate}: expected a number or max") from error
    plan = replay.Replay(
        file=options.file,
        device=options.device,
        url=options.url or admin.url(chosen),
        token=token,
        tls=True if options.url else sockets.trusting(chosen),
        metric=options.metric,
        ts_column=options.ts_column,
        value_columns=tuple(options.value_column),
        rate=rate,
        batch=options.batch,
        timezone=options.timezone,
    )
    return uvloop.run(replay.replay(plan, sys.stdout)).exit_code
