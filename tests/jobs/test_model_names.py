"""What can be known of a job's ``model`` before anything is loaded, and of the settings file beside a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_type_hints

import pytest
from huggingface_hub.utils import HFValidationError, validate_repo_id

from consistory_ray.engine.running import load
from consistory_ray.errors import InputError
from consistory_ray.guards.setting_ranges import _Ranges
from consistory_ray.jobs.job import parse_job
from consistory_ray.jobs.model_names import is_hub_id
from consistory_ray.jobs.render_settings import RenderSettings
from consistory_ray.settings import MethodSettings, model_revision

SUBJECT = {"concept": "cat", "subject": "a cat", "anchors": ["a"], "scenes": ["b"]}


def job(folder: Path, model: str) -> str:
    path = folder / "job.json"
    path.write_text(json.dumps({"model": model, "subjects": [SUBJECT]}))
    return str(path)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ("a" * 256, "give"),
        ("x/" * 200 + "y", "folder"),
        ("/", "model_index.json"),
        ("a\0b", "U+0000"),
        ("~/no such models/x", "no such folder"),
        ("/no such folder/x", "no such folder"),
        ("file:///no such folder", "no such folder"),
        ("../no such folder", "no such folder"),
        ("x.safetensors", "no such file"),
        ("s3://bucket/model", "fetch it"),
        ("https://example.org/x.safetensors", "fetch it"),
        ("https://huggingface.co/owner/name/tree/main", '"owner/name"'),
        ("hf://owner/name", '"owner/name"'),
        ("x.gguf", "convert it"),
        ("evil.ckpt", "convert it"),
        ("folder/EVIL.CKPT", "convert it"),
        ("/etc/shadow", "this file is no model"),
        ("/dev/zero", "neither"),
        ("s3:/x", "two slashes"),
    ],
)
def test_what_cannot_be_a_model_is_told_by_validate(tmp_path: Path, model: str, word: str) -> None:
    with pytest.raises(InputError) as caught:
        load(job(tmp_path, model))
    assert [problem.path for problem in caught.value.problems] == ["model"]
    assert word in caught.value.problems[0].fix


def test_a_folder_is_found_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "x").mkdir(parents=True)
    (tmp_path / "models" / "x" / "model_index.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for model in ("~/models/x", f"file://{tmp_path}/models/x", "models/x", f"local:{tmp_path}/models/x"):
        assert os.path.samefile(load(job(tmp_path, model))[1].model, "models/x")


@pytest.mark.parametrize(
    "name", ["a/b", "sdxl", "a--b", "a/b/c", ".a", "a.", "a..b", "a.git", "-a/b", "ä/b", "a b", "a/" + "b" * 97]
)
def test_a_hub_id_is_what_the_hub_client_takes(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        assert not is_hub_id(name)
    else:
        assert is_hub_id(name)


def test_a_whole_disk_is_not_walked_through() -> None:
    assert model_revision("/") is None
    assert model_revision("a" * 300) is None and model_revision("a\0") is None


@pytest.mark.parametrize(
    "content",
    [
        *(b"[]", b"null", b"\xff\xfe\x00", b"[" * 60_000, b'{"a":' * 9_000, b"{", b"", b"9" * 9_000, b" " * 99_999),
        *(b'{"guidance_scale": "5"}', b'{"height": -8}', b'{"mask_dropout": NaN}', b'{"steps": 5}', b'{"sdsa": 1}'),
        *(b'{"freeu": [1]}', b'{"query_blend": {}}', b'{"height": 64.5}', b'{"num_inference_steps": 1000000000000}'),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_settings_file_with_a_fault_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "consistory.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(job(tmp_path, str(tmp_path)))
    assert all("consistory.json" in problem.path and problem.fix for problem in caught.value.problems)


def test_a_settings_file_is_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    os.mkfifo(tmp_path / "consistory.json")
    with pytest.raises(InputError, match=r"consistory\.json"):
        load(job(tmp_path, str(tmp_path)))


def test_the_ranges_are_those_of_a_jobs_settings() -> None:
    names = set(get_type_hints(MethodSettings)) & set(RenderSettings.model_fields) | {"profile", "strength"}
    assert names == set(_Ranges.model_fields)
    for name in names - {"negative_prompt"}:
        ours = json.dumps(_Ranges.model_json_schema()["properties"][name], sort_keys=True)
        for value in (-1, 0, 0.5, 1, 2, 7, 8, 64, 999, 1000, 1001, 8192, 8200, "1", True, [1, 0], [0, 1], [1, 1, 1, 1]):
            assert _takes(_Ranges, name, value) == _takes(RenderSettings, name, value), (name, value, ours)


def _takes(model: type, name: str, value: object) -> bool:
    try:
        model(**{name: value})
    except ValueError:
        return False
    return True


def test_a_job_made_in_python_needs_no_folder_yet() -> None:
    assert parse_job({"name": "x", "model": "/not/mounted/here", "subjects": [SUBJECT]}).model == "/not/mounted/here"
