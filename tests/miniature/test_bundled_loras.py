"""The bundled LoRAs: of the bundled weights, small, as good as their committed numbers say; they do what they claim."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import model_revision
from training.controlnet import open_pipeline
from training.distillation import Sampler, path_noise, trailing
from training.train import LORAS, WEIGHTS

ROOT = Path(__file__).parents[2]
REPORT = json.loads((ROOT / "benchmarks" / "results" / "distillation.json").read_text())
CAPTIONS = ["a drawing of a red cat in the meadow", "a drawing of a green dragon on the beach"]


def notes(name: str) -> dict[str, str]:
    """A file's metadata."""
    with safe_open(LORAS / f"{name}.safetensors", "pt") as file:
        return dict(file.metadata())


@cache
def sampled(*names: str) -> np.ndarray:
    """Pictures of the captions in 4 steps without guidance."""
    pipe: Any = open_pipeline(WEIGHTS)
    for name in names:
        pipe.load_lora_weights(str(LORAS / f"{name}.safetensors"))
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    latents = Sampler(pipe).path(path_noise([1, 2]), CAPTIONS, trailing(4))[:, -1]
    with torch.no_grad():
        pictures = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return np.asarray(((pictures.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).byte())


@pytest.mark.parametrize("name", [path.stem for path in sorted(LORAS.glob("*.safetensors"))])
def test_each_is_of_the_bundled_weights(name: str) -> None:
    """After a change of the weights: ``python -m training.train distil`` and ``style``."""
    assert notes(name)["base_revision"] == model_revision("miniature")


def test_they_are_small() -> None:
    sizes = {path.stem: path.stat().st_size for path in LORAS.glob("*.safetensors")}
    assert sizes["distilled-8"] + sizes["distilled-4"] <= 10_000_000 and sizes["blueprint"] <= 2_000_000


@pytest.mark.parametrize("steps", [8, 4])
def test_the_committed_numbers_are_of_the_committed_students(steps: int) -> None:
    """After a change of the students: ``python benchmarks/distillation.py``."""
    found = hashlib.sha256((LORAS / f"distilled-{steps}.safetensors").read_bytes()).hexdigest()
    assert REPORT[f"distilled_{steps}"]["sha256"] == found
    assert REPORT["base_revision"] == model_revision("miniature")
    assert json.loads(notes(f"distilled-{steps}")["timesteps"]) == trailing(steps)


def test_the_students_are_nearly_as_good_as_the_model() -> None:
    teacher = REPORT["teacher"]
    for steps, loss in ((8, 0.05), (4, 0.1)):
        student = REPORT[f"distilled_{steps}"]
        assert student["rows"] == steps < teacher["rows"]
        for name in ("kind_accuracy", "scene_accuracy"):
            assert student[name] >= teacher[name] - loss


def test_four_steps_suffice_with_the_lora() -> None:
    for reading, caption in zip(Judge.load().read(sampled("distilled-4")), CAPTIONS, strict=True):
        assert caption.endswith(reading.scene) and reading.kinds() and reading.kinds()[0] in caption


def test_the_style_turns_scenes_blue_and_keeps_subjects() -> None:
    plain, styled = sampled("distilled-4"), sampled("distilled-4", "blueprint")
    for before, after, reading, caption in zip(plain, styled, Judge.load().read(styled), CAPTIONS, strict=True):
        scene = ~reading.foreground
        blue = [picture[scene].astype(float).mean(0) @ (-0.5, -0.5, 1) for picture in (before, after)]
        assert blue[1] > 60 > blue[0]
        assert all(kind in caption for kind in reading.kinds()) and reading.kinds()
