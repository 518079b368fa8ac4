"""Dashboard and alerts: what they ask for is there, they parse, the alerts ring when they should."""

import asyncio
import re
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from itertools import combinations
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.nginx import PLAIN
from tests.deploy.promql import RULES, TARGET, Asked, Selector, asked, dashboard, rules
from tests.handlers.sockets import connect
from tests.running import PATIENCE, ROOT, Caller, Running, run_process
from tests.servers.programs import free_port

ASKED = list(asked())
CONFIGURATION = ROOT / "deploy" / "prometheus" / "prometheus.yml"
UNIT_TESTS = Path(__file__).with_name("alerts_test.yml")

Series = dict[str, list[dict[str, str]]]


async def busy(gate: Caller) -> None:
    """Use the gate as clients do, so that it has something to show."""
    for ts in (1, 1, 2):
        await gate.write("a.b", {"metric": "m", "ts": ts, "value": 1})
    for _ in range(3):
        assert (await gate.get("/v1/devices/a.b/latest")).status == 200
    await gate.get("/v1/devices/a.b/readings")
    async with connect(gate) as socket:
        await socket.follow(1, ">", since="earliest")
        await gate.write("a.b", {"metric": "m", "value": 1})
        assert (await socket.hear())["type"] == "reading"


async def shown(gate: Caller) -> Series:
    """The label sets of every sample that /metrics shows, as Prometheus stores it."""
    reply = await gate.get("/metrics", token="")
    found: Series = defaultdict(list, up=[{}])
    for family in text_string_to_metric_families(reply.body.decode()):
        for sample in family.samples:
            found[sample.name].append(sample.labels)
    return found


def missing(ask: Asked, series: Series) -> list[str]:
    """What an expression asks for that no gate has."""
    found = []
    labels: set[str] = set(TARGET)
    for selector in ask.selectors:
        there = series.get(selector.metric, [])
        if not there:
            found.append(f"{ask.place}: there is no {selector.metric}")
        elif not any(matches(selector, labels) for labels in there):
            found.append(f"{ask.place}: nothing matches {selector}")
        labels.update(*there)
    found += [f"{ask.place}: nothing has the label {label}" for label in ask.labels - labels]
    return found


def matches(selector: Selector, labels: dict[str, str]) -> bool:
    """Whether a series is asked for. A status that did not come up is no fault of the expression."""
    for label, operator, value in selector.matchers:
        if label in TARGET or label == "status":
            continue
        if label not in labels:
            return False
        same = re.fullmatch(value, labels[label]) is not None if "~" in operator else labels[label] == value
        if same == operator.startswith("!"):
            return False
    return True


@pytest.fixture
async def grown(tmp_path: Path, postgres_url: str, redis_url: str) -> AsyncIterator[Caller]:
    """A gate with all that it can have: figures of what is not there are not shown."""
    (tmp_path / "grown").mkdir()
    limits = {"RATE_LIMIT": "100000", "POINT_LIMIT": "1000000"}
    parts = {"DATABASE_URL": postgres_url, "REDIS_URL": redis_url, "WORKERS": "2", **PLAIN}
    async with run_process(tmp_path / "grown", **parts, **limits) as gate:
        yield gate


async def test_everything_that_is_asked_for_is_there(grown: Caller) -> None:
    await busy(grown)
    series = await shown(grown)
    assert len(ASKED) > 40
    assert all(ask.selectors for ask in ASKED)
    assert [fault for ask in ASKED for fault in missing(ask, series)] == []


@pytest.mark.parametrize(
    "planted",
    [
        "rate(tidegate_gone_total[1m])",
        'tidegate_cache_entries{cache="nothing"}',
        'tidegate_cache_entries{kind="head"}',
        "sum by (colour) (tidegate_queue_readings)",
    ],
)
async def test_what_is_not_there_is_found(gate: Running, planted: str) -> None:
    await busy(gate)
    assert len(missing(Asked("planted", planted), await shown(gate))) == 1


def test_every_family_that_counts_failure_is_watched() -> None:
    """What was thought worth counting is shown somewhere."""
    text = " ".join(ask.expression for ask in ASKED)
    for name in (
        "tidegate_writes_failed_total",
        "tidegate_connections_refused_total",
        "tidegate_stream_dropped_total",
        "tidegate_log_lines_dropped_total",
        "tidegate_limit_refusals_total",
        "tidegate_stream_healed_total",
    ):
        assert name in text


def test_the_dashboard_can_be_provisioned() -> None:
    document = dashboard()
    provisioned = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((provisioned / "datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioned / "dashboards/tidegate.yaml").read_text())["providers"]
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090"
    assert "id" not in document, "Grafana gives it one"
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    sources = [panel["datasource"] for panel in panels if panel["type"] != "row"]
    sources += [target["datasource"] for panel in panels for target in panel.get("targets", ())]
    sources += [variable["datasource"] for variable in document["templating"]["list"]]
    assert {each["uid"] for each in sources} == {source["uid"]}
    for panel in panels:
        references = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(references)) == len(references)
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]


def test_no_panel_covers_another() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in dashboard()["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for _, place in places)
    for (one, a), (other, b) in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one, other)


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in operations, f"docs/operations.md does not know {rule['alert']}"


@pytest.mark.system
def test_promtool_takes_rules_and_configuration() -> None:
    for command in (["check", "rules", str(RULES)], ["check", "config", str(CONFIGURATION)]):
        run = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False, timeout=60)
        assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.system
def test_the_alerts_ring_when_they_should_and_only_then() -> None:
    run = subprocess.run(
        ["promtool", "test", "rules", UNIT_TESTS.name],
        cwd=UNIT_TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    tested = yaml.safe_load(UNIT_TESTS.read_text())["tests"]
    names = {
        case["alertname"] for test in tested for case in test["alert_rule_test"] if case.get("exp_alerts")
    }
    assert names == {rule["alert"] for rule in rules()}, "an alert without a test"


@pytest.mark.system
async def test_a_real_prometheus_answers_every_question(grown: Caller, tmp_path: Path) -> None:
    """With the shipped configuration, its addresses and pace apart."""
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(RULES)]
    configuration["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{grown.port}"]}]
    file, address = tmp_path / "prometheus.yml", f"127.0.0.1:{free_port()}"
    file.write_text(yaml.safe_dump(configuration))
    await busy(grown)
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address={address}",
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession(f"http://{address}") as session:
            await _scraped(session)
            await busy(grown)
            empty = []
            for ask in ASKED:
                result = await _query(session, ask.expression)
                if not result and not ask.place.startswith("alert"):
                    empty.append(ask.place)
            assert empty == [], "panels that show nothing"
            async with session.get("/api/v1/rules") as response:
                groups = (await response.json())["data"]["groups"]
            assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    finally:
        process.terminate()
        async with asyncio.timeout(PATIENCE):
            await process.wait()


async def _scraped(session: aiohttp.ClientSession) -> None:
    """Wait for enough scrapes that a rate can be told."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                count = await _query(session, 'sum_over_time(up{job="tidegate"}[1m])')
            except aiohttp.ClientError:
                count = []
            if count and float(count[0]["value"][1]) >= 3:
                return
            await asyncio.sleep(0.1)


async def _query(session: aiohttp.ClientSession, expression: str) -> list[Any]:
    async with session.get("/api/v1/query", params={"query": expression}) as response:
        if response.status == 503:
            # It reads its storage first.
            return []
        answer = await response.json()
        assert answer["status"] == "success", (expression, answer)
        found: list[Any] = answer["data"]["result"]
        return found
