"""The training of the bundled ControlNet goes on where it stopped, and only the ControlNet learns."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

from consistory_ray.evaluation.prompts import consistency_subjects
from training.controlnet import ControlTraining, export_controlnet, new_controlnet, open_pipeline, train_controlnet
from training.denoiser import Stage
from training.hints import HINTS, draw_hint
from training.led import led_scenes
from training.train import WEIGHTS
from training.world import draw, random_spec


def stages(*steps: int) -> tuple[Stage, ...]:
    """Short ones of half-size pictures."""
    return tuple(Stage(f"stage{index}", 64, count, 3, 1e-2, 1e-3) for index, count in enumerate(steps))


def test_it_resumes_and_is_exported_as_diffusers_reads_it(tmp_path: Path, alone: None) -> None:
    train_controlnet(0, 1, str(tmp_path), str(WEIGHTS), stages(1, 0), 1)
    first = torch.load(tmp_path / "controlnet.pt", weights_only=True)
    train_controlnet(0, 1, str(tmp_path), str(WEIGHTS), stages(1, 2), 1)
    second = torch.load(tmp_path / "controlnet.pt", weights_only=True)
    assert (first["step"], second["step"], second["ema"]["steps"]) == (1, 3, 3)
    assert {int(state["step"]) for state in second["optimizer"]["state"].values()} == {3}, "the optimizer started anew"
    export_controlnet(tmp_path, WEIGHTS, tmp_path / "out")
    net = ControlNetModel.from_pretrained(tmp_path / "out")
    assert net.dtype == torch.float32 and (tmp_path / "out" / "diffusion_pytorch_model.safetensors").exists()
    average = second["ema"]["shadow"]["controlnet_mid_block.weight"]
    assert average.abs().max() > 0
    torch.testing.assert_close(net.controlnet_mid_block.weight.data, average.half().float())


def test_an_untrained_net_changes_nothing_and_learns_alone() -> None:
    pipe = open_pipeline(WEIGHTS)
    torch.manual_seed(0)
    training, stage = ControlTraining(pipe, new_controlnet(pipe)), Stage("half", 64, 1, 4, 0.0, 0.0)
    led, hints = training.losses("batch", stage)
    alone, _ = training.losses("batch", stage, led=False)
    assert torch.equal(led, alone) and set(hints) <= set(HINTS)
    led.mean().backward()  # type: ignore[no-untyped-call]
    assert training.control.controlnet_mid_block.weight.grad.abs().max() > 0
    assert all(value.grad is None for model in (pipe.unet, pipe.vae) for value in model.parameters())


def test_hints_show_where_subjects_are_and_which_kind_of_hint_they_are() -> None:
    spec = random_spec(random.Random("hints"), two_subjects=1.0)
    drawing = draw(spec)
    covered = drawing.masks.sum(0) > 0.5
    shown = {name: np.asarray(draw_hint(name, spec, drawing)) for name in HINTS}
    assert all(hint.shape == (128, 128, 3) and hint.dtype == np.uint8 for hint in shown.values())
    assert ((shown["silhouette"].max(2) > 127) == covered).all()
    outline = shown["outline"].max(2) > 127
    assert not (outline & ~covered).any() and 0.1 < outline.sum() / covered.sum() < 0.6
    bones = shown["pose"].max(2) > 127
    assert (bones & covered).sum() > 0.9 * bones.sum() and 0.02 < bones.sum() / covered.sum() < 0.5
    assert np.ptp(shown["pose"].astype(int), 2).max() > 100, "a pose has colours"
    assert max(np.ptp(shown[name].astype(int), 2).max() for name in ("silhouette", "outline")) == 0


@pytest.mark.parametrize("name", HINTS)
def test_hints_that_lead_scenes_are_of_the_subjects_kind_and_always_the_same(name: str) -> None:
    subject = consistency_subjects(1, scenes=2)[0]
    first, second = led_scenes(subject, (name, name), "seed"), led_scenes(subject, (name, name), "seed")
    for one, other in zip(first, second, strict=True):
        assert one.name == name and one.hint.tobytes() == other.hint.tobytes()
        assert isinstance(one.drawing, Image.Image) and 0.1 < one.silhouette.mean() < 0.7
    assert first[0].hint.tobytes() != first[1].hint.tobytes()
