"""LoRAs, embeddings and another VAE in a job: how they are written, what they become, what is refused and how."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from consistory_ray.errors import JobError
from consistory_ray.jobs.adapter_names import adapter_name, called_by, is_hub_file
from consistory_ray.jobs.job import RenderJob, load_job, parse_job

SUBJECT = {"concept": "dragon", "subject": "a dragon", "anchors": ["in the forest"], "scenes": ["in space"]}


def read(folder: Path, **fields: Any) -> RenderJob:
    (folder / "job.yaml").write_text(yaml.safe_dump({"subjects": [SUBJECT], **fields}))
    return load_job(str(folder / "job.yaml"))


def problems(folder: Path, **fields: Any) -> dict[str, str]:
    with pytest.raises(JobError) as caught:
        read(folder, **fields)
    return {problem.path: problem.fix for problem in caught.value.problems}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loras").mkdir()
    for name in ("pixel.safetensors", "loras/ink.safetensors", "mood.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_short_and_long_forms_and_where_files_lie(folder: Path) -> None:
    long = {"path": "loras/ink.safetensors", "weight": -0.5, "name": "ink"}
    job = read(
        folder,
        loras=["pixel.safetensors", long, "acme/xl-lora", "acme/xl-lora/sub/a.safetensors"],
        embeddings="mood.safetensors",
        vae="madebyollin/sdxl-vae-fp16-fix",
    )
    first, second, third, fourth = job.loras
    assert (first.path, first.weight, first.called) == (str(folder / "pixel.safetensors"), 1.0, "pixel")
    assert first.sha256 == hashlib.sha256(b"pixel.safetensors").hexdigest()
    assert (second.path, second.weight, second.called) == (str(folder / "loras/ink.safetensors"), -0.5, "ink")
    assert (third.path, third.sha256, third.called) == ("acme/xl-lora", None, "xl-lora")
    assert (fourth.path, fourth.sha256, fourth.called) == ("acme/xl-lora/sub/a.safetensors", None, "a")
    assert job.embeddings[0].called == "mood"
    assert job.vae == "madebyollin/sdxl-vae-fp16-fix"
    again = parse_job(json.loads(json.dumps(job.model_dump(mode="json", exclude_unset=True))))
    assert again == job


def test_a_file_beside_the_job_goes_before_an_id_of_the_same_spelling(folder: Path) -> None:
    deep = folder / "acme/xl/a.safetensors"
    assert read(folder, loras=["acme/xl/a.safetensors"]).loras[0].path == "acme/xl/a.safetensors"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"here")
    assert read(folder, loras=["acme/xl/a.safetensors"]).loras[0].path == str(deep)


def test_a_url_is_fetched_once_and_known_by_its_content(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    with fsspec.open("memory://adapters/far.safetensors", "wb") as stream:
        stream.write(b"far")
    (lora,) = read(folder, loras=["memory://adapters/far.safetensors"]).loras
    assert (lora.path, lora.called) == ("memory://adapters/far.safetensors", "far")
    assert lora.sha256 == hashlib.sha256(b"far").hexdigest()
    assert len(list((folder / "cache").rglob("*.safetensors"))) == 1


def test_a_record_can_be_read_where_its_files_are_gone(folder: Path) -> None:
    job = read(folder, loras=["pixel.safetensors"])
    (folder / "pixel.safetensors").unlink()
    again = parse_job(job.model_dump(mode="json", exclude_unset=True))
    assert again.loras == job.loras
    assert "there is no such file" in problems(folder, loras=["pixel.safetensors"])["loras[0].path"]


@pytest.mark.parametrize(
    ("fields", "where", "told"),
    [
        ({"loras": [{"path": "pixel.safetensors", "weight": "0.8"}]}, "loras[0].weight", "such as 0.8"),
        ({"loras": [{"path": "pixel.safetensors", "weight": True}]}, "loras[0].weight", "such as 0.8"),
        ({"loras": [{"path": "pixel.safetensors", "weight": float("nan")}]}, "loras[0].weight", "such as 0.8"),
        ({"loras": [{"path": "pixel.safetensors", "strength": 1}]}, "loras[0].strength", "write it as weight"),
        ({"loras": [{"weight": 1}]}, "loras[0].path", "this key is missing"),
        ({"loras": 3}, "loras", "list of up to 32"),
        ({"loras": [f"acme/xl-{n}" for n in range(33)]}, "loras", "list of up to 32"),
        ({"loras": ["pixel.ckpt"]}, "loras[0].path", "pickled weights can run code"),
        ({"loras": ["https://x.org/a.pt?b=1"]}, "loras[0].path", "pickled weights can run code"),
        ({"loras": ["https://huggingface.co/acme/xl"]}, "loras[0].path", '"acme/xl"'),
        (
            {"loras": ["https://huggingface.co/acme/xl/blob/main/a.safetensors"]},
            "loras[0].path",
            '"acme/xl/a.safetensors"',
        ),
        ({"loras": ["gone.safetensors"]}, "loras[0].path", "there is no such file"),
        ({"loras": ["pixel.safetensors", "pixel.safetensors"]}, "loras[1]", "loras[0] is called so"),
        (
            {"loras": [{"path": "a/b", "name": "x"}, {"path": "c/d", "name": "X"}]},
            "loras[1].name",
            "loras[0] is called so",
        ),
        (
            {"embeddings": ["mood.safetensors", *({"path": f"a/{n}", "token": "mood"} for n in range(2))]},
            "embeddings[2].token",
            "embeddings[0] has this one",
        ),
        ({"embeddings": [{"path": "mood.safetensors", "token": "a b"}]}, "embeddings[0].token", "one word"),
        ({"vae": "vae.pt"}, "vae", "pickled weights can run code"),
        ({"vae": "https://x.org/vae.safetensors"}, "vae", "models are not read from URLs"),
        ({"vae": "miniature"}, "vae", "leave it out"),
        ({"revision": "v1"}, "revision", "only a model from the Hugging Face hub"),
        ({"model": "/models/xl", "revision": "v1"}, "revision", "only a model from the Hugging Face hub"),
        ({"model": "xl.safetensors", "variant": "fp16"}, "variant", "only a folder or a model from"),
        ({"model": "/models/xl", "config": "acme/xl"}, "config", "single .safetensors file"),
        ({"settings": {"loras": ["pixel.safetensors"]}}, "settings.loras", "top of the file"),
    ],
)
def test_what_cannot_be_loaded_is_told(folder: Path, fields: dict[str, Any], where: str, told: str) -> None:
    found = problems(folder, **fields)
    assert list(found) == [where]
    assert any(words in found[where] for words in told.split("|")), found[where]


def test_hub_models_have_revisions_and_variants(folder: Path) -> None:
    job = read(folder, model="acme/xl", revision="v1", variant="fp16")
    assert (job.revision, job.variant) == ("v1", "fp16")


def test_places_that_are_not_allowed_are_not_even_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSISTORY_ALLOWED_URLS", f"file://{folder}/loras,hf://acme")
    assert "CONSISTORY_ALLOWED_URLS" in problems(folder, loras=["pixel.safetensors"])["loras[0].path"]
    assert "CONSISTORY_ALLOWED_URLS" in problems(folder, embeddings=["other/xl"])["embeddings[0].path"]
    job = read(folder, loras=["loras/ink.safetensors", "acme/xl", "acme/xl/a.safetensors"])
    assert len(job.loras) == 3


def test_names_alone() -> None:
    assert adapter_name("miniature/distilled-8") == ("miniature/distilled-8", None)
    assert adapter_name("file:///x/a.safetensors") == ("/x/a.safetensors", None)
    assert adapter_name("hf://acme/xl")[1] == 'write its id alone, "acme/xl"'
    assert called_by("s3://bucket/a b.safetensors?version=3") == "a b"
    assert (
        not is_hub_file("a/b.safetensors")
        and not is_hub_file("/a/b/c.safetensors")
        and not is_hub_file("./a/b/c.safetensors")
    )
