"""The bill of materials: complete, in the standard's form, under licences that are allowed."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("cyclonedx")
pytest.importorskip("license_expression")
pytest.importorskip("packaging")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    """scripts/sbom.py as a module."""
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts" / "sbom.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sbom"] = module
    spec.loader.exec_module(module)
    return module


def extras_of_the_images() -> set[str]:
    """What cluster/Dockerfile installs beside the package itself."""
    found = re.findall(r"whl\)\[([a-z0-9,]+)\]", (ROOT / "cluster" / "Dockerfile").read_text())
    assert len(found) == 2, "one list for each target"
    return set(",".join(found).split(","))


def test_everything_in_the_images_is_pinned_and_listed(sbom: ModuleType) -> None:
    extras = extras_of_the_images()
    assert extras == set(sbom.EXTRAS)
    needed = sbom.closure(sorted(extras))
    assert {"gcsfs", "google-cloud-storage", "adlfs", "s3fs", "nvidia-ml-py"} <= needed.keys()
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {match[1] for line in lines if (match := re.match(r"([a-z0-9.-]+)==\S+", line))}
    assert sorted(needed.keys() - pinned) == []


@pytest.mark.parametrize("url", ["s3://bucket/run", "gs://bucket/run", "az://container/run"])
def test_the_drivers_of_the_images_open_an_output(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from consistory_ray.output.storage import open_output

    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "pictures")
    monkeypatch.setenv("AZURE_STORAGE_ANON", "true")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")  # else gcsfs looks for credentials
    store = open_output(url)
    assert not store.is_local and store.join("index/a") == f"{url.split('://')[1]}/index/a"


def test_every_dependency_is_listed_with_a_licence_that_is_allowed(sbom: ModuleType) -> None:
    listed = sbom.packages()
    assert {"torch", "ray", "diffusers", "safetensors", "s3fs", "numpy"} <= {item.name for item in listed}
    assert [f"{item.name}: {item.licence}" for item in listed if not sbom.is_allowed(item.licence)] == []


def test_the_page_is_current(sbom: ModuleType) -> None:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the page is that of Python 3.11")
    assert sbom.check(sbom.packages()) == 0


def test_the_document_is_cyclonedx(sbom: ModuleType) -> None:
    document = json.loads(sbom.bill(sbom.packages()))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["name"] == "consistory-ray"
    (torch,) = [item for item in document["components"] if item["name"] == "torch"]
    assert torch["purl"] == f"pkg:pypi/torch@{torch['version']}" and "+" not in torch["version"]
    needs = {item["ref"]: item.get("dependsOn", []) for item in document["dependencies"]}
    assert any(name.startswith("numpy==") for name in needs["consistory-ray"])
    assert any(name.startswith("aiobotocore==") for ref, names in needs.items() if "s3fs" in ref for name in names)


def test_the_document_obeys_the_schema(sbom: ModuleType) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    document = sbom.bill(sbom.packages())
    try:
        problem = validator.validate_str(document)
    except Exception as error:
        if type(error).__name__ != "MissingOptionalDependencyException":
            raise
        pytest.skip("cyclonedx-python-lib is installed without its validation")
    assert problem is None
    # Addresses would not be checked: with what parses them installed, every import of Ray takes a second longer.
    assert '"url"' not in document


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("Apache-2.0 AND MIT", True),
        ("Apache-2.0 AND GPL-2.0-only", False),
        ("GPL-2.0-only OR MIT", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("(GPL-2.0-only OR MIT) AND ISC", True),
        ('"Some licence of our own"', False),
    ],
)
def test_what_is_allowed(sbom: ModuleType, licence: str, allowed: bool) -> None:
    assert sbom.is_allowed(licence) == allowed


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License-Expression": "MIT AND ISC"}, "MIT AND ISC"),
        ({"License": "Apache License, Version 2.0"}, "Apache-2.0"),
        ({"License": "Dual", "Classifier": ["License :: OSI Approved :: MIT License"]}, "MIT"),
        (
            {"Classifier": ["License :: OSI Approved :: MIT License", "License :: OSI Approved :: BSD License"]},
            "MIT OR BSD-3-Clause",
        ),
        ({"License": "Proprietary, all rights reserved"}, '"Proprietary, all rights reserved"'),
        ({}, '"nothing"'),
    ],
)
def test_licences_are_read_from_metadata(sbom: ModuleType, fields: dict[str, Any], expected: str) -> None:
    from email.message import Message

    class Fake:
        metadata = Message()

    for key, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            Fake.metadata[key] = item
    assert sbom.licence_of(Fake) == expected


def test_a_package_that_nobody_knows_is_not_called_clean(sbom: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"name": "a", "version": "1", "vulns": []}
    hole = {"name": "b", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
    unknown = {"name": "c", "skip_reason": "not found on PyPI"}
    assert sbom.say([known]) == 0
    assert sbom.say([known, hole]) == 1
    assert "b 1: CVE-1, fixed in 2" in capsys.readouterr().out
    assert sbom.say([known, unknown]) == 2
    assert "NOT CHECKED" in capsys.readouterr().out
    assert sbom.say([]) == 2
