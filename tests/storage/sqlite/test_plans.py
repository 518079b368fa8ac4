"""No statement of the engine reads a whole table, or sorts what an index could give in order."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import apsw
import apsw.ext
import pytest

from storage.sqlite.connection import migrate, open_writer
from tests.running import ROOT

FOLDER = ROOT / "storage" / "sqlite"
STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|REPLACE)\b")
# module and name of a statement: the step of its plan that is allowed all the same
ALLOWED = {
    # Ends at its first row, in the order of the key: the doomed series that is swept next.
    ("writer", "_DOOMED"): "SCAN doomed",
}
# What stands in a function, because it reads or writes the few rows of the migrations' own table.
APART = {"connection"}


def modules() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def statements() -> dict[tuple[str, str], str]:
    """Every statement that stands in a constant of the engine, by module and name."""
    found = {}
    for module in modules():
        for name, value in vars(importlib.import_module(f"storage.sqlite.{module}")).items():
            if isinstance(value, str) and STATEMENT.match(value):
                found[module, name] = value
    return found


def hidden(source: str) -> Iterator[int]:
    """Lines of a module at which a statement stands inside a function, where `statements` is blind."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Constant)
                    and isinstance(node.value, str)
                    and STATEMENT.match(node.value)
                ):
                    yield node.lineno


def faults(database: apsw.Connection, sql: str, allowed: str = "") -> list[str]:
    """Steps of a statement's plan that read a whole table or sort."""
    plan = apsw.ext.query_info(database, sql, explain_query_plan=True).query_plan
    assert plan is not None
    bad = []
    waiting = [plan]
    while waiting:
        step = waiting.pop()
        waiting += step.sub or []
        if re.search(r"\bSCAN\b|TEMP B-TREE|AUTOMATIC", step.detail) and step.detail != allowed:
            bad.append(step.detail)
    return bad


@pytest.fixture
def database(tmp_path: Path) -> apsw.Connection:
    made = open_writer(tmp_path / "x.db")
    migrate(made)
    return made


def test_no_statement_scans_a_table_or_sorts(database: apsw.Connection) -> None:
    found = statements()
    assert len(found) >= 35
    assert found.keys() >= ALLOWED.keys()
    bad = {name: faults(database, sql, ALLOWED.get(name, "")) for name, sql in found.items()}
    assert {name: steps for name, steps in bad.items() if steps} == {}


@pytest.mark.parametrize("module", modules())
def test_every_statement_stands_in_a_constant_where_the_check_finds_it(module: str) -> None:
    if module not in APART:
        assert list(hidden((FOLDER / f"{module}.py").read_text())) == []


@pytest.mark.parametrize(
    "planted",
    [
        "SELECT count(*) FROM readings",
        "SELECT * FROM readings WHERE ts < ?",
        "SELECT * FROM readings WHERE series = ? ORDER BY offset",
        "DELETE FROM idempotency WHERE digest = ?",
        "UPDATE devices SET name = ? WHERE last_seen < ?",
        "SELECT * FROM series s JOIN readings r ON r.series + 0 = s.id WHERE s.id = ?",
        "DELETE FROM readings WHERE offset IN (SELECT offset FROM readings WHERE ts = ?)",
        "SELECT DISTINCT cutoff FROM revocations WHERE kind = ?",
    ],
)
def test_the_check_sees_a_planted_scan_or_sort(database: apsw.Connection, planted: str) -> None:
    assert STATEMENT.match(planted)
    assert faults(database, planted)
    assert list(hidden(f"def f():\n    return execute({planted!r})")) == [2]
