"""What is loaded with a model, in a plan: it decides ids by its content, is checked before loading, and is told."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from consistory_ray.cli.app import app
from consistory_ray.engine.running import load
from consistory_ray.errors import CheckpointError, InputError, JobError
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.jobs.stored_subjects import describe_subject
from consistory_ray.plan.advice import job_notes
from consistory_ray.plan.loaded import Loaded
from consistory_ray.plan.plan import Plan, make_plan

WIDTH = 128
KEY = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def safetensors(path: Path, **tensors: np.ndarray[Any, Any]) -> str:
    """A file with float32 tensors; dots in names are written as two underscores."""
    header, body = {}, b""
    for key, value in tensors.items():
        data = value.astype(np.float32).tobytes()
        place = [len(body), len(body) + len(data)]
        header[key.replace("__", ".")] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": place}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return str(path)


def lora(path: Path, width: int = WIDTH, value: float = 1.0) -> str:
    down, up = np.full((2, width), value), np.ones((8, 2))
    return safetensors(path, **{f"{KEY}.lora_A.weight": down, f"{KEY}.lora_B.weight": up})


def data(**fields: Any) -> dict[str, Any]:
    subject = {"id": "moss", "concept": "dragon", "subject": "a dragon", "anchors": ["in the forest"]}
    return {"name": "x", "model": "miniature", "subjects": [{**subject, "scenes": ["in space"]}], **fields}


def plan(**fields: Any) -> Plan:
    return make_plan(parse_job(data(**fields)))


def ids(**fields: Any) -> tuple[str, ...]:
    made = plan(**fields).subjects[0]
    return (made.subject_key, *(asset.asset_id for asset in made.assets()))


def test_all_that_is_loaded_makes_other_pictures_and_another_cache(tmp_path: Path) -> None:
    one, two = lora(tmp_path / "one.safetensors"), lora(tmp_path / "two.safetensors", value=2)
    vae = tmp_path / "vae.safetensors"
    vae.write_bytes(b"vae")
    made = [
        ids(),
        ids(loras=[one]),
        ids(loras=[two]),
        ids(loras=[{"path": one, "weight": 0.5}]),
        ids(loras=[one, two]),
        ids(loras=[two, one]),
        ids(loras=["acme/xl"]),
        ids(embeddings=[one]),
        ids(embeddings=[{"path": one, "token": "other"}]),
        ids(vae=str(vae)),
        ids(vae="acme/vae"),
    ]
    for place in zip(*made, strict=True):
        assert len(set(place)) == len(made)
    hub = [ids(model="acme/xl"), ids(model="acme/xl", revision="v1"), ids(model="acme/xl", variant="fp16")]
    assert len(set(hub)) == 3
    vae.write_bytes(b"another")
    assert ids(vae=str(vae)) not in made


def test_names_and_places_decide_nothing(tmp_path: Path) -> None:
    one, moved = lora(tmp_path / "one.safetensors"), lora(tmp_path / "moved.safetensors")
    assert ids(loras=[one]) == ids(loras=[{"path": moved, "name": "mine", "weight": 1}])
    assert ids() == ids(loras=[], embeddings=[], vae=None, variant=None, revision=None)
    assert plan().loaded == Loaded() and not Loaded().identity() and not Loaded().told()


def test_a_plan_is_the_same_where_the_files_are_gone(tmp_path: Path) -> None:
    one = lora(tmp_path / "one.safetensors")
    job = parse_job(data(loras=[one], embeddings=[one]))
    before = make_plan(job)
    Path(one).unlink()
    assert make_plan(parse_job(job.model_dump(mode="json", exclude_unset=True))) == before


def refused(**fields: Any) -> dict[str, str]:
    with pytest.raises((CheckpointError, InputError)) as caught:
        load(data(**fields))
    return {problem.path: problem.fix for problem in caught.value.problems}


def test_what_does_not_fit_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    good = lora(tmp_path / "good.safetensors")
    old = lora(tmp_path / "old.safetensors", width=768)
    other = safetensors(tmp_path / "other.safetensors", weight=np.ones(3))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a header at all")
    assert load(data(loras=[good]))[1].loaded.loras[0].path == good
    found = refused(loras=[good, old, other, str(broken)], vae=str(tmp_path / "gone"))
    assert list(found) == ["loras[1].path", "loras[2].path", "loras[3].path", "vae"], "all of them at once"
    assert "Stable Diffusion 1" in found["loras[1].path"]
    assert "there is no such file or folder" in found["vae"]
    assert "bundled" in refused(loras=["miniature/nothing"])["loras[0].path"]
    with pytest.raises(ValidationError, match="model: miniature"):
        RenderJob.model_validate(data(model="acme/xl", loras=["miniature/nothing"]))


def test_a_file_that_became_another_one_is_refused(tmp_path: Path) -> None:
    one = lora(tmp_path / "one.safetensors")
    job = parse_job(data(loras=[one]))
    lora(tmp_path / "one.safetensors", value=3)
    with pytest.raises(CheckpointError) as caught:
        load(job.model_dump(mode="json", exclude_unset=True))
    assert "another one by now" in caught.value.problems[0].fix


def stored(folder: Path, **fields: Any) -> str:
    (subject,) = plan(**fields).subjects
    folder.mkdir()
    (folder / "subject.json").write_bytes(describe_subject(subject, "miniature", "0" * 64, "1" * 64, 7))
    return str(folder)


def taken_up(place: str, **fields: Any) -> Plan:
    subject = {"from": place, "scenes": ["in the snow"]}
    return make_plan(parse_job({"model": "miniature", "subjects": [subject], **fields}))


def test_a_stored_subject_is_taken_up_with_what_it_was_made_with(tmp_path: Path) -> None:
    one, two = lora(tmp_path / "one.safetensors"), lora(tmp_path / "two.safetensors", value=2)
    place, bare = stored(tmp_path / "with", loras=[{"path": one, "weight": 0.8}]), stored(tmp_path / "bare")
    assert taken_up(bare).scene_count == 1
    moved = lora(tmp_path / "moved.safetensors")
    assert taken_up(place, loras=[{"path": moved, "weight": 0.8}]).scene_count == 1
    assert taken_up(place, loras=[{"path": "acme/xl", "weight": 0.8}]).scene_count == 1, "weights are compared later"
    for where, fields in (
        (place, {}),
        (place, {"loras": [{"path": one, "weight": 0.7}]}),
        (place, {"loras": [{"path": two, "weight": 0.8}]}),
        (place, {"loras": [{"path": one, "weight": 0.8}, two]}),
        (bare, {"loras": [one]}),
    ):
        with pytest.raises(JobError) as caught:
            taken_up(where, **fields)
        assert [problem.path for problem in caught.value.problems] == ["loras"]
        assert ("one (0.8)" if where == place else "none") in caught.value.problems[0].fix


def test_plan_shows_what_is_loaded_and_how_is_sampled(tmp_path: Path) -> None:
    one = lora(tmp_path / "one.safetensors")
    settings = {"scheduler": "dpmpp_2m", "sigma_schedule": "karras", "num_inference_steps": 20}
    loras = [{"path": one, "weight": 0.8}]
    (tmp_path / "job.json").write_text(json.dumps(data(loras=loras, vae="acme/vae", settings=settings)))
    command = ["plan", str(tmp_path / "job.json"), "--output", str(tmp_path / "out")]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "loaded with the model: LoRA one at 0.8, VAE acme/vae" in told.output
    assert "sampled with dpmpp_2m, karras, 20 steps" in told.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert found["loaded"]["loras"][0]["weight"] == 0.8 and found["loaded"]["vae"] == "acme/vae"
    assert found["sampling"] == ["dpmpp_2m, karras, 20 steps"]


def warned(**fields: Any) -> dict[str, str]:
    job = parse_job(data(**fields))
    return {warning.kind: str(warning) for warning in job_notes(job, make_plan(job), "cpu").warnings}


def test_what_does_nothing_is_warned_about(tmp_path: Path) -> None:
    one = lora(tmp_path / "one.safetensors")
    assert "useless-lora" in warned(loras=[{"path": one, "weight": 0}])
    assert "unused-embedding" in warned(embeddings=[{"path": one, "token": "mood"}])
    assert not warned(loras=[one], embeddings=[{"path": one, "token": "Forest"}])
    few = {"num_inference_steps": 8, "guidance_scale": 1.0}
    assert "unusual-num-inference-steps" in warned(settings=few)
    assert not warned(loras=[{"path": one, "name": "distilled-8"}], settings=few), "it was made for few steps"
