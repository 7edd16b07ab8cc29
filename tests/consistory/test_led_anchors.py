"""Led anchors: the first is a plain picture, and each later one is what a scene of the earlier ones would be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from consistory_ray.consistory import ConsiStoryPipeline, SubjectResult

ANCHORS = ["a photo of a cat in the garden", "a cat on the beach", "a cat with a hat"]
SEEDS = [1, 2, 3]


def made(pipe: ConsiStoryPipeline, anchors: int, **changes: Any) -> SubjectResult:
    changes = {"num_inference_steps": 6, "mask_dropout": 0.5, "led_anchors": True, **changes}
    return pipe.create_subject(ANCHORS[:anchors], "cat", SEEDS[:anchors], output_type="latent", **changes)


def latents(subject: SubjectResult) -> Tensor:
    found: Tensor = subject.images
    return found


def test_the_first_one_is_a_plain_picture(pipe: ConsiStoryPipeline) -> None:
    plain = pipe.render_vanilla(ANCHORS[:1], [1], concepts="cat", num_inference_steps=6, output_type="latent").images
    torch.testing.assert_close(latents(made(pipe, 3))[:1], plain, atol=2e-4, rtol=0)
    together = latents(made(pipe, 3, led_anchors=False))[:1]
    assert (together - plain).abs().max() > 0.01, "anchors that see each other are no plain pictures"


@pytest.mark.parametrize("anchors", [1, 2])
def test_a_later_one_is_a_scene_of_the_earlier_ones(pipe: ConsiStoryPipeline, anchors: int) -> None:
    subject = made(pipe, anchors)
    scene: Any = pipe.render([ANCHORS[anchors]], subject, [SEEDS[anchors]], output_type="latent").images
    torch.testing.assert_close(latents(made(pipe, anchors + 1))[-1:], scene, atol=2e-4, rtol=0)


def test_more_anchors_leave_the_earlier_ones_as_they_are(pipe: ConsiStoryPipeline) -> None:
    torch.testing.assert_close(latents(made(pipe, 3))[:2], latents(made(pipe, 2)), atol=2e-4, rtol=0)
