"""Subjects of different runs in one cache: what it holds, that scenes read it rightly, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline
from consistory_ray.consistory.cache.joining import joined
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.errors import CacheMismatchError

STEPS = 10


def made(pipe: ConsiStoryPipeline, concept: str, seeds: list[int], **changes: int) -> AnchorCache:
    prompts = [f"a photo of a {concept} {place}" for place in ("in the garden", "on the beach", "in space")]
    settings = {"num_inference_steps": STEPS} | changes
    return pipe.create_subject(prompts[: len(seeds)], concept, seeds, output_type="latent", **settings).cache


@pytest.fixture(scope="module")
def cat(pipe: ConsiStoryPipeline) -> AnchorCache:
    return made(pipe, "cat", [1, 2])


@pytest.fixture(scope="module")
def dog(pipe: ConsiStoryPipeline) -> AnchorCache:
    return made(pipe, "dog", [3, 4, 5])


def test_every_token_keeps_its_anchor(cat: AnchorCache, dog: AnchorCache) -> None:
    both = joined([cat, dog])
    assert (both.concepts, both.seeds) == (("cat", "dog"), (1, 2, 3, 4, 5))
    assert both.prompts == cat.prompts + dog.prompts
    assert both.nbytes == cat.nbytes + dog.nbytes
    assert torch.equal(both.masks()["fine"], torch.cat([cat.masks()["fine"], dog.masks()["fine"]]))
    tokens = both.masks()["fine"][0].numel()
    of_cat = both.injected_positions < 2 * tokens
    assert torch.equal(both.features[of_cat], cat.features)
    assert torch.equal(both.features[~of_cat], dog.features)
    assert torch.equal(both.injected(2)[:, ~of_cat], dog.injected(2))
    for number, step, level in itertools.product((1, 2), (1, 5), ("coarse", "fine")):
        at, flat = Pass(number, step), both.masks()[level].flatten()
        positions, shared = both.positions(at), both.shared(at)[level]
        assert positions is not None and len(positions[level]) == shared.shape[2]
        assert positions[level].dtype == torch.int32 and positions[level].unique().numel() == shared.shape[2]
        later = positions[level] >= 2 * flat.numel() // 5
        assert torch.equal(shared[:, :, later], dog.shared(at)[level])
        assert torch.equal(shared[:, :, ~later], cat.shared(at)[level])


def test_scenes_of_both_find_their_sources_in_either(
    pipe: ConsiStoryPipeline, cat: AnchorCache, dog: AnchorCache
) -> None:
    """The order of the subjects changes the order of sums and nothing else; a file of both is the same cache."""
    prompts, seeds = ["a photo of a cat and a dog at night", "a photo of a dog in the snow"], [8, 9]
    there, back = Trace(all_masks=False), Trace(all_masks=False)
    first = pipe.render(prompts, joined([cat, dog]), seeds, output_type="latent", trace=there)
    other = pipe.render(prompts, joined([dog, cat]), seeds, output_type="latent", trace=back)
    torch.testing.assert_close(first.images, other.images, atol=1e-3, rtol=1e-3)
    assert there.source_anchor is not None and back.source_anchor is not None
    assert set(there.source_anchor.unique().tolist()) > {2}, "both subjects are sources"
    assert torch.equal((there.source_anchor + 3) % 5, back.source_anchor)
    alone = pipe.render(prompts[:1], cat, seeds[:1], output_type="latent")
    assert (alone.images - first.images[:1]).abs().max() > 1e-2
    stored = AnchorCache.from_buffer(joined([cat, dog]).to_buffer())
    again = pipe.render(prompts, stored, seeds, output_type="latent")
    assert torch.equal(again.images, first.images)
    assert joined([cat, dog]).into_buffer()[1] == joined([cat, dog]).into_buffer()[1]


def test_one_alone_is_itself(cat: AnchorCache) -> None:
    assert joined([cat]) is cat


def refused(*caches: AnchorCache) -> list[str]:
    with pytest.raises(CacheMismatchError) as caught:
        joined(caches)
    return [problem.path for problem in caught.value.problems]


def test_what_differs_is_named(pipe: ConsiStoryPipeline, cat: AnchorCache, dog: AnchorCache) -> None:
    assert refused(cat, made(pipe, "dog", [3, 4], num_inference_steps=STEPS + 2)) == [
        "caches[1].settings.num_inference_steps"
    ]
    other = dataclasses.replace(dog, fingerprint="0" * 64, concepts=("hat",))
    assert refused(cat, dog, other) == [
        "caches[2].model",
    ]
    half = {name: part.half() if part.is_floating_point() else part for name, part in dog.tensors.items()}
    assert refused(cat, dataclasses.replace(dog, tensors=half)) == ["caches[1].dtype"]
    assert refused(cat, made(pipe, "cat", [3, 4])) == ["caches[1].concepts"]
