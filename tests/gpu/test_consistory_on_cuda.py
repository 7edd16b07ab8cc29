"""The method on a CUDA device: half precision, and closeness to the CPU. On a CPU the same tests only have to run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, Trace
from tests.consistory.conftest import make_diffusers_pipeline

ANCHORS = ["a photo of a cat in the garden", "a cat on the beach"]
SCENES = ["a cat in space", "a cat with a hat"]


def on(device: str | torch.device, dtype: torch.dtype, folder: Path) -> ConsiStoryPipeline:
    return ConsiStoryPipeline(make_diffusers_pipeline(folder).to(device, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_subjects_and_scenes_render(dtype: torch.dtype, device: torch.device, tmp_path: Path) -> None:
    pipe = on(device, dtype, tmp_path)
    subject = pipe.create_subject(ANCHORS, ["cat"], [1, 2], num_inference_steps=10, output_type="np")
    subject.cache.save(tmp_path / "cat.safetensors")
    loaded = AnchorCache.load(tmp_path / "cat.safetensors")
    assert all(tensor.device.type == "cpu" for tensor in loaded.tensors.values())
    first, second = (pipe.render(SCENES, cache, [3, 4], output_type="np").images for cache in (subject.cache, loaded))
    assert (first == second).all() and 0 <= first.min() < first.max() <= 1


def test_a_device_is_close_to_the_cpu(device: torch.device, tmp_path: Path) -> None:
    found = {}
    for where, name in (("cpu", "theirs"), (device, "ours")):
        pipe, trace = on(where, torch.float32, tmp_path / name), Trace()
        made = pipe.create_subject(ANCHORS, ["cat"], [1, 2], num_inference_steps=10, trace=trace, output_type="latent")
        found[name] = trace, made
    ours, theirs = found["ours"], found["theirs"]
    assert (ours[0].latents[1, 9] - theirs[0].latents[1, 9]).abs().max() < 1e-2
    for level, mask in theirs[1].masks.items():
        assert (ours[1].masks[level] == mask).float().mean() > 0.99
    assert (ours[1].images - theirs[1].images).square().mean().sqrt() < 1e-2


def test_the_same_scene_on_either_device_starts_from_the_same_noise(device: torch.device, tmp_path: Path) -> None:
    latents = []
    for number, where in enumerate(("cpu", device)):
        trace = Trace()
        pipe = on(where, torch.float32, tmp_path / str(number))
        settings = pipe.default_settings.replace(num_inference_steps=1)
        pipe.render_vanilla(SCENES[:1], [3], settings=settings, trace=trace, output_type="latent")
        latents.append(trace.latents[1, 0])
    torch.testing.assert_close(latents[0], latents[1], atol=1e-3, rtol=1e-3)


def test_a_cache_made_in_half_precision_serves_a_float32_pipeline(device: torch.device, tmp_path: Path) -> None:
    cache = (
        on(device, torch.float16, tmp_path / "a")
        .create_subject(ANCHORS, ["cat"], [1, 2], num_inference_steps=10, output_type="latent")
        .cache
    )
    images = on("cpu", torch.float32, tmp_path / "b").render(SCENES, cache, [3, 4], output_type="latent").images
    assert torch.isfinite(images).all()
