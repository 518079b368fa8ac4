"""`bench growing` measures what issue 5 asks for, each cell what its name says; a full run does without."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from bench import cells, contract, growing, levels, plans, report, runner, servers
from bench.__main__ import main
from bench.acceptance import examine
from bench.client import Client
from bench.levels import Levels
from bench.load import wrk
from bench.load.wrk import Ask, Void
from bench.musts import COSTS, MUSTS, Cost, Must
from bench.processes import running
from bench.results import Cell, Figures, Plan
from bench.scenarios import SCENARIOS
from bench.targets import Level, Target, load, prepare
from tests.bench import starved

KNOWN = load()
CELLS = growing.cells(runner.all_cells(KNOWN, named=(growing.GROUP,)))
GROUP = [target.name for target in KNOWN.values() if target.group]
METRICS = """
# TYPE tidegate_cache_hits_total counter
tidegate_cache_hits_total{cache="token"} 77
tidegate_cache_hits_total{cache="latest"} 10
tidegate_cache_misses_total{cache="latest"} 90
tidegate_cache_shared_hits_total 60
"""
# Of the gate's table, by its own connection: as many as the loop says, less `fewer`.
LOOP = """
import json, sys, psycopg2
connection = psycopg2.connect(sys.argv[1])
connection.autocommit = True
cursor = connection.cursor()
cursor.execute("SELECT min(id) FROM tidegate.series")
series = cursor.fetchone()[0]
cursor.execute(
    "INSERT INTO tidegate.readings SELECT 10000 + n, n, 1.5, %s, 1 FROM generate_series(1, 3000 - FEWER) n",
    (series,),
)
MORE
print(json.dumps({"batches": 2, "seconds": 0.5, "warm_up_batches": 1}))
"""


# -- what is measured ----------------------------------------------------------------------------


def test_the_group_has_every_cell_that_issue_5_compares() -> None:
    every: list[Must | Cost] = [*MUSTS, *COSTS]
    compared = [must for must in every if must.cell in CELLS]
    named = {name for must in compared for name in (must.cell, must.against)}
    assert named == set(CELLS)
    assert len(compared) == 6 + 2 + 2 + 8
    assert {(must.factor, must.stretch) for must in compared if must.cell == "batch@tidegate_postgres"} == {
        (0.5, False),
        (0.8, True),
    }


def test_a_run_without_the_group_does_not_measure_it() -> None:
    every = runner.all_cells(KNOWN, runner.REQUESTS, runner.STREAMS)
    assert len(GROUP) == 7
    assert not {name.partition("@")[2] for name in every} & set(GROUP)
    asked = {name.partition("@")[0] for name in (*plans.full(every), *plans.quick(every))}
    assert not asked & {"write-256", "latest-many"}


def test_who_names_a_target_of_the_group_gets_it() -> None:
    every = runner.all_cells(KNOWN, named=["tidegate_miss"])
    assert plans.select(every, KNOWN, [], ["tidegate_miss"]) == ["latest-many@tidegate_miss"]


def test_the_bench_knows_the_group(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "cells"])
    assert main() == 0
    said = capsys.readouterr().out
    assert f"{len(CELLS)} of bench growing" in said
    assert all(name in said for name in GROUP)


def test_variants_differ_by_settings_alone() -> None:
    own = {"name", "title", "scenarios", "variables", "levels", "redis", "variant_of", "group", "cannot"}
    variants = [target for target in KNOWN.values() if target.variant_of]
    assert len(variants) == 6
    for target in variants:
        base = KNOWN[target.variant_of]
        for field in set(Target.__struct_fields__) - own:
            assert getattr(target, field) == getattr(base, field), (target.name, field)
        assert base.variables.items() <= target.variables.items()


# -- what is told --------------------------------------------------------------------------------


def _rounds(name: str, *found: Figures) -> list[Cell]:
    scenario, _, target = name.partition("@")
    return [Cell(number, scenario, target, "", 1.0, "", each) for number, each in enumerate(found, 1)]


def _lines(found: dict[str, list[Figures]]) -> list[str]:
    every = [cell for name, figures in found.items() for cell in _rounds(name, *figures)]
    rounds = max(map(len, found.values()))
    text = report.render(Plan(list(found), rounds, 1, 1, 1), every, {})
    section = text.partition("## Musts")[2].partition("\n## ")[0]
    return [" ".join(line.replace("|", " ").split()) for line in section.splitlines() if "@" in line]


def test_rates_are_held_to_the_table() -> None:
    found = _lines(
        {
            "write@tidegate_postgres": [Figures(1300.0), Figures(2600.0)],
            "write@fastapi_asyncpg": [Figures(100.0), Figures(200.0)],
            "write@aiohttp_aiopg": [Figures(260.0), Figures(520.0)],
        }
    )
    ours = "write@tidegate_postgres"
    assert found == [
        f"{ours} write@fastapi_asyncpg >= 12.00 x 13.00 x (13.00 - 13.00) met by 8%",
        f"{ours} write@aiohttp_aiopg >= 6.00 x 5.00 x (5.00 - 5.00) MISSED by 17%",
        f"{ours} write@fastapi_asyncpg >= 20.00 x 13.00 x (13.00 - 13.00) stretch missed by 35%",
    ]


def test_cpu_is_held_to_the_table_whatever_the_rates_are() -> None:
    found = _lines(
        {
            "latest@tidegate_postgres": [Figures(900.0, cpu_us=20.0), Figures(100.0, cpu_us=20.0)],
            "latest@tidegate_two": [Figures(100.0, cpu_us=21.0), Figures(900.0, cpu_us=21.0)],
            "latest@tidegate_shared": [Figures(900.0, cpu_us=22.0), Figures(900.0, cpu_us=22.0)],
        }
    )
    one, two, shared = "latest@tidegate_postgres", "latest@tidegate_two", "latest@tidegate_shared"
    assert found == [
        f"{two} {one} CPU of each <= 1.10 x 1.05 x (1.05 - 1.05) met by 5%",
        f"{two} {one} CPU of each <= 1.00 x 1.05 x (1.05 - 1.05) stretch missed by 5%",
        f"{shared} {one} CPU of each <= 1.05 x 1.10 x (1.10 - 1.10) MISSED by 5%",
    ]


def test_what_could_not_be_measured_is_not_met() -> None:
    found = _lines({"latest-many@tidegate_miss": [Figures(1.0)], "latest-many@tidegate_redis": []})
    assert found == ["latest-many@tidegate_redis latest-many@tidegate_miss >= 5.00 x NOT MEASURED"]


# -- what has answered ---------------------------------------------------------------------------


def test_levels_are_read_from_the_gate_s_own_figures() -> None:
    assert levels.read(METRICS) == Levels(10, 60, 30)
    with pytest.raises(Void, match="expected figures of the cache"):
        levels.read(METRICS.replace("latest", "head"))


@pytest.mark.parametrize(
    ("wanted", "after", "complaint"),
    [
        ("memory", Levels(1010, 60, 30), ""),
        ("redis", Levels(11, 1060, 31), ""),
        ("database", Levels(10, 60, 1094), ""),
        ("database", Levels(10, 160, 930), "answered from database, found memory 0, redis 100, database 900"),
        ("memory", Levels(910, 60, 30), "expected 1,000 requests to be answered from memory"),
        ("redis", Levels(1010, 1060, 30), "found memory 1,000, redis 1,000, database 0"),
    ],
)
def test_another_level_than_the_cell_is_about_voids_it(wanted: Level, after: Levels, complaint: str) -> None:
    before = Levels(10, 60, 30)
    if not complaint:
        levels.check(wanted, before, after, 1000)
        return
    with pytest.raises(Void) as caught:
        levels.check(wanted, before, after, 1000)
    assert complaint in str(caught.value)


@pytest.mark.system
@pytest.mark.parametrize("name", ["tidegate_miss", "tidegate_redis"])
def test_a_cell_is_answered_from_where_it_says(name: str) -> None:
    assert measured("latest-many", KNOWN[name]).void == ""


def measured(scenario: str, target: Target, complaint: str = "", warm_up: int = 1) -> Cell:
    """The first cell that counts, or that is void with this complaint, and not because it was starved."""
    return starved.first(
        lambda cell: not cell.void or bool(complaint and complaint in cell.void),
        lambda: cells.measure(1, SCENARIOS[scenario], target, warm_up, 1),
    )


@pytest.mark.system
@pytest.mark.parametrize(
    ("name", "variable", "value", "found"),
    [
        ("tidegate_miss", "TIDEGATE_CACHE_DEVICES", "10000", "answered from database, found memory"),
        (
            "tidegate_redis",
            "TIDEGATE_REDIS_URL",
            "",
            "answered from redis, found memory 0, redis 0, database",
        ),
    ],
)
def test_a_cell_that_is_answered_from_elsewhere_is_void(
    name: str, variable: str, value: str, found: str
) -> None:
    target = KNOWN[name]
    wrong = msgspec.structs.replace(target, variables={**target.variables, variable: value})
    assert found in measured("latest-many", wrong, found).void


@pytest.mark.system
@pytest.mark.parametrize(("name", "fresh"), [("uvicorn_uncached", True), ("uvicorn_asgi", False)])
def test_the_peer_without_a_cache_shows_what_was_changed_behind_its_back(name: str, *, fresh: bool) -> None:
    prepare(KNOWN[name])
    with running(KNOWN[name]) as server:
        client = Client(server.url, contract.token())
        assert client.ask("POST", contract.READINGS, contract.READING).status == 200
        before = client.ask("GET", contract.LATEST)
        servers.query(server.database, "UPDATE readings SET value = '99'")
        after = client.ask("GET", contract.LATEST)
        client.close()
    assert before.json["metrics"]["temperature"]["value"] == 21.5
    assert (after.json["metrics"]["temperature"]["value"] == 99) is fresh


# -- what is asked -------------------------------------------------------------------------------


@contextmanager
def listening(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server that is a thread."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.system
def test_many_devices_are_asked_in_turn() -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers['Authorization']}")
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with listening(Handler) as url:
        wrk.run(url, Ask(path="/of@/x", token="t", devices=7), 1, 3)
    assert len(asked) > 21
    first = int(asked[0][3])
    assert asked == [f"/of{(first + n) % 7}/x Bearer t" for n in range(len(asked))]


@pytest.mark.system
def test_batches_are_those_of_the_contract_one_after_the_other() -> None:
    sent: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with listening(Handler) as url:
        wrk.run(url, Ask("POST", "/x", token="t", batches=True), 1, 3, first=1_000_000)
    assert len(sent) > 3
    # wrk makes one to see what it is, and never sends it.
    assert [_readings(body) for body in sent[:3]] == [
        _readings(contract.batch(1_000_001 + n)) for n in range(3)
    ]


def _readings(body: bytes) -> list[tuple[str, int, float]]:
    """Of a batch; Lua prints numbers with fewer digits."""
    return [(each["metric"], each["ts"], round(each["value"], 9)) for each in json.loads(body)]


# -- the floor of a batch ------------------------------------------------------------------------


@pytest.mark.system
def test_the_floor_of_a_batch_stores_what_it_counts_in_the_gate_s_own_table() -> None:
    target = KNOWN["psql_copy"]
    good = ["batch: good"]
    assert starved.first(lambda found: found == good, lambda: [*map(str, examine(target))]) == good
    cell = measured("batch", target, warm_up=0)
    assert cell.void == ""
    assert cell.figures is not None
    assert cell.figures.stored == cell.figures.answered > 0
    assert cell.figures.beside_us > 0


@pytest.mark.system
@pytest.mark.parametrize(
    ("fewer", "more", "complaint"),
    [
        (0, "", ""),
        (1, "", "3000 readings were inserted, but 2999 stored"),
        (
            0,
            'cursor.execute("ALTER DATABASE postgres SET synchronous_commit = off")',
            "not verified: expected a durable database, found synchronous_commit = off",
        ),
        (
            0,
            'cursor.execute("ALTER TABLE tidegate.readings_rest SET UNLOGGED")',
            "not verified: expected a durable database, found no durable table tidegate.readings",
        ),
    ],
)
def test_a_loop_on_postgresql_that_cheats_is_caught(
    tmp_path: Path, fewer: int, more: str, complaint: str
) -> None:
    script = tmp_path / "loop.py"
    script.write_text(LOOP.replace("FEWER", str(fewer)).replace("MORE", more))
    target = msgspec.structs.replace(KNOWN["psql_copy"], command=[str(script), "{database}"])
    assert measured("batch", target, complaint, warm_up=0).void == complaint


@pytest.mark.system
def test_the_floor_of_a_batch_refuses_to_be_less_than_durable() -> None:
    target = msgspec.structs.replace(KNOWN["psql_copy"], variables={"PGOPTIONS": "-c synchronous_commit=off"})
    complaint = "AssertionError: synchronous_commit"
    assert complaint in measured("batch", target, complaint, warm_up=0).void
