"""A cache as other scenes read it: what it holds, that pictures are the same, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline
from consistory_ray.consistory.cache.contents import check_cache, packed_for
from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.errors import CacheMismatchError
from consistory_ray.settings import PROFILES, MethodSettings

PROMPTS, SCENES = ["a photo of a cat in the garden", "a cat on the beach"], ["a cat in the snow"]
STEPS = 20
LIVE: dict[str, Any] = {"first_pass": "live", "reuse_deep": (0.35, 3), "scene_blending": False}


def made(pipe: ConsiStoryPipeline, **changes: Any) -> AnchorCache:
    settings = pipe.default_settings.replace(num_inference_steps=STEPS)
    if profile := changes.pop("profile", None):
        settings = settings.with_profile(profile)
    settings = settings.replace(**changes)
    return pipe.create_subject(PROMPTS, "cat", [1, 2], settings=settings, output_type="latent").cache


@pytest.fixture(scope="module")
def exact(pipe: ConsiStoryPipeline) -> AnchorCache:
    return made(pipe)


def same(one: AnchorCache, other: AnchorCache) -> bool:
    tensors = zip(one.tensors.items(), other.tensors.items(), strict=True)
    alike = all(name == other and torch.equal(tensor, theirs) for (name, tensor), (other, theirs) in tensors)
    return alike and (one.settings, one.codec) == (other.settings, other.codec)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_left_is_what_that_profile_records(pipe: ConsiStoryPipeline, exact: AnchorCache, profile: str) -> None:
    packed = packed_for(exact, exact.settings.with_profile(profile))
    assert same(packed, made(pipe, profile=profile))
    assert same(AnchorCache.from_buffer(packed.to_buffer()), packed)
    assert packed.settings.profile == profile and exact.codec == "none"


def test_pictures_of_a_packed_cache_are_those_of_its_profile(pipe: ConsiStoryPipeline, exact: AnchorCache) -> None:
    settings = exact.settings.with_profile("fast").replace(cache_codec="none")
    packed = packed_for(exact, settings)
    assert packed.nbytes < 0.6 * exact.nbytes
    expected = pipe.render(SCENES, exact, [3], output_type="latent", profile="fast").images
    assert torch.equal(pipe.render(SCENES, packed, [3], output_type="latent").images, expected)


def test_tensors_that_need_no_packing_are_the_same_ones(exact: AnchorCache) -> None:
    packed = packed_for(exact, exact.settings.with_profile("fast").replace(cache_codec="none"))
    assert all(tensor is exact.tensors[name] for name, tensor in packed.tensors.items())
    fast = packed_for(exact, exact.settings.with_profile("fast"))
    again = packed_for(fast, fast.settings)
    assert all(tensor is fast.tensors[name] for name, tensor in again.tensors.items())


def test_from_one_codec_to_another_and_back(exact: AnchorCache) -> None:
    """What int8 has lost stays lost, and what it has kept survives being written in full."""
    int8 = packed_for(exact, exact.settings.replace(cache_codec="int8"))
    plain = packed_for(int8, int8.settings.replace(cache_codec="none"))
    assert list(plain.tensors) == list(exact.tensors) and plain.nbytes == exact.nbytes
    assert not torch.equal(plain.injected(2), exact.injected(2)) and torch.equal(plain.injected(2), int8.injected(2))
    fp8 = packed_for(int8, int8.settings.replace(cache_codec="fp8"))
    straight = packed_for(exact, exact.settings.replace(cache_codec="fp8"))
    errors = [(cache.injected(2) - exact.injected(2)).square().sum() for cache in (int8, straight, fp8)]
    assert errors[0] < errors[1] and not torch.equal(fp8.injected(2), straight.injected(2))


def test_given_pictures_have_one_pass(pipe: ConsiStoryPipeline) -> None:
    pictures = [torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(seed)).numpy() for seed in (1, 2)]
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:24, 8:24] = True
    settings = pipe.default_settings.replace(num_inference_steps=STEPS, height=32, width=32)
    given, fast = (
        pipe.create_subject(
            PROMPTS, "cat", images=pictures, masks=[mask.numpy()] * 2, settings=one, output_type="latent"
        ).cache
        for one in (settings, settings.with_profile("fast"))
    )
    packed = packed_for(given, fast.settings)
    assert packed.tensors.keys() == fast.tensors.keys() and packed.pictures == given.pictures


@pytest.mark.parametrize(
    ("held", "asked", "told"),
    [
        ({"profile": "fast"}, {"profile": "exact"}, ["made for fast", "the anchors' tokens of", "profile: exact"]),
        ({}, LIVE, ["made for exact", "features for live correspondences of", "these settings"]),
        ({"injection": False}, {"injection": True}, ["settings.injection"]),
        (LIVE, {"profile": "fast"}, ["settings of its own", "render with those", "profile: fast"]),
    ],
)
def test_what_a_cache_lacks_is_told_with_the_fix(
    pipe: ConsiStoryPipeline, exact: AnchorCache, held: dict[str, Any], asked: dict[str, Any], told: list[str]
) -> None:
    cache, asked = made(pipe, **held) if held else exact, dict(asked)
    settings = exact.settings.with_profile(asked.pop("profile", "exact")).replace(**asked)
    for refuse in (lambda: check_cache(cache, cache.fingerprint, settings), lambda: packed_for(cache, settings)):
        with pytest.raises(CacheMismatchError) as caught:
            refuse()
        assert all(words in str(caught.value) for words in told), str(caught.value)


def test_a_step_that_is_gone_is_named(exact: AnchorCache) -> None:
    plan = StepPlan.from_settings(exact.settings)
    gone = f"pass2.step{plan.injected[1]:03d}.injected.fine"
    tensors = {name: tensor for name, tensor in exact.tensors.items() if name not in (gone, "features.fine")}
    with pytest.raises(
        CacheMismatchError, match=rf"injected outputs of step {plan.injected[1]} of pass 2 and the feat"
    ):
        check_cache(dataclasses.replace(exact, tensors=tensors), exact.fingerprint, exact.settings)


def test_files_of_version_1_are_not_packed(exact: AnchorCache) -> None:
    tensors = {name: tensor for name, tensor in exact.tensors.items() if ".positions." not in name}
    old = dataclasses.replace(exact, tensors=tensors, version=1)
    check_cache(old, old.fingerprint, old.settings)
    with pytest.raises(CacheMismatchError, match="format_version: make the subject again"):
        packed_for(old, old.settings.with_profile("fast"))


def test_many_steps_are_looked_at_once(exact: AnchorCache) -> None:
    """A thousand steps are no more work than a thousand look-ups."""

    class Counting(dict[str, torch.Tensor]):
        walks = 0

        def __iter__(self) -> Any:
            Counting.walks += 1
            return super().__iter__()

    counted = dataclasses.replace(exact, tensors=Counting(exact.tensors))
    check_cache(counted, exact.fingerprint, MethodSettings(num_inference_steps=STEPS))
    assert Counting.walks <= 2
