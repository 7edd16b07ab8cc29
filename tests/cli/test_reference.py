"""The references are those of the code, and their examples are jobs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from PIL import Image
from safetensors.torch import save_file

from consistory_ray.jobs.job import RenderJob, load_job
from consistory_ray.jobs.stored_subjects import describe_subject, subject_file
from consistory_ray.jobs.tables import COLUMNS
from consistory_ray.plan.plan import make_plan
from tests.pictures.making import disc, encoded, gradient

ROOT = Path(__file__).parents[2]
BUNDLED_LORA = ROOT / "consistory_ray" / "miniature" / "loras" / "blueprint.safetensors"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/reference_docs.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return importlib.import_module("reference_docs")


def test_the_references_are_current(script: ModuleType) -> None:
    """`python scripts/reference_docs.py` writes them."""
    stale = [path.name for path, text in script.derived_files().items() if path.read_text() != text]
    assert not stale


def test_every_key_column_and_option_is_described(script: ModuleType) -> None:
    schema = RenderJob.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        assert model["description"] and all(field["description"] for field in model["properties"].values())
    assert all(COLUMNS.values())
    page = (ROOT / "docs" / "cli.md").read_text()
    for command in script.app.registered_commands:
        assert f"## {command.name or command.callback.__name__}\n" in page
        for parameter in script.parameters(command):
            assert parameter.info.help, (command.name, parameter.name)
    assert "| `--max-failures` | whole number from 0 |  |" in page and "| `--json` |  |  |" in page
    assert "| `--gallery`, `--no-gallery` |  | `--gallery` |" in page and "--renderer" not in page


def test_examples_are_jobs_and_keep_to_the_schema(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hints = ("poses/dragon/sitting.png", "poses/dragon/flying.png", "cat.png", "photo.jpg")
    (tmp_path / "poses" / "dragon").mkdir(parents=True)
    for name in ("mia-1.png", "mia-2.webp", "mia-2-mask.png", *hints):
        kind = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}[name.rpartition(".")[2]]
        (tmp_path / name).write_bytes(
            encoded(Image.fromarray(disc()) if "mask" in name or "sitting" in name else gradient(), kind)
        )
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "places.txt").write_text("in space\nat sunset\n")
    (tmp_path / "loras").mkdir()
    for name in ("watercolour", "moss"):
        shutil.copy(BUNDLED_LORA, tmp_path / "loras" / f"{name}.safetensors")
    vectors = {"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}
    save_file(vectors, tmp_path / "loras" / "mood.safetensors")
    schema = Draft202012Validator(RenderJob.model_json_schema())
    found = []
    for number, (language, text) in enumerate(script.examples((ROOT / "docs" / "job-file.md").read_text())):
        if language == "python":
            exec(text, {})
            path = Path("prompts.parquet")
        else:
            path = Path(f"example-{number}.{language}")
            path.write_text(text)
        plan = make_plan(load_job(path))
        found.append((language, plan.anchor_count, plan.scene_count))
        if language in ("yaml", "json") and "subjects" in (data := yaml.safe_load(text)):
            schema.validate(data)
        if number == 0:
            _store(plan)
    assert found == [
        ("yaml", 2, 3),
        ("json", 2, 1),
        ("yaml", 2, 2),  # of given pictures
        ("yaml", 4, 7),  # of poses and hints
        ("yaml", 2, 6),  # of a matrix
        ("yaml", 2, 1),  # with a gate
        ("yaml", 2, 1),  # of LoRAs and an embedding
        ("yaml", 2, 24),  # drawn
        ("yaml", 0, 2),  # its anchors are there already
        ("yaml", 0, 5),  # and those of another run's
        ("csv", 4, 3),
        ("python", 2, 1),
        ("yaml", 2, 1),
    ]


def _store(plan: Any) -> None:
    """What a run of the first example leaves of its subject, and another run of another, to be taken up."""
    (subject,) = plan.subjects
    place = subject.cache_path.replace(subject.subject_id, "tin-robot")
    robot = dataclasses.replace(subject, subject_id="tin-robot", concepts=("robot",), text="a robot", cache_path=place)
    for output, one in (("quickstart", subject), ("friends", robot)):
        path = Path("out", output) / subject_file(one.cache_path)
        path.parent.mkdir(parents=True)
        path.write_bytes(describe_subject(one, plan.model, "0" * 64, "0" * 64, 1))


@pytest.mark.parametrize("wrong", [{}, {"subjects": [{"scenes": ["a cat"]}]}, {"subjects": [], "name": 3}])
def test_the_schema_refuses_what_is_no_job(wrong: dict[str, Any]) -> None:
    assert not Draft202012Validator(RenderJob.model_json_schema()).is_valid(wrong), json.dumps(wrong)
