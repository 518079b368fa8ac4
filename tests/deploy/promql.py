"""What the dashboard and the alerts ask of Prometheus."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from msgspec import Struct

from tests.running import ROOT

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "tidegate.json"

# `up` is Prometheus' own.
_METRIC = re.compile(r"\b((?:tidegate|process|python)_[a-z0-9_]+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'([a-z_]+)(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"')
_GROUPING = re.compile(r"\bby\s*\(([^)]*)\)")
# What Prometheus adds to every series, and what belongs to histograms.
TARGET = frozenset(("job", "instance"))


class Selector(Struct, frozen=True):
    """A metric and its matchers: label, operator, value."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]


class Asked(Struct, frozen=True):
    """An expression and where it stands."""

    place: str
    expression: str

    @property
    def selectors(self) -> list[Selector]:
        """The series that it reads."""
        return [
            Selector(metric, tuple(_MATCHER.findall(matchers or "")))
            for metric, matchers in _METRIC.findall(self.expression)
        ]

    @property
    def labels(self) -> set[str]:
        """The labels that it groups by."""
        return {label.strip() for found in _GROUPING.findall(self.expression) for label in found.split(",")}


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def rules() -> list[dict[str, Any]]:
    """All alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def asked() -> Iterator[Asked]:
    """All expressions, the variables of Grafana put in."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".+")
            assert "$" not in text, text
            yield Asked(f"panel {panel['title']!r} {target['refId']}", text)
    for rule in rules():
        yield Asked(f"alert {rule['alert']}", rule["expr"])
