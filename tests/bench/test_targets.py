"""Targets are described wholly, pinned, and end with the bench whatever they do."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from bench import processes
from bench.acceptance import absent
from bench.cells import measure
from bench.environment import family
from bench.musts import COSTS, DEADLINES, MUSTS, Cost, Must
from bench.processes import running
from bench.runner import all_cells
from bench.scenarios import SCENARIOS
from bench.targets import HOME, Target, TargetError, load

SERVER = """
import http.server, os, signal, sys
{extra}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
# Works until it is killed, in a session of its own, whatever it is told.
WORKER = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    while True: pass
"""
LOOP = """
import json, sqlite3, sys
database = sqlite3.connect(sys.argv[1] + "/rows.db")
database.execute("CREATE TABLE readings (value)")
database.executemany("INSERT INTO readings VALUES (?)", [(n,) for n in range(ROWS)])
database.commit()
print(json.dumps({"batches": 2, "seconds": 0.5, "warm_up_batches": 1}))
"""


def test_the_descriptions_name_scenarios_that_there_are() -> None:
    cells = all_cells(load())
    assert len(cells) == len(set(cells)) >= 20


def test_what_must_be_reached_is_measured() -> None:
    cells = set(all_cells(load(), named=load()))
    every: list[Must | Cost] = [*MUSTS, *COSTS]
    wanted = {name for must in every for name in (must.cell, must.against)}
    assert wanted | {deadline.cell for deadline in DEADLINES} <= cells


@pytest.mark.parametrize("name", [n for n, target in load().items() if target.environment == "own"])
def test_a_target_pins_what_it_needs(name: str) -> None:
    pins = (load()[name].folder / "requirements.txt").read_text().splitlines()
    assert pins
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+(post[0-9]+)?", pin) for pin in pins)


@pytest.mark.parametrize("name", [n for n, target in load().items() if target.environment == "node"])
def test_a_target_of_node_is_pinned_by_its_lock_file(name: str) -> None:
    wanted = json.loads((HOME / name / "package.json").read_text())["dependencies"]
    locked = json.loads((HOME / name / "package-lock.json").read_text())["packages"]
    assert wanted
    for package, version in wanted.items():
        assert locked[f"node_modules/{package}"]["version"] == version


def test_targets_share_no_code_with_the_gate() -> None:
    sources = [path for path in HOME.glob("*/*.py") if path.is_file()]
    assert len(sources) > 20
    gate = re.compile(r"^\s*(import|from) (server|handlers|auth|storage|bench)\b", re.MULTILINE)
    assert [str(path) for path in sources if gate.search(path.read_text())] == []


def test_a_target_says_why_it_takes_no_part() -> None:
    for target in load().values():
        assert not set(target.cannot) & set(target.scenarios)
        assert all(target.cannot.values())
        assert set(target.cannot) <= set(SCENARIOS)
        if target.limited:
            assert absent(target) == [], target.name


def test_a_misspelt_field_is_refused_with_its_file(tmp_path: Path) -> None:
    home = tmp_path / "mine"
    home.mkdir()
    (home / "target.toml").write_text('title = "x"\ncommand = []\nscenarios = []\ndatabse = "x"\n')
    with pytest.raises(TargetError, match=r"mine/target\.toml.*databse"):
        load(tmp_path)


def test_a_target_that_ends_at_once_is_reported_with_its_last_words() -> None:
    target = Target("x", ["-c", "raise SystemExit('no licence')"], [], "house", name="mine")
    with pytest.raises(TargetError, match="mine ended with 1 at once: no licence"), running(target):
        pass


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is deaf to SIGTERM is killed soon; what was killed has its time to end."""
    stop = processes._stop

    def soon(process: Any, patience: float) -> None:
        stop(process, min(patience, 1.0))

    monkeypatch.setattr(processes, "_stop", soon)


@pytest.mark.parametrize(
    "extra",
    ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)", "if os.fork() == 0: signal.pause()"],
    ids=["willing", "deaf", "with a worker"],
)
def test_no_target_outlives_its_cell(extra: str, impatient: None) -> None:
    target = Target("x", ["-c", SERVER.format(extra=extra), "{port}"], [], "house", name="mine")
    with running(target) as server:
        data, group = server.data, server.group
        os.killpg(group, 0)
    assert not data.exists()
    assert not any(_group(path) == group for path in Path("/proc").glob("[0-9]*/stat"))


def test_workers_with_groups_of_their_own_count_and_end_with_their_target(impatient: None) -> None:
    target = Target("x", ["-c", SERVER.format(extra=WORKER), "{port}"], [], "house", name="mine")
    with running(target) as server:
        (worker,) = family(server.group).keys() - {server.group}
        deadline = time.monotonic() + 60
        # A tick or more of work shows that it has a group of its own by now.
        while family(server.group).get(worker, 0) < 10:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert _group(Path(f"/proc/{worker}/stat")) == worker
    assert not _group(Path(f"/proc/{worker}/stat"))


def test_a_variant_is_its_target_but_for_what_it_says(tmp_path: Path) -> None:
    for name, text in {
        "base": 'title = "b"\ncommand = ["x"]\nscenarios = ["write", "page"]\nlimited = true\n'
        '[variables]\nA = "1"\nB = "2"\n[cannot]\nhello = "no"\n',
        "mine": 'title = "m"\nvariant_of = "base"\nscenarios = ["write"]\n[variables]\nB = "3"\n',
        "_off": 'title = "m"\nvariant_of = "none"\n',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "target.toml").write_text(text)
    base, mine = load(tmp_path)["base"], load(tmp_path)["mine"]
    assert (mine.title, mine.command, mine.scenarios, mine.limited) == ("m", ["x"], ["write"], True)
    assert mine.variables == {"A": "1", "B": "3"}
    assert mine.folder == base.folder
    assert absent(mine) == []
    (tmp_path / "_off").rename(tmp_path / "off")
    with pytest.raises(TargetError, match=r"off/target\.toml.*none"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("rows", "void"), [(3000, ""), (2000, "3000 readings were inserted, but 2000 stored")]
)
def test_the_rows_of_a_loop_are_counted(tmp_path: Path, rows: int, void: str) -> None:
    script = tmp_path / "loop.py"
    script.write_text(LOOP.replace("ROWS", str(rows)))
    target = Target(
        "x",
        [str(script), "{data}"],
        ["batch"],
        "house",
        "loop",
        "rows.db",
        "SELECT count(*) FROM readings",
        name="mine",
    )
    cell = measure(1, SCENARIOS["batch"], target, 1, 1)
    assert cell.void == void
    if not void:
        assert cell.figures is not None
        assert (cell.figures.rate, cell.figures.stored) == (4000.0, 3000)


def _group(path: Path) -> int:
    try:
        fields = path.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # A zombie that its new parent has not looked after yet has ended all the same.
    return 0 if fields[0] == "Z" else int(fields[2])
