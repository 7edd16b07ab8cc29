"""Batches of a fixed shape: a scene's numbers are the same to the bit alone, at any place and beside any others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from consistory_ray.consistory import ConsiStoryPipeline, SubjectResult
from consistory_ray.errors import InputError, PictureError
from tests.consistory.test_pipeline import ANCHORS, QUICK, SCENES

COMPANY = [[0], [0, 1, 2, 3], [3, 0], [2, 1, 0], [1, 3, 2, 0], [0, 0, 1]]
"""Scenes that are rendered together; the first one is looked at."""


@pytest.fixture(scope="module")
def bundled() -> ConsiStoryPipeline:
    return ConsiStoryPipeline.from_pretrained("miniature", device="cpu")


@pytest.fixture(scope="module")
def bundled_subject(bundled: ConsiStoryPipeline) -> SubjectResult:
    return bundled.create_subject(
        ["a photo of a cat in the garden", "a cat on the beach"],
        "cat",
        [1, 2],
        num_inference_steps=4,
        output_type="latent",
    )


@pytest.fixture(scope="module")
def subject(pipe: ConsiStoryPipeline) -> SubjectResult:
    return pipe.create_subject(ANCHORS, ["cat"], [1, 2], **QUICK)


def first_in(pipe: ConsiStoryPipeline, subject: SubjectResult, rows: list[int], **options: Any) -> Tensor:
    """Final latents of the first scene, rendered with others."""
    texts, seeds = [SCENES[row] for row in rows], [3 + row for row in rows]
    found = pipe.render(texts, subject, seeds, output_type="latent", **options)
    assert len(found.images) == len(rows) and all(len(mask) == len(rows) for mask in found.masks.values())
    latents: Tensor = found.images[rows.index(0)]
    return latents


@pytest.mark.parametrize("profile", ["exact", "fast", "turbo"])
def test_a_scene_is_the_same_to_the_bit_in_any_company(pipe: ConsiStoryPipeline, profile: str) -> None:
    subject = pipe.create_subject(ANCHORS, ["cat"], [1, 2], **QUICK, profile=profile, cache_codec="none")
    alone, *others = (first_in(pipe, subject, rows, pad_to=4) for rows in COMPANY)
    assert alone.isfinite().all()
    assert all(torch.equal(alone, other) for other in others)


def test_so_is_one_of_the_bundled_model_and_only_then(
    bundled: ConsiStoryPipeline, bundled_subject: SubjectResult
) -> None:
    alone, *others = (
        first_in(bundled, bundled_subject, rows, pad_to=3, profile="fast") for rows in ([0], [1, 0], [3, 2, 0])
    )
    assert all(torch.equal(alone, other) for other in others)
    unpadded = first_in(bundled, bundled_subject, [0], profile="fast")
    assert not torch.equal(alone, unpadded), "nothing is rounded otherwise here: the test cannot fail"
    assert torch.allclose(alone, unpadded, atol=1e-2)


def test_scenes_are_rendered_in_parts_of_that_size(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    parts = pipe.render(SCENES[:3], subject, [3, 4, 5], pad_to=2, output_type="latent")
    halves = pipe.render(SCENES[:3], subject, [3, 4, 5], batch_size=1, pad_to=2, output_type="latent")
    assert torch.equal(parts.images, halves.images)


def test_a_broken_scene_is_told_and_leaves_its_company_as_it_is(
    pipe: ConsiStoryPipeline, subject: SubjectResult
) -> None:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    whole = pipe.render(SCENES[:1], subject, latents=noise[:1], pad_to=3, output_type="latent").images[0]
    noise[1] = torch.inf
    with pytest.raises(PictureError) as raised:
        pipe.render(SCENES[:2], subject, latents=noise, pad_to=3, output_type="latent")
    assert list(raised.value.failures) == [1] and raised.value.result is not None
    assert torch.equal(raised.value.result.images[0], whole)


@pytest.mark.parametrize(
    ("sizes", "named"), [({"pad_to": 0}, "pad_to"), ({"batch_size": 3, "pad_to": 2}, "at least batch_size, 3")]
)
def test_bad_sizes_are_named(
    pipe: ConsiStoryPipeline, subject: SubjectResult, sizes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        pipe.render(SCENES[:1], subject, [3], **sizes)
