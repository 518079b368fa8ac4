"""No statement reads a whole table, or sorts more than a page, also without statistics of the tables.

Plans are those that the server really used, from its own log (auto_explain, statements inside functions
included), on tables large enough to make a bad plan look bad.
"""

import ast
import asyncio
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.log import Range
from storage.models import Client, Draft, Idempotency, Revocation
from storage.patterns import Selection, parse_pattern
from storage.postgres.reader import SEARCH_ROWS
from tests.running import ROOT
from tests.servers.postgres import PostgresServer, postgres
from tests.storage.contract.stores import PostgresStore, opened
from tests.storage.writes import DAY, EVERYTHING, numbers, write

FOLDER = ROOT / "storage" / "postgres"
STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
EXPLAINING = {
    "shared_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_format": "json",
    "track_functions": "all",
    "autovacuum": "off",
}
# So many rows are a page of what was asked for; all tables that matter here are larger.
PAGE = 1_500
# Where few of so many rows are wanted an index is always the shorter way.
SMALL = 15_000
NOW = 1_700_000_000_000_000
DEVICES = 20_000
# Modules whose statements are about the few rows of the catalog, or stand before those of others.
APART = {"schema", "dialing", "connection"}
# Statements that may read a whole table all the same: what is made of a whole table anyway.
ALLOWED = re.compile(
    # A new partition takes what has come too early, before anybody waits for it.
    r"WITH gone AS \(DELETE FROM tidegate\.readings_rest WHERE ts"
)


def constants() -> dict[tuple[str, str], str]:
    """Every statement that stands in a constant of the engine, by module and name."""
    found = {}
    for path in FOLDER.glob("*.py"):
        if path.stem in APART:
            continue
        for name, value in vars(importlib.import_module(f"storage.postgres.{path.stem}")).items():
            if isinstance(value, str) and STATEMENT.match(value):
                found[path.stem, name] = value
    return found


