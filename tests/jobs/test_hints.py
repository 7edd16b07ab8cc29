"""Hints point at what people mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from consistory_ray.errors import JobError
from consistory_ray.guards.problems import FIXES, MEANT
from consistory_ray.jobs.job import RenderJob, parse_document, parse_job
from consistory_ray.jobs.readers import Document
from consistory_ray.jobs.render_settings import RenderSettings
from consistory_ray.jobs.subject import Scene
from consistory_ray.jobs.yaml_events import read_yaml


def fixes(data: Any) -> dict[str, str]:
    with pytest.raises(JobError) as caught:
        parse_job(data)
    return {problem.path: problem.fix for problem in caught.value.problems}


def job(**changes: Any) -> dict[str, Any]:
    subject = {"concept": "cat", "subject": "a cat", "anchors": ["a", "b"], "scenes": ["c"]}
    return {"name": "x", "model": "acme/xl", "subjects": [{**subject, **changes.pop("of_subject", {})}], **changes}


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("steps", "num_inference_steps"),
        ("Sampling Steps", "num_inference_steps"),
        ("cfg", "guidance_scale"),
        ("CFG scale", "guidance_scale"),
        ("guidence_scale", "guidance_scale"),
        ("negative", "negative_prompt"),
        ("size", "height and width"),
        ("Width", "width"),
        ("n_iter", "count"),
        ("batch_count", "count"),
        ("batch-size", "batch_size"),
        ("sampler", "scheduler under settings"),
        ("karras", "sigma_schedule"),
        ("clipskip", "clip_skip under settings"),
        ("lora", "loras at the top of the file"),
        ("loras", "top of the file"),
        ("embedding", "embeddings at the top of the file"),
        ("lora_scale", "weight"),
        ("sd_vae", "vae at the top of the file"),
        ("vae", "top of the file"),
        ("prompt_strength", "words alone"),
        ("denoising_strength", "words alone"),
        ("dtype", "torch_dtype"),
        ("checkpoint", "model"),
        ("device", "--device"),
    ],
)
def test_settings_as_other_programs_call_them(key: str, told: str) -> None:
    (fix,) = fixes(job(settings={key: 3})).values()
    assert told in fix
    assert "map_steps" not in fix


def test_keys_in_the_wrong_place_are_sent_to_the_right_one() -> None:
    misplaced = {"subjects": [], "takes": 3}
    of_subject = {"guidance_scale": 3}
    found = fixes(job(num_inference_steps=3, scenes=["x"], matrix={}, settings=misplaced, of_subject=of_subject))
    assert "under settings" in found["num_inference_steps"] and "under settings" in found["subjects[0].guidance_scale"]
    assert "each of the subjects" in found["scenes"] and "top of the file" in found["settings.subjects"]
    assert "each of the subjects" in found["matrix"] and "top of the file" in found["settings.takes"]


def test_no_alias_is_a_key_of_its_own() -> None:
    assert not MEANT.keys() & FIXES.keys()


def problems_of(text: str) -> list[str]:
    data, problems = read_yaml(text)
    with pytest.raises(JobError) as caught:
        parse_document(Document("x.yaml", data, tuple(problems)))
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("line", "text"),
    [("in the city: at night", "in the city: at night"), ("Tokyo: at night", "Tokyo: at night"), ("a cat:", "a cat:")],
)
@pytest.mark.parametrize("key", ["scenes", "anchors"])
def test_text_with_a_colon_is_to_be_put_in_quotes(key: str, line: str, text: str) -> None:
    other = "anchors" if key == "scenes" else "scenes"
    (told,) = problems_of(f"subjects:\n- concept: cat\n  subject: a cat\n  {other}: [a]\n  {key}:\n  - {line}\n")
    assert f'put text with a colon in quotes: "{text}"' in told


@pytest.mark.parametrize(
    "line", ["a cat: red: hat", "[a::0.5] cat", "{a|b} cat", "@home", "*star", '"a" cat', "!important", "%x", "'it's"]
)
def test_text_that_begins_with_a_sign_is_to_be_put_in_quotes(line: str) -> None:
    told = problems_of(f"subjects:\n- concept: cat\n  subject: a cat\n  anchors: [a]\n  scenes:\n  - {line}\n")
    assert "quotes" in told[0]


def test_an_empty_negative_prompt_is_one() -> None:
    for text in ("", "  "):
        read = parse_job(job(settings={"negative_prompt": text}))
        assert read.settings.for_model("acme/xl").negative_prompt == ""
    assert RenderSettings().for_model("acme/xl").negative_prompt is None
    assert '""' in fixes(job(settings={"negative_prompt": 3}))["settings.negative_prompt"]


def test_seeds_of_numpy_and_whole_floats_are_taken_in_jobs_too() -> None:
    assert Scene(prompt="x", seed=np.int64(3)).seed == 3 and type(Scene(prompt="x", seed=np.int64(3)).seed) is int
    assert RenderSettings(seed=np.uint8(3)).seed == 3 and RenderSettings(seed=3.0).seed == 3
    for seed in (1.5, True, "1", np.bool_(True), float("nan"), float("inf"), -1.0, 2.0**63):
        assert "seed" in next(iter(fixes(job(settings={"seed": seed}))))
    assert RenderJob.model_json_schema()["$defs"]["RenderSettings"]["properties"]["seed"]["type"] == "integer"
