"""Durable writes: one reading per request with c=64, and batches of 1,000.

Every target checks a JWT, a limit and the body, and answers after the commit is on disk. Before a
figure counts, the answers are verified and the rows counted in the target's own database.
"""

import json
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import jwt
from msgspec import Struct

from bench.target import FASTAPI, LOAD_CORE, SECRET, TIDEGATE, Target, prepare, running

CONNECTIONS = 64
WARM_UP = 2
BATCH = 1_000
BATCHES = 400
LUA = Path(__file__).parent / "lua" / "post.lua"

_SPEED = re.compile(r"Requests/sec:\s+([0-9.]+)")
_COUNT = re.compile(r"([0-9]+) requests in")
_TAIL = re.compile(r"99%\s+([0-9.]+)(us|ms|s)")
_BAD = re.compile(r"(Non-2xx or 3xx responses|Socket errors): (.*)")


class Cell(Struct):
    """One measurement."""

    rate: float
    p99_ms: float


def run(seconds: int, rounds: int) -> int:
    """Measure in interleaved rounds and print a table; 0 if everything was verified."""
    targets = (TIDEGATE, FASTAPI)
    for target in targets:
        prepare(target)
    cells: dict[str, list[Cell]] = {target.name: [] for target in targets}
    batches = []
    for number in range(rounds):
        for target in targets if number % 2 == 0 else reversed(targets):
            cells[target.name].append(_one_by_one(target, seconds))
            print(f"round {number + 1}: {target.name} {cells[target.name][-1].rate:,.0f}/s", file=sys.stderr)
        batches.append(_in_batches())
        print(f"round {number + 1}: batches {batches[-1]:,.0f} readings/s", file=sys.stderr)
    print(
        f"\nPOST one reading, 200 after a synchronous=FULL commit, JWT + limit + validation, c={CONNECTIONS};"
    )
    print(f"server on one core, wrk on another, median of {rounds} rounds of {seconds} s (min - max)\n")
    for name, measured in cells.items():
        rates = [cell.rate for cell in measured]
        tail = statistics.median(cell.p99_ms for cell in measured)
        print(f"{name:16} {_spread(rates)} requests/s   p99 {tail:.1f} ms")
    ratios = [
        one.rate / other.rate for one, other in zip(cells[TIDEGATE.name], cells[FASTAPI.name], strict=True)
    ]
    print(f"{'ratio':16} {statistics.median(ratios):.1f} x ({min(ratios):.1f} - {max(ratios):.1f})")
    print(f"\nPOST {BATCH:,} readings a request, one connection at a time: {_spread(batches)} readings/s")
    return 0


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):>9,.0f} ({min(values):,.0f} - {max(values):,.0f})"


def _one_by_one(target: Target, seconds: int) -> Cell:
    with running(target) as (url, database), tempfile.NamedTemporaryFile("w", suffix=".json") as body:
        body.write('{"metric": "temperature", "value": 21.5}')
        body.flush()
        token = _token()
        path = f"{url}/v1/devices/bench.one/readings"
        _verify(path, token, Path(body.name).read_bytes())
        _wrk(path, token, body.name, WARM_UP)
        before = _rows(target, database)
        output = _wrk(path, token, body.name, seconds)
        stored = _rows(target, database) - before
        answered = int(_found(_COUNT, output)[1])
        # The requests under way when wrk stops counting are stored too, here and after the warm-up.
        if not answered <= stored <= answered + 2 * CONNECTIONS:
            raise RuntimeError(f"{target.name}: {answered} answers, but {stored} rows")
        tail = _found(_TAIL, output)
        scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}[tail[2]]
        return Cell(float(_found(_SPEED, output)[1]), float(tail[1]) * scale)


def _in_batches() -> float:
    """Readings per second of a client that sends batches, each after the answer to the one before."""
    token = _token()
    start = 1_700_000_000_000
    bodies = [
        json.dumps(
            [
                {"metric": f"m{n % 10}", "ts": start + number * BATCH + n, "value": 20 + n / 100}
                for n in range(BATCH)
            ]
        ).encode()
        for number in range(BATCHES)
    ]
    with running(TIDEGATE) as (url, database):
        path = f"{url}/v1/devices/bench.batch/readings"
        _verify(path, token, b'{"metric": "temperature", "value": 21.5}')
        os.sched_setaffinity(0, {LOAD_CORE})
        began = time.perf_counter()
        for body in bodies:
            status, answer = _post(path, token, body)
            if status != 200 or json.loads(answer)["accepted"] != BATCH:
                raise RuntimeError(f"{status} {answer!r}")
        seconds = time.perf_counter() - began
        if _rows(TIDEGATE, database) != BATCH * BATCHES + 1:
            raise RuntimeError("rows are missing")
    return BATCH * BATCHES / seconds


def _token() -> str:
    now = int(time.time())
    claims = {
        "iss": "tidegate",
        "aud": "tidegate",
        "sub": "bench",
        "iat": now,
        "exp": now + 3600,
        "jti": "bench",
        "scope": "readings:write readings:read",
        "devices": ["bench.>"],
    }
    return jwt.encode(claims, SECRET, "HS256")


def _verify(path: str, token: str, body: bytes) -> None:
    """The contract: 200 with a count for a good request, 401 without a token, 422 for a bad value."""
    status, answer = _post(path, token, body)
    if status != 200 or json.loads(answer)["accepted"] != 1:
        raise RuntimeError(f"expected 200 and one reading accepted: {status} {answer!r}")
    for bad_token, bad_body, expected in (("", body, 401), (token, b'{"metric": "t", "value": []}', 422)):
        status, answer = _post(path, bad_token, bad_body)
        if status != expected:
            raise RuntimeError(f"expected {expected}: {status} {answer!r}")


def _post(path: str, token: str, body: bytes) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        with urllib.request.urlopen(urllib.request.Request(path, body, headers), timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def _wrk(path: str, token: str, body: str, seconds: int) -> str:
    command = ["taskset", "--cpu-list", str(LOAD_CORE), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s"]
    done = subprocess.run(
        [*command, "--latency", "-s", str(LUA), path],
        env={**os.environ, "BENCH_TOKEN": token, "BENCH_BODY": body},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    bad = _BAD.search(done.stdout)
    if bad is not None:
        raise RuntimeError(f"the measurement is void: {bad[0]}")
    return done.stdout


def _found(pattern: re.Pattern[str], output: str) -> re.Match[str]:
    found = pattern.search(output)
    if found is None:
        raise RuntimeError(f"wrk says something unexpected:\n{output}")
    return found


def _rows(target: Target, database: Path) -> int:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        count: int = connection.execute(target.rows).fetchone()[0]
        return count
    finally:
        connection.close()
