"""Alert rules and dashboards: they do what they say, and ask only for metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from consistory_ray.watch.metrics import PREFIX, RUN_LABEL, TABLE, PrometheusMetrics, series_names

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "cluster" / "prometheus"
DASHBOARDS = sorted((ROOT / "cluster" / "grafana").glob("*.json"))
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
ALL_RULES = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL_RULES if "alert" in rule]

RAY_METRICS = {
    "ray_node_mem_used",
    "ray_node_mem_total",
    "ray_node_cpu_utilization",
    "ray_node_gpus_utilization",
}
"""What is used of Ray's own."""

TARGET_LABELS = {"namespace", "instance", "job", "pod", "le", "alertname", "alertstate"}
"""Labels that Prometheus itself adds."""

LABELS = {metric.name: {label.name for label in metric.labels} for metric in TABLE}


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if not found:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return found


def queries(dashboard: Path) -> Iterator[tuple[str, str]]:
    """Panel title and query of everything a dashboard asks Prometheus."""
    content = json.loads(dashboard.read_text())
    for panel in content["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in content["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


EXPRESSIONS = [(rule.get("alert", rule.get("record")), rule["expr"]) for rule in ALL_RULES] + [
    (f"{path.stem}: {title}", query) for path in DASHBOARDS for title, query in queries(path)
]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_only_metrics_that_exist_are_asked_for(where: str, expression: str) -> None:
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    used = set(re.findall(rf"\b{PREFIX}[a-z_0-9]+", without_strings))
    recorded = {rule["record"] for rule in ALL_RULES if "record" in rule}
    assert used or "consistory:" in expression or "ray_" in expression or "ALERTS" in expression, "asks for nothing"
    assert used <= series_names()
    assert set(re.findall(r"\bconsistory:[a-z_:0-9]+", without_strings)) <= recorded
    assert set(re.findall(r"\bray_[a-z_]+", without_strings)) <= RAY_METRICS
    for name, selector in re.findall(rf"({PREFIX}[a-z_0-9]+)\{{([^}}]*)\}}", expression):
        known = LABELS.get(name) or LABELS.get(re.sub("_(bucket|sum|count)$", "", name), set())
        assert set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", selector)) <= known | TARGET_LABELS | {RUN_LABEL}, name
    for metric in TABLE:
        for label in metric.labels:
            asked = re.findall(rf'{metric.name}\{{[^}}]*\b{label.name}=~?"([^"$]+)"', expression)
            if label.values:
                assert set("|".join(asked).split("|")) - {""} <= set(label.values), metric.name


def test_ray_still_exports_what_is_used_of_it() -> None:
    agent = pytest.importorskip("importlib.util").find_spec("ray")
    if agent is None or agent.origin is None:
        pytest.skip("ray is not installed")
    source = (Path(agent.origin).parent / "dashboard/modules/reporter/reporter_agent.py").read_text()
    for name in RAY_METRICS:
        assert f'"{name.removeprefix("ray_")}"' in source


def test_the_rules_pass_prometheus(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "check", "rules", PROMETHEUS / "rules.yml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_fire_when_they_should_and_only_then(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "test", "rules", "rules_test.yml"], cwd=PROMETHEUS, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_scenario_in_which_it_fires() -> None:
    scenarios = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())
    fired = {
        check["alertname"]
        for test in scenarios["tests"]
        for check in test["alert_rule_test"]
        if check.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alerts_say_what_to_do_and_are_documented(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert rule["for"]
    assert f"| {rule['alert']} |" in (ROOT / "docs" / "metrics.md").read_text()


def test_only_alerts_that_exist_are_written_about() -> None:
    written = set(
        re.findall(r"\bConsistory[A-Z]\w+", "".join(path.read_text() for path in (ROOT / "docs").glob("*.md")))
    )
    assert written == {rule["alert"] for rule in ALERTS}


def test_what_is_not_known_is_shown_as_that() -> None:
    """Time left and what it will cost are NaN before the first picture."""
    (dashboard,) = [json.loads(path.read_text()) for path in DASHBOARDS if path.stem == "run"]
    for title in ("Time left", "Cost"):
        (panel,) = [panel for panel in dashboard["panels"] if panel["title"] == title]
        (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
        assert mapping["options"]["match"] == "nan" and mapping["options"]["result"]["text"] == "not known yet"


def test_prometheus_accepts_its_configuration(promtool: str) -> None:
    command = [promtool, "check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_understands_the_export(promtool: str) -> None:
    record = PrometheusMetrics("storybook")
    for metric in TABLE:
        labels = {label.name: (label.values or ("x",))[0] for label in metric.labels}
        {"counter": record.inc, "gauge": record.set, "histogram": record.observe}[metric.type](metric, 1.0, **labels)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=record.expose(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, "promtool has advice: " + done.stderr


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_complete(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert dashboard["uid"] == f"consistory-{path.stem}"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "namespace", "run"}
    for panel in panels:
        assert panel["description"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", "a dashboard must not know a data source of its author"
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        for target in panel["targets"]:
            assert set(re.findall(r"\$([a-z]+)", target["expr"])) - {"__rate_interval"} <= variables
    cells = set()
    for panel in dashboard["panels"]:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        mine = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert not cells & mine, f"{panel['title']} lies over another panel"
        cells |= mine


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    text = " ".join(expression for _, expression in EXPRESSIONS)
    assert [metric.name for metric in TABLE if metric.name not in text] == []
