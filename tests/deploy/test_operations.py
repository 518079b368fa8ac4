"""docs/operations.md names only what there is."""

import re
from typing import get_type_hints

from server.settings import Settings, describe
from tests.deploy.operations import PAGE
from tests.deploy.promql import rules
from tests.deploy.test_monitoring import busy, shown
from tests.running import ROOT, Running

TEXT = PAGE.read_text()
SETTINGS = {f"TIDEGATE_{field.upper()}" for field in get_type_hints(Settings)}


def test_every_setting_is_one() -> None:
    named = {name.removesuffix("_FILE") for name in re.findall(r"\bTIDEGATE_[A-Z_]+\b", TEXT)}
    assert named - SETTINGS == set()


def test_every_default_is_that_of_the_gate() -> None:
    """In the table of settings: one value for each name of the first column, `none` for none."""
    defaults = dict(re.findall(r"^(TIDEGATE_[A-Z_]+) +(\S+)", describe(), re.MULTILINE))
    rows = re.findall(r"^\| (`TIDEGATE_[^|]+) \| ([^|]*) \|", TEXT, re.MULTILINE)
    assert len(rows) > 15
    for names, values in rows:
        listed = re.findall(r"`(TIDEGATE_[A-Z_]+)`", names)
        expected = ["none" if defaults[name] == "-" else defaults[name] for name in listed]
        assert values == ", ".join(expected), names


async def test_every_metric_is_shown(gate: Running) -> None:
    await busy(gate)
    families = " ".join(await shown(gate))
    named = set(re.findall(r"`(tidegate_[a-z0-9_]+)`", TEXT))
    assert len(named) >= 5
    assert {name for name in named if name not in families} == set()


def test_every_alert_is_there_and_explained() -> None:
    named = set(re.findall(r"\bTidegate[A-Z][A-Za-z]+\b", TEXT))
    assert named == {rule["alert"] for rule in rules()}


def test_every_file_is_there() -> None:
    named = set(re.findall(r"`((?:deploy|docs|scripts)/[\w./-]*|compose\.yaml)`", TEXT))
    assert len(named) > 5
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_every_place_in_it_can_be_found() -> None:
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    }
    linked = set(re.findall(r"\]\(#([a-z0-9-]+)\)", TEXT))
    assert linked <= anchors
    assert anchors <= linked, "the list of contents lacks one"


def test_what_it_quotes_of_nginx_stands_there() -> None:
    """The table of what a proxy must do quotes the configuration."""
    shipped = "".join(path.read_text() for path in (ROOT / "deploy/nginx").rglob("*.conf"))
    table = TEXT.partition("## In front of the gates")[2].partition("\n## ")[0]
    quoted = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")][1:]
    quotes = [quote for cell in quoted for quote in re.findall(r"`([^`]+)`", cell)]
    assert len(quotes) >= 8
    for quote in quotes:
        if quote == "non_idempotent":
            continue
        assert all(part.strip() in shipped for part in quote.split("...")), quote
