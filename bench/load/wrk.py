"""wrk: closed loop, for the highest throughput. Its latencies are those of an overload, nothing more."""

import os
import re
import tempfile
from pathlib import Path

from msgspec import Struct

from bench import commands
from bench.contract import EPOCH

HERE = Path(__file__).parent
# Seconds beyond its own time that wrk gets.
PATIENCE = 30.0

_SPEED = re.compile(r"^Requests/sec:\s+([0-9.]+)", re.MULTILINE)
_COUNT = re.compile(r"^\s*([0-9]+) requests in ([0-9.]+)(us|ms|s|m|h)", re.MULTILINE)
_PERCENTILE = re.compile(r"^\s*(50|99)%\s+([0-9.]+)(us|ms|s|m)\s*$", re.MULTILINE)
_BAD = re.compile(r"^\s*((?:Non-2xx or 3xx responses|Socket errors): .*)$", re.MULTILINE)
_ERRORS = re.compile(r"^\s*Non-2xx or 3xx responses: ([0-9]+)$", re.MULTILINE)
# What wrk counts as an error.
REFUSED = 400
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}


class Void(Exception):
    """A measurement that does not count, and why."""


class Closed(Struct, frozen=True):
    """What wrk measured: requests answered, per second, and latencies in milliseconds."""

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float


class Ask(Struct, frozen=True):
    """The request of a load. `cold`: each has a head of its own; `batches`: 1,000 readings of its own.

    `devices`: each asks the next of so many, whose number stands for the @ of the path.
    `closes`: each has a connection of its own. `status`: of every answer; one that is not 200 has to be at
    least 400, which wrk counts without telling them apart.
    """

    method: str = "GET"
    path: str = "/"
    body: bytes = b""
    token: str = ""
    cold: bool = False
    batches: bool = False
    closes: bool = False
    status: int = 200
    devices: int = 0


def run(url: str, ask: Ask, connections: int, seconds: int, first: int = 0) -> Closed:
    """Load for `seconds` from the load core; `first`: number of the first batch. Void if an answer is bad."""
    with tempfile.NamedTemporaryFile(suffix=".json") as body:
        body.write(ask.body)
        body.flush()
        variables = {
            "BENCH_METHOD": ask.method,
            "BENCH_TOKEN": ask.token,
            "BENCH_BODY": body.name if ask.body else "",
            "BENCH_COLD": "1" if ask.cold else "0",
            "BENCH_CLOSES": "1" if ask.closes else "0",
            "BENCH_DEVICES": str(ask.devices),
            "BENCH_FIRST": str(first),
            "BENCH_EPOCH": str(EPOCH),
        }
        script = HERE / ("batch.lua" if ask.batches else "request.lua")
        load = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "--latency"]
        command = [*load, "-s", str(script), url + ask.path]
        done = commands.run(command, seconds + PATIENCE, variables={**os.environ, **variables})
    if done.returncode:
        raise Void(f"wrk ended with {done.returncode}: {done.stderr.decode().strip()[-500:]}")
    return read(done.stdout.decode(), refused=ask.status >= REFUSED)


def read(output: str, *, refused: bool = False) -> Closed:
    """What wrk says; Void if there were errors, or nothing was answered.

    `refused`: every answer has to be an error, and is none.
    """
    bad = _BAD.search(output)
    errors = _ERRORS.search(output) if refused else None
    if bad is not None and (errors is None or "Socket errors" in output):
        raise Void(bad[1])
    speed, count = _SPEED.search(output), _COUNT.search(output)
    tail = {found[1]: float(found[2]) * _MILLISECONDS[found[3]] for found in _PERCENTILE.finditer(output)}
    if speed is None or count is None or len(tail) != 2:
        raise Void(f"wrk says something unexpected:\n{output}")
    if int(count[1]) == 0:
        raise Void("nothing was answered")
    if refused and (errors is None or int(errors[1]) != int(count[1])):
        raise Void(f"expected {count[1]} requests to be refused, found {errors[1] if errors else 0}")
    return Closed(int(count[1]), float(speed[1]), tail["50"], tail["99"])
