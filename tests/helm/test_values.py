"""values.yaml, its schema, and what is written about them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helm.rendering import CHART, ROOT, load_yaml, merged, render, value_set

VALUES = load_yaml((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

FREE_FORM = {"affinity", "podSecurityContext", "resources", "securityContext"}
"""Passed on to Kubernetes as they are: the schema lists more keys than the defaults use."""


def properties(node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rsplit("/", 1)[1]]
    found: dict[str, Any] = node.get("properties", {})
    return found


def mappings(
    values: dict[str, Any], schema: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Path, values and schema properties of every mapping whose keys the schema lists."""
    listed = properties(schema)
    if listed:
        yield path, values, listed
        for key, value in values.items():
            if isinstance(value, dict) and key in listed:
                yield from mappings(value, listed[key], f"{path}.{key}".lstrip("."))


def test_schema_and_defaults_list_the_same_keys() -> None:
    for path, values, listed in mappings(VALUES, SCHEMA):
        if not FREE_FORM.isdisjoint(path.split(".")):
            assert values.keys() <= listed.keys(), path
        else:
            assert values.keys() == listed.keys() - {"global"}, path or "top level"


def test_every_mapping_refuses_unknown_keys() -> None:
    def visit(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, dict):
            if (
                "properties" in node
                and node.get("additionalProperties") is not False
                and not path.endswith("volumes/items")
            ):
                yield path
            for key, child in node.items():
                yield from visit(child, f"{path}/{key}")
        elif isinstance(node, list):
            for item in node:
                yield from visit(item, path)

    assert list(visit(SCHEMA, "")) == []


@pytest.mark.parametrize(
    "path",
    [path for path, _, _ in mappings(VALUES, SCHEMA)],
    ids=lambda path: path or "top",
)
def test_a_typing_error_is_refused_with_its_path(path: str) -> None:
    changes: dict[str, Any] = {"typo": 1}
    for key in reversed(path.split(".") if path else []):
        changes = {key: changes}
    with pytest.raises(Exception) as error:
        render(merged(value_set("minimal"), changes))
    assert type(error.value).__name__ == "HelmValuesError"
    assert "typo" in str(error.value)
    for key in path.split(".") if path else []:
        assert key in str(error.value)


def test_a_typing_error_in_a_group_is_refused() -> None:
    values = merged(value_set("minimal"), {"workerGroups": [{"name": "a", "maxReplica": 2}]})
    with pytest.raises(Exception, match=r"workerGroups/0.*maxReplica"):
        render(values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "jobs"}, "mode"),
        ({"output": {"url": "s3://bucket/$(reboot)"}}, "output/url"),
        ({"output": {"url": "s3://bucket/a b"}}, "output/url"),
        ({"job": {"definition": "", "url": "s3://jobs/a.yaml;reboot"}}, "job/url"),
        ({"run": {"extraArgs": ["--batch-size", "4; reboot"]}}, "run/extraArgs/1"),
        ({"run": {"extraArgs": ["`reboot`"]}}, "run/extraArgs/0"),
        ({"run": {"revision": 2.5}}, "run/revision"),
        ({"run": {"graceSeconds": -1}}, "run/graceSeconds"),
        ({"networkPolicy": {"dns": {"ports": []}}}, "networkPolicy/dns/ports"),
        ({"run": {"workers": 0}}, "run/workers"),
        ({"fullnameOverride": "a" * 39}, "fullnameOverride"),
        ({"fullnameOverride": "1st"}, "fullnameOverride"),
        ({"image": {"digest": "sha256:123"}}, "image/digest"),
        ({"worker": {"cacheMemory": "16 GB"}}, "worker/cacheMemory"),
        ({"worker": {"labels": {"ray.io/market-type": "spot"}}}, "worker/labels"),
        ({"worker": {"gpuResourceName": "example.com/tpu"}}, "worker/gpuResourceName"),
        ({"workerGroups": []}, "workerGroups"),
        ({"workerGroups": [{"maxReplicas": 1}]}, "workerGroups/0"),
        ({"workerGroups": [{"name": "GPU"}]}, "workerGroups/0/name"),
        ({"commonLabels": {"app.kubernetes.io/instance": "mine"}}, "commonLabels"),
        ({"extraVolumes": [{"name": "shm", "emptyDir": {}}]}, "extraVolumes/0/name"),
        ({"extraEnv": [{"name": "A", "valuefrom": {}}]}, "extraEnv/0"),
        ({"monitoring": {"port": 8080}}, "monitoring/port"),
        ({"model": {"prefetch": {"repository": "sdxl"}}}, "model/prefetch/repository"),
        ({"networkPolicy": {"https": {"cidrs": [{"cidr": "10.0.0.1"}]}}}, "networkPolicy/https/cidrs/0/cidr"),
    ],
)
def test_a_bad_value_is_refused_with_its_path(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception) as error:
        render(merged(value_set("minimal"), changes))
    assert type(error.value).__name__ == "HelmValuesError"
    assert words in str(error.value)


def test_every_value_is_described() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import chart_docs
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    described = {key for key, _, _ in chart_docs.documented_values((CHART / "values.yaml").read_text())}

    def leaves(values: dict[str, Any], path: str) -> Iterator[str]:
        for key, value in values.items():
            here = f"{path}.{key}".lstrip(".")
            if here in described:
                continue
            if isinstance(value, dict) and value:
                yield from leaves(value, here)
            else:
                yield here

    assert list(leaves(VALUES, "")) == []


def test_the_packaged_chart_renders_the_same(tmp_path: Path) -> None:
    engine = pytest.importorskip("helm_python.chart", reason="the Helm engine (helm-python-sdk) is not installed")
    with engine.Chart.load(CHART) as chart:
        archive = chart.save(tmp_path)
        expected = chart.render(values=value_set("monitoring"), name="demo", namespace="render")
    with engine.Chart.load(archive) as packaged:
        assert packaged.render(values=value_set("monitoring"), name="demo", namespace="render") == expected
        assert not [file["name"] for file in packaged.files if file["name"].startswith("ci/")]


def test_what_is_derived_is_current() -> None:
    """README, metrics page, copies of rules and dashboards: `python scripts/chart_docs.py` writes them."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "chart_docs.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
