"""LoRAs of the bundled model: students learn from their teacher's paths, files are what diffusers loads."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors import safe_open
from safetensors.torch import load_file

from consistory_ray.miniature.architecture import LATENT_SIZE, build_scheduler
from consistory_ray.settings import model_revision
from training.controlnet import open_pipeline
from training.denoiser import Stage
from training.distillation import (
    Levels,
    Sampler,
    Student,
    export_student,
    path_caption,
    path_noise,
    sample_paths,
    trailing,
    train_student,
)
from training.style import blueprint, export_style, train_style
from training.train import WEIGHTS
from training.world import draw, random_spec


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two paths, one a file, of a teacher that takes 8 steps."""
    folder = tmp_path_factory.mktemp("run")
    sample_paths(folder, Sampler(open_pipeline(WEIGHTS)), 2, block=1, substeps=1)
    return folder


def test_trailing_timesteps_are_diffusers_own() -> None:
    for steps in (4, 8, 24):
        scheduler = DDIMScheduler.from_config(build_scheduler().config, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        assert trailing(steps) == scheduler.timesteps.tolist()


def test_steps_are_diffusers_own_and_velocities_lead_where_they_should() -> None:
    scheduler = DDIMScheduler.from_config(build_scheduler().config, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    levels, timesteps = Levels(scheduler.alphas_cumprod), [*trailing(4), -1]
    latents, velocity = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for start, end in pairwise(timesteps):
        reached = levels.step(latents, velocity, start, end)
        torch.testing.assert_close(reached, scheduler.step(velocity, start, latents).prev_sample)
        torch.testing.assert_close(levels.velocity(latents, reached, start, end), velocity, rtol=1e-3, atol=1e-4)
    mixed = levels.step(latents, velocity, torch.tensor([999, 249]), torch.tensor([749, -1]))
    torch.testing.assert_close(mixed[1:], levels.step(latents[1:], velocity[1:], 249, -1))


def test_paths_are_sampled_once_and_guided_as_diffusers_guides(run: Path) -> None:
    files = sorted((run / "paths").iterdir())
    before = [(file.name, file.stat().st_mtime_ns) for file in files]
    pipe = open_pipeline(WEIGHTS)
    sample_paths(run, Sampler(pipe), 2, block=1, substeps=1)
    assert [(file.name, file.stat().st_mtime_ns) for file in files] == before and len(files) == 2
    path = torch.from_numpy(np.load(files[1]))[0]
    assert torch.equal(path[0], path_noise([1])[0]) and path.shape == (9, 4, LATENT_SIZE, LATENT_SIZE)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 4 * LATENT_SIZE, "width": 4 * LATENT_SIZE}
    found = pipe(
        path_caption(1), num_inference_steps=8, guidance_scale=5.0, latents=path[:1], output_type="latent", **size
    )
    torch.testing.assert_close(found.images[0], path[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_student_learns_where_its_teacher_goes(run: Path, alone: None, tmp_path: Path) -> None:
    student = Student(run, Sampler(open_pipeline(WEIGHTS)), 4)
    assert [file.stem for file in student.files()] == ["000001"], "the first file is for measuring"
    before = float(student.losses("0/0", 8).detach().mean())
    (tmp_path / "paths").symlink_to(run / "paths")
    for steps in (2, 8):
        train_student(0, 1, str(tmp_path), str(WEIGHTS), 4, Stage("distilled-4", 128, steps, 4, 1e-2, 1e-2))
    state = torch.load(tmp_path / "distilled-4.pt", weights_only=True)
    assert state["step"] == 8 and {int(s["step"]) for s in state["optimizer"]["state"].values()} == {8}
    export_student(tmp_path, WEIGHTS, 4, tmp_path)
    pipe = open_pipeline(WEIGHTS)
    pipe.load_lora_weights(str(tmp_path / "distilled-4.safetensors"))
    after = float(Student(run, Sampler(pipe), 4).losses("0/0", 8).detach().mean())
    assert after < 0.9 * before
    with safe_open(tmp_path / "distilled-4.safetensors", "pt") as file:
        notes = file.metadata()
    assert notes["base_revision"] == model_revision("miniature")
    assert json.loads(notes["timesteps"]) == [999, 749, 499, 249]


def test_a_student_starts_from_the_one_of_more_steps(run: Path, alone: None, tmp_path: Path) -> None:
    (tmp_path / "paths").symlink_to(run / "paths")
    train_student(0, 1, str(tmp_path), str(WEIGHTS), 8, Stage("distilled-8", 128, 1, 1, 1e-2, 1e-2))
    train_student(0, 1, str(tmp_path), str(WEIGHTS), 4, Stage("distilled-4", 128, 1, 1, 0.0, 0.0))
    first, second = (torch.load(tmp_path / f"distilled-{steps}.pt", weights_only=True) for steps in (8, 4))
    for name, value in first["ema"]["shadow"].items():
        torch.testing.assert_close(second["model"][name], value)


def test_a_style_is_learned_and_diffusers_reads_the_same_lora(alone: None, tmp_path: Path) -> None:
    train_style(0, 1, str(tmp_path), str(WEIGHTS), Stage("blueprint", 128, 2, 2, 1e-2, 1e-2))
    export_style(tmp_path, WEIGHTS, tmp_path)
    weights = load_file(tmp_path / "blueprint.safetensors")
    assert (tmp_path / "blueprint.safetensors").stat().st_size <= 2_000_000
    pipe, plain = open_pipeline(WEIGHTS), open_pipeline(WEIGHTS)
    pipe.load_lora_weights(str(tmp_path / "blueprint.safetensors"))
    pipe.fuse_lora()
    name = "up_blocks.1.resnets.0.conv1"
    down, up = (weights[f"unet.{name}.lora_{half}.weight"].float() for half in "AB")
    wanted = plain.unet.get_submodule(name).weight + torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    assert up.abs().max() > 0
    torch.testing.assert_close(pipe.unet.get_submodule(name).base_layer.weight, wanted, rtol=1e-4, atol=1e-5)
    layers = [m for m in plain.unet.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(weights) == 2 * len(layers), "every layer has its matrices"


def test_the_style_keeps_subjects_and_turns_the_rest_blue() -> None:
    drawing = draw(random_spec(random.Random("style"), two_subjects=1.0))
    covered = drawing.masks.sum(0).clip(0, 1)
    plain, styled = np.asarray(drawing.image), np.asarray(blueprint(drawing.image, covered))
    assert np.array_equal(styled[covered == 1], plain[covered == 1])
    scene = styled[covered == 0].astype(int)
    assert (scene[:, 2] >= scene[:, 0]).all() and scene.mean(0)[2] - scene.mean(0)[0] > 60
