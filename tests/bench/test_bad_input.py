"""Whatever goes wrong with a run ends in a clear message, and what was measured can be used."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pytest

from bench import processes, runner
from bench.__main__ import main
from bench.processes import running
from bench.results import CELLS, SUMMARY, Plan, Results
from bench.targets import Target, TargetError
from tests.running import ROOT

T = TypeVar("T")


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# -- names and numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "--targets", "tidgate"], "bench: no target is named tidgate (did you mean tidegate"),
        (["run", "--scenarios", "wirte"], "bench: no scenario is named wirte (did you mean write"),
        (
            ["run", "--targets", "tidegate", "--scenarios", "ws-echo"],
            "bench: nothing to measure; tidegate has no",
        ),
        (["run", "--seconds", "300"], "minutes, more than 90: ask for fewer --targets"),
        (["run", "--rounds", "0"], "expected a number from 1 on"),
        (["run", "--resume", "/nowhere"], "bench: /nowhere holds no results"),
        (["floors", "--only", "wirte"], "bench: no cell is named wirte; there are: "),
        (["live", "--seconds", "60"], "bench: a measurement of streams takes at most 12 s"),
        (["compare", "/nowhere", "/nowhere"], "bench: /nowhere holds no results"),
        (["report", "/nowhere"], "bench: /nowhere holds no results"),
        (["instructions", "wirte"], "bench: no path is named wirte; there are: "),
        (["verify", "tidgate"], "bench: no target is named tidgate"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    arguments: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(monkeypatch, *arguments) == 2
    assert complaint in capsys.readouterr().err


def test_a_run_of_another_commit_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Results.create(tmp_path, "run", Plan(["latest@tidegate"], 1, 1, 1, 1), {"commit": "abc1234"})
    assert _main(monkeypatch, "run", "--resume", str(run.directory)) == 2
    assert "was begun on commit abc1234, this is " in capsys.readouterr().err


def test_a_plan_says_its_cells_and_its_time_and_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(monkeypatch, "run", "--plan") == 0
    said = capsys.readouterr()
    assert "rounds of" in said.err
    assert "minutes (seed" in said.err
    assert "write@tidegate" in said.out.splitlines()


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    # The tests' own process keeps its handlers.
    monkeypatch.setattr("signal.signal", lambda *_: None)
    try:
        return main()
    except SystemExit as error:
        return int(error.code or 0)


# -- targets -------------------------------------------------------------------------------------


def test_a_busy_port_is_not_taken_for_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("x", ["-c", "import time; time.sleep(60)"], [], "house", name="mine")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr("bench.servers.free_port", lambda: port)
        with pytest.raises(TargetError, match=f"port {port} is busy"), running(target):
            pass


@pytest.mark.parametrize(
    ("code", "patience", "complaint"),
    [
        ("raise SystemExit('no licence')", 30.0, "mine ended with 1 at once: no licence"),
        ("import time; time.sleep(60)", 1.0, "mine was not ready within 1.0 s"),
    ],
)
def test_a_peer_that_does_not_start_is_void_and_the_others_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, patience: float, complaint: str
) -> None:
    await_start = processes._await_start

    def impatient(process: Any, port: int, target: Target, said: BinaryIO) -> None:
        with monkeypatch.context() as patch:
            if target.name == "mine":
                patch.setattr(processes, "START_TIMEOUT", patience)
            await_start(process, port, target, said)

    monkeypatch.setattr(processes, "_await_start", impatient)
    monkeypatch.setattr("bench.gallery._draw", lambda directory: None)
    known = {
        "mine": Target("mine", ["-c", code], ["start"], "house", name="mine"),
        "good": Target("good", ["-m", "http.server", "{port}"], ["start"], "house", name="good"),
    }
    results = Results.create(tmp_path, "run", Plan(["start@mine", "start@good"], 2, 1, 1, 1), {})
    assert runner.run(results, known) == 1
    found = {(cell.round, cell.target): cell for cell in Results.read(results.directory).final()}
    assert {bool(found[number, "good"].figures) for number in (1, 2)} == {True}
    assert all(complaint in found[number, "mine"].void for number in (1, 2))
    text = (results.directory / SUMMARY).read_text()
    assert "2 of 4 measurements count" in text
    assert complaint in text


# -- interruptions -------------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_running_and_is_continued(
    tmp_path: Path, how: signal.Signals
) -> None:
    # Who starts the tests may ignore it, as a shell does for what it starts in the background.
    default = ["env", "--default-signal=INT"]
    command = [*default, sys.executable, "-m", "bench", "run", "--targets", "tidegate"]
    command += ["--results", str(tmp_path)]
    load = ["--scenarios", "latest", "rejected-token", "--quick", "--rounds", "2", "--seed", "7"]
    process = subprocess.Popen(
        [*command, *load], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        (directory,) = _eventually(lambda: list(tmp_path.iterdir()))
        _eventually(lambda: (directory / CELLS).exists())
        # In the middle of the second: its server, and its load.
        _eventually(lambda: len(_children(process.pid)) == 2)
        children = _children(process.pid)
        process.send_signal(how)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert f"go on with: --resume {directory}" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert 1 <= len(Results.read(directory).final()) < 4
    assert " of 4 measurements count" in (directory / SUMMARY).read_text()
    done = bench("run", "--resume", str(directory))
    assert done.returncode == 0, done.stderr
    assert "4 of 4 measurements count" in (directory / SUMMARY).read_text()
    rounds = [(cell.round, cell.name) for cell in Results.read(directory).cells if not cell.void]
    assert len(rounds) == len(set(rounds)) == 4


def _children(pid: int) -> list[int]:
    """The server that is measured, and the load."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in found.split()]


def _eventually(look: Callable[[], T]) -> T:
    deadline = time.monotonic() + 180
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