def hidden(source: str) -> Iterator[int]:
    """Lines of a module at which a statement stands inside a function, where `constants` is blind."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Constant)
                    and isinstance(node.value, str)
                    and STATEMENT.match(node.value)
                ):
                    yield node.lineno


def plans(log: str) -> Iterator[dict[str, Any]]:
    """What auto_explain has written."""
    for found in re.finditer(r"plan:\n\t(\{\n.*?\n\t\})", log, re.DOTALL):
        yield json.loads(found[1].replace("\n\t", "\n"))


def steps(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from steps(inner)


def faults(plan: dict[str, Any], *, analyzed: bool = True) -> list[str]:
    """What is wrong with a plan; `analyzed`: the planner had statistics."""
    bad: list[str] = []
    if ALLOWED.search(plan["Query Text"]):
        return bad
    for step in steps(plan["Plan"]):
        kind = step["Node Type"]
        loops = step.get("Actual Loops", 1)
        given = step.get("Actual Rows", 0) * loops
        dropped = step.get("Rows Removed by Filter", 0) * loops
        if (
            kind == "Seq Scan"
            and given + dropped > PAGE
            and _matters(step["Relation Name"], given, dropped, analyzed)
        ):
            bad.append(f"reads all of {step['Relation Name']}, {given + dropped} rows")
        if (
            "Sort" in kind
            and step["Plans"][0]["Actual Rows"] > SEARCH_ROWS
            and (analyzed or any(_is_log(inner.get("Relation Name", "")) for inner in steps(step)))
        ):
            # Without statistics PostgreSQL 18 sorts devices, for a minute until it has some.
            bad.append(f"sorts {step['Plans'][0]['Actual Rows']} rows")
        if kind in ("Index Scan", "Index Only Scan") and dropped > PAGE:
            bad.append(f"reads rows that it throws away, by {step['Index Name']}")
    return bad


def _is_log(table: str) -> bool:
    return table.startswith("readings")


def _matters(table: str, given: int, dropped: int, analyzed: bool) -> bool:
    """Whether reading all of a table is wrong: readings always; others where few of many rows are wanted."""
    return _is_log(table) or (analyzed and given + dropped > SMALL and dropped >= 20 * given)


async def work(store: PostgresStore) -> None:
    """Everything that an engine does, once."""
    engine = store.engine
    head = engine.state().head
    few: list[Draft] = [("d00005", "m", NOW + 10**9 + n, n) for n in range(50)]
    given: list[Draft] = [("d00007", "m", None, n) for n in range(50)]
    await store.stored(write(*few), write(*given, received=NOW), numbers("fresh", "m", [NOW + head]))
    await store.append(numbers("d00005", "m", range(NOW + 10**9, NOW + 10**9 + 60), 7))
    await store.append(write(*given, received=NOW, strict=True, idempotency=Idempotency("p", "k", b"")))
    await engine.read_from(head // 2, engine.state().head, 100, EVERYTHING)
    await engine.read_from(0, engine.state().head, 5, Selection([parse_pattern("d00001")], EVERYTHING.grants))
    for descending in (False, True):
        for metrics in ((), ("m",)):
            span = Range("d00005", metrics, 0, NOW * 2, descending)
            await engine.range(span, None, head, 100)
            await engine.range(span, (NOW, head // 2), head, 100)
    await engine.buckets(Range("d00005", (), NOW, NOW + DAY), DAY // 24, ("avg",), None, 50)
    await engine.latest("d00005")
    every = Selection([], [parse_pattern(">")])
    few_devices = Selection([parse_pattern("d00042")], [parse_pattern("*")])
    for selection in (every, few_devices, Selection([parse_pattern("fresh")], [parse_pattern(">")])):
        await engine.latest_page(selection, "", 50)
        await engine.devices(selection, "d00100", 50)
    await engine.device("d00005")
    await engine.put_device("d00005", "name", {})
    client = Client("c", b"", (), (), 0, 0)
    await engine.add_client(client)
    await engine.client("c")
    await engine.clients("", 10)
    await engine.remove_client("c", Revocation("subject", "c", 1, 2**40))
    await engine.revoke(Revocation("token", "c", 1, 2**40))
    await engine.revocations()
    await engine.ping()
    await store.ask("UPDATE tidegate.head SET started = '-infinity'")
    await engine.refresh()
    await engine.delete_device("d00005", readings=True)
    await engine.delete_device("fresh", readings=False)
    await engine.sweep(NOW - 40 * DAY)
    await engine._upkeep.summarize(0)
    # A commit whose answer was lost, as seen from here.
    lost = numbers("d00009", "m", [10**10 + head])
    await store.stored(lost)
    engine._writer._number -= 1
    engine._writer._unsettled = [lost]
    assert await engine._writer.settle() is not None


async def fill(server: PostgresServer) -> None:
    """Many devices with a few readings each, one with many, in several partitions and outside of all."""
    await server.query(f"SELECT tidegate.add_partition('readings_old', {NOW - 60 * DAY}, {NOW - 40 * DAY})")
    await server.query(
        "INSERT INTO tidegate.devices SELECT 'd' || lpad(n::text, 5, '0'), '', '{}', 0, 0, 0 "
        f"FROM generate_series(1, {DEVICES}) n; "
        "INSERT INTO tidegate.series (device, metric) "
        "SELECT device, m FROM tidegate.devices, unnest('{m,n}'::text[]) m ORDER BY 1, 2;"
        "INSERT INTO tidegate.readings SELECT row_number() OVER (), ts, 1, series, 1 FROM ("
        f"SELECT {NOW} - n * 86400000000 * 11 + series AS ts, series "
        f"FROM generate_series(0, 4) n, generate_series(1, {2 * DEVICES}) series UNION ALL "
        f"SELECT {NOW} + n, 9 FROM generate_series(100000, 125000) n) r;"
        "INSERT INTO tidegate.idempotency SELECT 'p', n::text, '', 1, 0, '{}', 1, "
        f"{NOW} + n FROM generate_series(1, {DEVICES}) n;"
        "INSERT INTO tidegate.revocations SELECT 'token', n::text, 1, 1000 "
        f"FROM generate_series(1, {DEVICES}) n;"
        "UPDATE tidegate.head SET head = (SELECT max(log_offset) FROM tidegate.readings)"
    )


async def test_no_statement_reads_a_whole_table_or_sorts_one(tmp_path: Path) -> None:
    async with postgres(tmp_path, **EXPLAINING) as server:
        store = PostgresStore(server.url)
        store.now = NOW
        async with opened(store):
            pass
        texts = [plan["Query Text"] for plan in plans(await asyncio.to_thread(server.log.read_text))]
        await fill(server)
        for analyzed in (False, True):
            if analyzed:
                await server.query("ANALYZE")
            seen = len(await asyncio.to_thread(server.log.read_text))
            async with opened(store):
                await work(store)
            log = (await asyncio.to_thread(server.log.read_text))[seen:]
            found = list(plans(log))
            bad = [(plan["Query Text"][:300], faults(plan, analyzed=analyzed)) for plan in found]
            told = [f"{text}\n    {wrong}" for text, wrong in bad if wrong]
            assert not told, "\n".join(told)
            texts += [plan["Query Text"] for plan in found]
        assert not unseen(texts)
        idle = await server.query(
            "SELECT proname FROM pg_proc p WHERE pronamespace = 'tidegate'::regnamespace AND NOT EXISTS "
            "(SELECT FROM pg_stat_user_functions s WHERE s.funcid = p.oid) AND prolang <> "
            "(SELECT oid FROM pg_language WHERE lanname = 'sql')"
        )
        assert idle == []


def unseen(texts: list[str]) -> list[tuple[str, str]]:
    """Statements of the engine that are not among those whose plan was looked at."""
    missing = []
    for name, sql in constants().items():
        pattern = re.compile(re.escape(sql).replace("%s", ".*"), re.DOTALL)
        if not any(pattern.fullmatch(text) for text in texts):
            missing.append(name)
    return missing


@pytest.mark.parametrize("module", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_statement_stands_in_a_constant_where_the_check_finds_it(module: str) -> None:
    if module not in APART:
        assert list(hidden((FOLDER / f"{module}.py").read_text())) == []


@pytest.mark.parametrize(
    "planted",
    [
        "SELECT count(*) FROM tidegate.readings",
        "SELECT * FROM tidegate.readings WHERE ts < 5",
        f"SELECT * FROM tidegate.readings WHERE series = 9 AND ts > {NOW} ORDER BY log_offset",
        "SELECT * FROM tidegate.idempotency WHERE digest = 'x'",
        "SELECT * FROM tidegate.series WHERE given = 7",
        "SELECT * FROM tidegate.series ORDER BY given, id",
        "SELECT tidegate.planted()",
    ],
)
async def test_the_check_sees_a_planted_scan_or_sort(explaining: PostgresServer, planted: str) -> None:
    before = len(await asyncio.to_thread(explaining.log.read_text))
    await explaining.query(planted)
    log = (await asyncio.to_thread(explaining.log.read_text))[before:]
    assert any(faults(plan) for plan in plans(log))


@pytest.fixture(scope="module")
def explaining(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server that tells its plans, filled."""
    with asyncio.Runner() as runner:
        starting = postgres(tmp_path_factory.mktemp("explaining"), **EXPLAINING)
        server = runner.run(starting.__aenter__())
        runner.run(_prepare(server))
        yield server
        runner.run(starting.__aexit__(None, None, None))


async def _prepare(server: PostgresServer) -> None:
    async with opened(PostgresStore(server.url)):
        pass
    await fill(server)
    await server.query(
        "CREATE FUNCTION tidegate.planted() RETURNS bigint LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN (SELECT count(*) FROM tidegate.readings WHERE num = 7); END $$"
    )
