"""Every value set of ci/: linted, rendered, and held against the schemas a cluster would use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.helm import schemas
from tests.helm.rendering import CHART, NAMESPACE, VALUE_SETS, Rendered, render, value_set

GOLDEN = Path(__file__).parent / "golden"
UPDATE_GOLDEN = "UPDATE_GOLDEN"

BUILTIN = {
    "ConfigMap",
    "Job",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "Service",
    "ServiceAccount",
}
RAY = {"RayJob", "RayCluster"}
PROMETHEUS_OPERATOR = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}

pytestmark = pytest.mark.parametrize("name", VALUE_SETS)


@pytest.fixture(scope="module")
def renderings() -> dict[str, Rendered]:
    return {name: render(value_set(name)) for name in VALUE_SETS}


def test_lint_has_nothing_to_say(name: str) -> None:
    engine = pytest.importorskip("helm_python.chart", reason="the Helm engine (helm-python-sdk) is not installed")
    report = engine.lint(CHART, values=value_set(name), strict=True)
    assert report == {"total_charts_linted": 1, "messages": [], "errors": []}


def test_every_object_is_named_placed_and_labelled(name: str, renderings: dict[str, Rendered]) -> None:
    seen = set()
    for manifest in renderings[name].manifests:
        metadata = manifest["metadata"]
        assert manifest["kind"] in BUILTIN | RAY | PROMETHEUS_OPERATOR
        assert metadata["namespace"] == NAMESPACE
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", metadata["name"])
        assert metadata["labels"]["app.kubernetes.io/instance"] == "demo"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        seen.add((manifest["kind"], metadata["name"]))
    assert len(seen) == len(renderings[name].manifests), "two objects of one kind share a name"


def test_builtin_kinds_are_valid(name: str, renderings: dict[str, Rendered]) -> None:
    for manifest in renderings[name].manifests:
        if manifest["kind"] in BUILTIN:
            assert schemas.problems_of_builtin(manifest) == [], manifest["kind"]


def test_ray_kinds_are_valid(name: str, renderings: dict[str, Rendered]) -> None:
    found = [manifest for manifest in renderings[name].manifests if manifest["kind"] in RAY]
    assert len(found) == 1
    assert schemas.problems_of_ray(found[0]) == []


def test_prometheus_accepts_the_rules(name: str, renderings: dict[str, Rendered], tmp_path: Path) -> None:
    rules = renderings[name].of_kind("PrometheusRule")
    if not rules:
        pytest.skip("no rules in this value set")
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed")
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(rules[0]["spec"]))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rendering_is_the_reviewed_one(name: str, renderings: dict[str, Rendered]) -> None:
    """Run with UPDATE_GOLDEN=1 to write what is rendered now, and review the difference."""
    path = GOLDEN / f"{name}.yaml"
    # Rules and dashboards have tests of their own.
    text = re.sub(
        r"# consistory-ray/templates/(dashboards|prometheusrule).yaml\n.*?\n---\n",
        "",
        renderings[name].text,
        flags=re.S,
    )
    text = (
        f"{text}# consistory-ray/templates/NOTES.txt\n"
        + re.sub("^", "# ", renderings[name].notes.strip(), flags=re.M)
        + "\n"
    )
    text = re.sub(r" +$", "", text, flags=re.M)
    if os.environ.get(UPDATE_GOLDEN):
        path.write_text(text)
    assert text == path.read_text()
