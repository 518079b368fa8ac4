"""The servers that are measured: started fresh for each measurement, pinned to one core."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parent.parent
TARGETS = Path(__file__).parent / "targets"
SERVER_CORE, LOAD_CORE = 0, 1
SECRET = "bench-secret-of-at-least-32-bytes-0123456789"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0


class Target(Struct, frozen=True):
    """A server under test. `database`: the file it keeps its rows in, `rows`: the SQL that counts them."""

    name: str
    database: str
    rows: str = "SELECT count(*) FROM readings"


TIDEGATE = Target("tidegate", "tidegate.db")
FASTAPI = Target("fastapi_sqlite", "bench.db")


def prepare(target: Target) -> None:
    """Make the peer's own virtual environment with its pinned requirements, if it is not there."""
    if target is TIDEGATE:
        return
    home = TARGETS / target.name
    environment = home / ".venv"
    stamp = environment / "requirements.txt"
    wanted = (home / "requirements.txt").read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(home / "requirements.txt")], check=True)
    stamp.write_text(wanted)


@contextmanager
def running(target: Target) -> Iterator[tuple[str, Path]]:
    """The server in a process of its own on a fresh directory: its URL and that directory."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-", dir="/var/tmp") as data:
        port = _free_port()
        command, variables = _command(target, port, data)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
        process = subprocess.Popen(
            ["taskset", "--cpu-list", str(SERVER_CORE), *command],
            cwd=ROOT if target is TIDEGATE else TARGETS / target.name,
            env={**kept, **variables},
            stdout=subprocess.DEVNULL,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _await_start(process, url)
            yield url, Path(data) / target.database
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT)


def _command(target: Target, port: int, data: str) -> tuple[list[str], Mapping[str, str]]:
    if target is TIDEGATE:
        return [sys.executable, "-m", "server", "serve"], {
            "TIDEGATE_PORT": str(port),
            "TIDEGATE_DATA": data,
            "TIDEGATE_JWT_SECRET": SECRET,
            # High, not off.
            "TIDEGATE_RATE_LIMIT": "100000000",
            "TIDEGATE_POINT_LIMIT": "1000000000",
        }
    python = str(TARGETS / target.name / ".venv" / "bin" / "python")
    serve = ["-m", "uvicorn", "app:app", "--port", str(port), "--loop", "uvloop", "--no-access-log"]
    return [python, *serve], {"BENCH_SECRET": SECRET, "BENCH_DATA": data}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _await_start(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode} before it was ready")
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the server was not ready within {START_TIMEOUT} s")
