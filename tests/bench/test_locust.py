"""The locustfile drives a gate: devices, readers and followers of both kinds, without one failure."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.contract import SECRET
from bench.processes import running
from bench.targets import load
from tests.running import ROOT

pytestmark = pytest.mark.system

FILE = ROOT / "bench" / "locust" / "locustfile.py"
ROWS = {
    ("POST", "POST reading"),
    ("GET", "GET latest"),
    ("GET", "GET events"),
    ("WS", "subscribe"),
    ("SSE", "subscribe"),
    ("WS", "deliver"),
    ("SSE", "deliver"),
}


def drive(url: str, home: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "locust", "-f", str(FILE), "--host", url, "--headless", "--only-summary"]
    load = ["--users", "14", "--spawn-rate", "14", "--run-time", "5s", "--csv", str(home / "found")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return subprocess.run(
        [*command, *load],
        cwd=home,
        env={**kept, "BENCH_DEVICES": "5", "BENCH_WAIT": "0.2", **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_everybody_is_served_and_every_reading_is_delivered(tmp_path: Path) -> None:
    with running(load()["tidegate"]) as server:
        done = drive(server.url, tmp_path, TIDEGATE_JWT_SECRET=SECRET)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "found_stats.csv").open() as file:
        rows = {(row["Type"], row["Name"]): row for row in csv.DictReader(file)}
    assert set(rows) >= ROWS
    assert {row["Failure Count"] for row in rows.values()} == {"0"}
    written = int(rows["POST", "POST reading"]["Request Count"])
    assert written > 50
    for kind in ("WS", "SSE"):
        # Those written before it followed, and those under way at the end, are not delivered.
        assert int(rows[kind, "deliver"]["Request Count"]) > written / 2


def test_without_a_secret_it_says_what_is_missing(tmp_path: Path) -> None:
    done = drive("http://127.0.0.1:9", tmp_path)
    assert done.returncode != 0
    assert "set TIDEGATE_JWT_SECRET to the gate's" in done.stdout + done.stderr


def test_a_wrong_secret_is_a_failure_of_everybody(tmp_path: Path) -> None:
    with running(load()["tidegate"]) as server:
        done = drive(server.url, tmp_path, TIDEGATE_JWT_SECRET="another-secret-of-at-least-32-bytes-01")
    assert done.returncode == 1
    assert "expected 200, got 401" in done.stdout + done.stderr
