"""What deploy/ gives to Prometheus and Grafana asks only for what the pages tell, in words that Prometheus understands."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fleet.metrics import DATABASE, GATEWAY, PARTS, PROCESS
from tests.services import PROJECT

ALERTS = PROJECT / "deploy" / "prometheus-alerts.yml"
DASHBOARD = PROJECT / "deploy" / "grafana-dashboard.json"
SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
    "gauge": ("",),
}
PROMETHEUS = {"up"}  # its own


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [one["expr"] for panel in panels() for one in panel["targets"]]


def asked(expression: str) -> set[str]:
    """The names of the metrics in an expression of PromQL."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on|without|ignoring)\s*\([^)]*\)', " ", expression)
    words = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()", bare)
    return set(words) - {"and", "or", "unless", "by", "on", "bool", "s"}


def told(*registries: CollectorRegistry) -> dict[str, set[str]]:
    """The names of all series that the pages can tell, and the names of their labels where some are told now."""
    found: dict[str, set[str]] = {}
    for registry in registries:
        for family in text_string_to_metric_families(generate_latest(registry).decode()):
            labels = {label for sample in family.samples for label in sample.labels}
            for suffix in SUFFIXES[family.type]:
                found[f"{family.name}{suffix}"] = labels
    return found


def test_every_metric_that_is_asked_for_is_told(db: None) -> None:
    names = set(told(PARTS, PROCESS, GATEWAY, DATABASE)) | PROMETHEUS
    assert len(names) > 40
    for expression in expressions():
        assert asked(expression) <= names, f"{expression}: {asked(expression) - names}"


def test_every_metric_of_ours_is_shown(db: None) -> None:
    shown = set().union(*map(asked, expressions()))
    for name in told(PARTS, PROCESS, GATEWAY, DATABASE):
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        assert any(one.startswith(family) for one in shown) or not name.startswith("fleet_") or name in UNSHOWN, name


UNSHOWN = {"fleet_unapplied_migrations"}  # /healthz tells it, and it is one or none


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "next"}


def test_the_dashboard_is_one(db: None) -> None:
    ids = [panel["id"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(one["legendFormat"] for one in panel["targets"])
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24


@pytest.mark.once
def test_prometheus_understands_the_alerts_where_its_tool_is_at_hand() -> None:
    if tool := shutil.which("promtool"):
        for arguments in (
            ["check", "rules", str(ALERTS)],
            ["test", "rules", str(PROJECT / "tests/fleet/alerts.test.yml")],
        ):
            run = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stdout + run.stderr
