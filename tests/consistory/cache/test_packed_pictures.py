"""Pictures of the bundled model from packed caches, against those from the cache as it is."""

from __future__ import annotations

import numpy as np
import pytest

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline
from consistory_ray.consistory.cache.contents import packed_for
from consistory_ray.guards.choices import CacheCodec

ANCHORS = ["a drawing of a red dragon in a forest", "a drawing of a red dragon on a beach"]
SCENE, SEED, STEPS = ["a drawing of a red dragon at night"], [3], 12


@pytest.fixture(scope="module")
def miniature() -> ConsiStoryPipeline:
    return ConsiStoryPipeline.from_pretrained("miniature", device="cpu")


@pytest.fixture(scope="module")
def cache(miniature: ConsiStoryPipeline) -> AnchorCache:
    return miniature.create_subject(ANCHORS, "dragon", [1, 2], num_inference_steps=STEPS, output_type="latent").cache


@pytest.fixture(scope="module")
def picture(miniature: ConsiStoryPipeline, cache: AnchorCache) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(miniature.render(SCENE, cache, SEED, output_type="np").images)


@pytest.mark.parametrize(("codec", "least"), [("int8", 60), ("fp8", 52), ("int4", 41)])
def test_a_scene_is_so_near_to_that_of_the_cache_as_it_is(
    miniature: ConsiStoryPipeline,
    cache: AnchorCache,
    picture: np.ndarray,  # type: ignore[type-arg]
    codec: CacheCodec,
    least: float,
) -> None:
    """PSNR in dB; fast is measured at 50 steps by benchmarks/fast.py."""
    packed = packed_for(cache, cache.settings.replace(cache_codec=codec))
    found = np.asarray(miniature.render(SCENE, packed, SEED, output_type="np").images)
    psnr = -10 * np.log10(np.square(found - picture).mean())
    assert psnr > least
