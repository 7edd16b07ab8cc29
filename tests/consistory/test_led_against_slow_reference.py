"""Led pictures against the slow implementation, whose UNet is given a ControlNet's residuals in every call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.random_sdxl import build_pipeline, build_unet
from consistory_ray.consistory import ConsiStoryPipeline, ControlHint
from tests.consistory import slow_reference as slow
from tests.consistory.models.test_control import make_net
from tests.consistory.test_against_slow_reference import SMALL, assert_same_pictures, latents_for, options_of

ANCHORS, SCENES = ["a photo of a cat in the garden", "a cat on the beach"], ["a cat in the snow", "a cat that sleeps"]
SETTINGS = {"num_inference_steps": 6, "freeu": None, "mask_dropout": 0.0}


@pytest.fixture(scope="module")
def pipe() -> ConsiStoryPipeline:
    torch.manual_seed(1)
    unet = build_unet(SMALL)
    net = make_net(unet, 3, channels=(8, 8, 8, 16))
    return ConsiStoryPipeline(build_pipeline(SMALL, unet, torch.float32), controlnets=[net])


@contextmanager
def led(pipe: ConsiStoryPipeline, hints: Sequence[ControlHint | None]) -> Iterator[None]:
    """The UNet's calls with residuals of images that have a hint at that step, one image after the other."""
    unet, net = pipe.pipe.unet, pipe.backbone.controlnets[0]
    forward = unet.forward

    def led_forward(sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **named: Any) -> Any:
        share = pipe.pipe.scheduler.timesteps.tolist().index(int(timestep)) / len(pipe.pipe.scheduler.timesteps)
        found: list[Any] = []
        for row in range(len(sample)):
            hint, only = hints[row % len(hints)], slice(row, row + 1)
            picture = torch.zeros(1, 3, 256, 256)
            if hint is not None:
                picture = torch.from_numpy(np.array(hint.image)).permute(2, 0, 1)[None] / 255
            acts = hint is not None and share < hint.end - 1e-9
            found.append(
                net(
                    *(sample[only], timestep, encoder_hidden_states[only], picture),
                    conditioning_scale=hint.scale if hint is not None and acts else 0.0,
                    added_cond_kwargs={key: each[only] for key, each in named["added_cond_kwargs"].items()},
                    return_dict=False,
                )
            )
        skips = tuple(torch.cat(same) for same in zip(*(each[0] for each in found), strict=True))
        residuals = {"down_block_additional_residuals": skips}
        residuals["mid_block_additional_residual"] = torch.cat([each[1] for each in found])
        return forward(sample, timestep, encoder_hidden_states, **named, **residuals)

    unet.forward = led_forward
    try:
        yield
    finally:
        del unet.forward


def hint(seed: int, **how: float) -> ControlHint:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return ControlHint(Image.fromarray(coarse).resize((256, 256)), **how)


def test_led_pictures(pipe: ConsiStoryPipeline) -> None:
    options = options_of(SETTINGS)
    noise, others = latents_for(2, (32, 32), 1), latents_for(2, (32, 32), 101)
    controls = [None, hint(1, scale=0.7)]
    subject = pipe.create_subject(ANCHORS, ["cat"], controls=controls, latents=noise, output_type="latent", **SETTINGS)
    with led(pipe, controls):
        expected = slow.render_anchors(pipe.pipe, ANCHORS, ["cat"], noise, options)
    assert_same_pictures("anchors", subject.images, subject.masks, expected)
    free = pipe.render(SCENES, subject.cache, latents=others, output_type="latent").images
    controls = [hint(2, end=0.5), None]
    result = pipe.render(SCENES, subject.cache, latents=others, controls=controls, output_type="latent")
    assert (result.images[0] - free[0]).abs().max() > 0.1
    with led(pipe, controls):
        expected = slow.render_scenes(pipe.pipe, SCENES, ["cat"], others, options, expected.anchors)
    assert_same_pictures("scenes", result.images, result.masks, expected)
