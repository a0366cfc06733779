"""The alerts are right by promtool's judgement, and none is without its page, its test, and metrics that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from shared import metrics

pytestmark = pytest.mark.house

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "k8s" / "components" / "monitoring"
ALERTS = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
TESTS = (MONITORING / "alerts_test.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
RUNBOOK = (ROOT / "docs" / "operations" / "runbook.md").read_text(encoding="utf-8")
NAMES = re.findall(r"- alert: (\w+)", ALERTS)


@pytest.mark.parametrize("arguments", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_is_content(arguments: list[str]) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not on the PATH: it comes with Prometheus")
    run = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_each_alert_has_a_severity_and_a_runbook_section() -> None:
    assert len(NAMES) == len(set(NAMES)) > 15
    assert re.findall(r"runbook_url: docs/operations/runbook.md#(\w+)", ALERTS) == [name.lower() for name in NAMES]
    assert set(re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE)) == set(NAMES)
    assert len(re.findall(r"severity: (?:critical|warning|'.*warning.*critical.*')", ALERTS)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_is_shown_to_fire_and_not_to_fire(name: str) -> None:
    asked = re.findall(rf"alertname: {name}\n    exp_alerts:(.*)", TESTS)
    assert " []" in asked
    assert "" in asked


def test_dashboard_and_alerts_use_only_existing_metrics() -> None:
    """Ours that are counted, and the gauges of web; Flower's are Flower's."""
    source = (ROOT / "web" / "gauges.py").read_text(encoding="utf-8")
    there = set(re.findall(r'"(payments_\w+)"', source))
    for family in re.findall(r"# TYPE (\w+)", generate_latest(metrics.registry()).decode()):
        there |= {family, *(f"{family}_{part}" for part in ("bucket", "count", "sum"))}
    questions = ALERTS + json.dumps(DASHBOARD["panels"])
    asked = set(re.findall(r"\b(?:payments|http)_[a-z_]+[a-z]\b", questions))
    assert len(asked) > 20
    assert not asked - there


def test_the_dashboard_is_one_that_grafana_10_to_12_can_take_in() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert [variable["type"] for variable in DASHBOARD["templating"]["list"]] == ["datasource"]
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for target in panel.get("targets", ()):
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert not re.search(r"rate\([^[]*\[(?!\$__rate_interval)", target["expr"]), target["expr"]
