"""What is saved on scenes against a slow implementation of the same, on a small random model with SDXL's topology."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.random_sdxl import build_pipeline, build_unet
from consistory_ray.consistory import ConsiStoryPipeline
from tests.consistory import slow_reference as slow
from tests.consistory.slow_savings import Savings, ThriftyRun
from tests.consistory.test_against_slow_reference import FREEU, SMALL, latents_for, options_of

LARGEST, MASK_SHARE = 2e-3, 0.98
ANCHORS, SCENES = ["a cat in the garden", "a cat on the beach"], ["a cat in the snow", "a photo of a cat that sleeps"]

AHEAD, LIVE = {"first_pass": "lookahead"}, {"first_pass": "live"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of all pictures, of the scenes
    "lookahead_few_steps": ({"num_inference_steps": 12}, AHEAD),
    "lookahead_one_map": ({"num_inference_steps": 12}, AHEAD | {"lookahead_maps": 1, "shared_every": 3}),
    "lookahead_deep": ({"num_inference_steps": 12}, AHEAD | {"reuse_deep": (0.35, 2), "shared_every": 2}),
    "lookahead_once": (
        {"num_inference_steps": 11, "freeu": FREEU},
        AHEAD | {"lookahead": (251,), "scene_blending": False},
    ),
    "live": ({"num_inference_steps": 12}, LIVE),
    "live_deep": ({"num_inference_steps": 15, "freeu": FREEU}, LIVE | {"reuse_deep": (0.2, 3), "shared_every": 2}),
    "live_half_guided": (
        {"num_inference_steps": 12},
        LIVE | {"guidance_interval": (0.0, 0.5), "reuse_deep": (0.35, 2)},
    ),
    "lookahead_late_guidance": ({"num_inference_steps": 12}, AHEAD | {"guidance_interval": (0.2, 0.8)}),
}


@pytest.fixture(scope="module")
def pipe() -> ConsiStoryPipeline:
    torch.manual_seed(1)
    return ConsiStoryPipeline(build_pipeline(SMALL, build_unet(SMALL), torch.float32))


@pytest.mark.parametrize("name", CASES)
def test_scenes_made_for_less(name: str, pipe: ConsiStoryPipeline) -> None:
    settings, savings = CASES[name]
    settings = {"freeu": None, "mask_dropout": 0.0, **settings}
    anchor_latents, scene_latents = latents_for(2, (32, 32), 1), latents_for(2, (32, 32), 101)
    subject = pipe.create_subject(ANCHORS, "cat", latents=anchor_latents, output_type="latent", **settings, **savings)
    options = options_of(settings)
    anchors = slow.render_anchors(pipe.pipe, ANCHORS, ["cat"], anchor_latents, options).anchors
    run = ThriftyRun(pipe.pipe, SCENES, ["cat"], scene_latents, options, anchors, Savings(**savings))
    expected, masks = run.render()

    result = pipe.render(SCENES, subject, latents=scene_latents, output_type="latent")
    exact = pipe.create_subject(ANCHORS, "cat", latents=anchor_latents, output_type="latent", **settings)
    plain = pipe.render(SCENES, exact, latents=scene_latents, output_type="latent")

    for level, mask in masks.items():
        assert mask.any() and not mask.all(), f"the {level} masks of this model test nothing"
        assert (result.masks[level].flatten(1) == mask).float().mean() >= MASK_SHARE
    difference = float((result.images - expected).abs().max())
    saved = float((plain.images - expected).abs().max())
    print(f"{name}: max {difference:.2e}, from exact {saved:.2e}")
    assert difference < LARGEST
    assert saved > 5 * LARGEST, "the savings change nothing here: the comparison would not notice their absence"
