"""Validation of rendered manifests against what a cluster would check them with."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.helm.rendering import ROOT, Manifest, load_yaml

CRDS = ROOT.parent / "shared" / "crds"
"""KubeRay's custom resource definitions; not part of this repository, tests that need them are skipped without."""

KUBERNETES_VERSIONS = ("1.27", "1.37")
"""The oldest the chart declares, and the newest there are schemas of."""


def problems_of_builtin(manifest: Manifest) -> list[str]:
    """What Kubernetes' own schemas, unknown fields refused, say against a manifest of a built-in kind."""
    return list(_problems_of_builtin(json.dumps(manifest, sort_keys=True)))


@cache
def _problems_of_builtin(text: str) -> tuple[str, ...]:
    """The same; most manifests are equal in most value sets."""
    manifest = json.loads(text)
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    problems = []
    for version in KUBERNETES_VERSIONS:
        try:
            validate.validate(manifest, version, strict=True)
        except validate.ValidationError as error:
            problems.append(f"{version}: {'.'.join(str(part) for part in error.path)}: {error.message}")
    return tuple(problems)


def problems_of_ray(manifest: Manifest) -> list[str]:
    """What KubeRay's definitions, unknown fields refused, say against a RayJob or RayCluster."""
    return [
        f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message}"
        for error in ray_validator(manifest["kind"]).iter_errors(manifest)
    ]


@cache
def ray_validator(kind: str) -> Draft202012Validator:
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    definition = load_yaml(path.read_text())
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


def strict(node: Any) -> Any:
    """An openAPIV3Schema as JSON Schema that refuses every field it does not list."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {
        key: {name: strict(value) for name, value in child.items()} if key == "properties" else strict(child)
        for key, child in node.items()
        if not key.startswith("x-") and key not in ("description", "default", "format", "nullable")
    }
    if node.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    listed = "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields")
    if listed and "additionalProperties" not in node:
        result["additionalProperties"] = False
    if node.get("nullable") and "type" in result:
        result["type"] = [result["type"], "null"]
    return result
