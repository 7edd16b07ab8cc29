"""The chart under test: loading, rendering, and the shapes its tests look for."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "consistory-ray"
RELEASE = "demo"
NAMESPACE = "render"
VALUE_SETS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))

Values = dict[str, Any]
Manifest = dict[str, Any]


class Loader(yaml.CSafeLoader):
    """A plain ``=`` is a string, as it is to Helm and Kubernetes; PyYAML knows the tag but has nothing for it."""


Loader.add_constructor("tag:yaml.org,2002:value", yaml.constructor.SafeConstructor.construct_yaml_str)


def load_yaml(text: str) -> Any:
    return yaml.load(text, Loader=Loader)


def value_set(name: str) -> Values:
    """Values of ci/<name>-values.yaml."""
    return copy.deepcopy(_value_set(name))


@cache
def _value_set(name: str) -> Values:
    values: Values = load_yaml((CHART / "ci" / f"{name}-values.yaml").read_text())
    return values


def merged(base: Values, changes: Values) -> Values:
    """`base` with `changes` laid over it, mapping by mapping, as Helm does."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else copy.deepcopy(value)
    return result


@dataclass(frozen=True)
class Rendered:
    """What one rendering gives: manifests in order of file, and the notes."""

    manifests: list[Manifest]
    notes: str
    text: str

    def of_kind(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def one(self, kind: str) -> Manifest:
        found = self.of_kind(kind)
        assert len(found) == 1, f"{len(found)} of kind {kind}"
        return found[0]

    @property
    def cluster_spec(self) -> Manifest:
        """Spec of the Ray cluster, wherever it is."""
        jobs = self.of_kind("RayJob")
        spec: Manifest = jobs[0]["spec"]["rayClusterSpec"] if jobs else self.one("RayCluster")["spec"]
        return spec

    @property
    def command(self) -> list[str]:
        """The run's command line."""
        jobs = self.of_kind("RayJob")
        if jobs:
            return shlex.split(jobs[0]["spec"]["entrypoint"])
        (argument,) = self.one("Job")["spec"]["template"]["spec"]["containers"][0]["args"]
        return shlex.split(argument)

    def pod_specs(self) -> Iterator[tuple[str, Manifest]]:
        """Name and spec of every pod template."""
        spec = self.cluster_spec
        yield "head", spec["headGroupSpec"]["template"]["spec"]
        for group in spec["workerGroupSpecs"]:
            yield group["groupName"], group["template"]["spec"]
        for job in self.of_kind("RayJob"):
            yield "submitter", job["spec"]["submitterPodTemplate"]["spec"]
        for job in self.of_kind("Job"):
            yield "submitter", job["spec"]["template"]["spec"]


def render(values: Values, name: str = RELEASE) -> Rendered:
    """Render the chart with the real engine; raises what Helm raises. Do not change it: it is kept."""
    return _render(json.dumps(values), name)


@cache
def _render(values: str, name: str) -> Rendered:
    parts = chart().render(values=json.loads(values), name=name, namespace=NAMESPACE)
    notes = "".join(text for path, text in parts.items() if path.endswith("NOTES.txt"))
    files = {path: text for path, text in sorted(parts.items()) if not path.endswith("NOTES.txt") and text.strip()}
    text = "".join(f"# {path}\n{body.strip()}\n---\n" for path, body in files.items())
    manifests = [manifest for manifest in yaml.load_all(text, Loader=Loader) if manifest]
    return Rendered(manifests, notes, text)


@cache
def chart() -> Any:
    engine = pytest.importorskip("helm_python.chart", reason="the Helm engine (helm-python-sdk) is not installed")
    return engine.Chart.load(CHART)
