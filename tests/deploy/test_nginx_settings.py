"""What the nginx configuration promises in numbers, against the defaults of the gate; and a security lint."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crossplane
import pytest

from server.settings import duration, load, size
from tests.deploy.nginx import SHIPPED

DEFAULTS = load({})
# Events must not wait in buffers, and the names of gates are resolved once, at the start.
ACCEPTED = "proxy_buffering_off,stale_dns_cache"


def directives(name: str) -> list[list[str]]:
    """The arguments of each directive of this name, wherever it stands."""
    parsed = crossplane.parse(str(SHIPPED / "nginx.conf"), comments=False)
    assert parsed["status"] == "ok", parsed["errors"]
    blocks = (block for config in parsed["config"] for block in _all(config["parsed"]))
    return [block["args"] for block in blocks if block["directive"] == name]


def _all(blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for block in blocks:
        yield block
        yield from _all(block.get("block", []))


def one(name: str) -> str:
    """The only argument of the only directive of this name."""
    ((argument,),) = directives(name)
    return argument


@pytest.mark.parametrize("file", ["nginx.conf", "tidegate/server-tls.conf"])
def test_gixy_finds_nothing(file: str) -> None:
    gixy = Path(sys.executable).with_name("gixy")
    command = [str(gixy), "--skips", ACCEPTED, str(SHIPPED / file)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, "No issues found" in run.stdout) == (0, True), run.stdout


def test_the_limits_are_those_of_the_gate() -> None:
    # nginx's m is MiB.
    assert size(one("client_max_body_size").replace("m", "MiB")) == DEFAULTS.max_body
    assert duration(one("client_header_timeout")) == DEFAULTS.header_timeout
    assert duration(one("client_body_timeout")) == DEFAULTS.body_timeout
    # A stream has two connections of nginx, and nginx two workers at least where there are two cores.
    assert int(one("worker_connections")) >= 2 * DEFAULTS.max_connections


def test_nginx_lets_go_of_an_idle_connection_first() -> None:
    """Promise: F28. With room for a gate that is busy."""
    timeouts = [duration(argument) for (argument,) in directives("keepalive_timeout")]
    to_clients, to_gates = max(timeouts), min(timeouts)
    assert to_gates < DEFAULTS.keepalive_timeout / 2
    assert to_clients == DEFAULTS.keepalive_timeout


def test_a_stream_may_be_silent_between_two_pings() -> None:
    ((everywhere,), *streams) = sorted(directives("proxy_read_timeout"), key=lambda found: duration(found[0]))
    assert all(duration(silence) >= 3 * 25 for (silence,) in streams)
    # A transaction of 8 s is answered before nginx gives up.
    assert duration(everywhere) >= 20


def test_every_gate_stands_in_both_lists() -> None:
    servers = [arguments for arguments in directives("server") if arguments]
    first = [address for address, *options in servers if "backup" not in options]
    last = [address for address, *options in servers if "backup" in options]
    assert first == last == ["gate1:8080", "gate2:8080"]
