"""The size of a cache, known before anything is loaded, is that of a real one: for every profile, codec and kind."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch

from benchmarks.cost import masks_of_a_quarter
from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, estimate_cache_bytes
from consistory_ray.consistory.models.sdxl_layout import SDXL_UNET_CONFIG
from consistory_ray.guards.choices import CacheCodec
from consistory_ray.settings import PROFILES, MethodSettings

PROMPTS = ["a photo of a cat in the garden", "a cat on the beach"]
SETTINGS = MethodSettings(num_inference_steps=12, height=64, width=32, mask_dropout=0.0)
LIVE: dict[str, Any] = {"first_pass": "live", "reuse_deep": (0.35, 3)}
KINDS: list[dict[str, Any]] = [
    *({"profile": profile} for profile in PROFILES),
    *({"cache_codec": codec} for codec in get_args(CacheCodec)),
    {**LIVE, "cache_codec": "int8"},
    {"profile": "fast", "injection": False},
    {"profile": "turbo", "guidance_scale": 1.0},
    {"profile": "fast", "sdsa": False},
]


def asked(profile: str = "exact", **changes: Any) -> MethodSettings:
    return SETTINGS.with_profile(profile).replace(**changes)


def made(pipe: ConsiStoryPipeline, settings: MethodSettings) -> AnchorCache:
    with masks_of_a_quarter():
        return pipe.create_subject(PROMPTS, "cat", [7, 8], settings=settings, output_type="latent").cache


def estimated(pipe: ConsiStoryPipeline, settings: MethodSettings, **more: Any) -> int:
    return estimate_cache_bytes(pipe.pipe.unet.config, settings, 2, dtype="float32", vae_scale_factor=2, **more)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_every_byte_is_foreseen(
    pipe: ConsiStoryPipeline, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where masks are known and nothing is drawn, only the header's length is not known to the byte."""
    cache = made(pipe, asked(**changes))
    size = len(cache.to_buffer())
    assert estimated(pipe, cache.settings) == pytest.approx(size, abs=0.25 * (size - cache.nbytes))
    for name in ("_HEADER_BYTES_PER_TENSOR", "_HEADER_BYTES"):
        monkeypatch.setattr(f"consistory_ray.consistory.cache.estimates.{name}", 0)
    assert estimated(pipe, cache.settings) == cache.nbytes


@pytest.mark.parametrize("profile", PROFILES)
def test_given_pictures_are_foreseen(pipe: ConsiStoryPipeline, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [torch.rand(64, 32, 3, generator=torch.Generator().manual_seed(seed)).numpy() for seed in (1, 2)]
    masks = [np.zeros((64, 32), dtype=bool) for _ in pictures]
    for mask in masks:
        mask[16:48, 8:24] = True
    settings = asked(profile)
    cache = pipe.create_subject(
        PROMPTS, "cat", images=pictures, masks=masks, settings=settings, output_type="latent"
    ).cache
    for name in ("_HEADER_BYTES_PER_TENSOR", "_HEADER_BYTES"):
        monkeypatch.setattr(f"consistory_ray.consistory.cache.estimates.{name}", 0)
    assert estimated(pipe, settings, given=True) == cache.nbytes


def test_full_size_sdxl_fits_its_budget() -> None:
    """Bytes at 1024 px of 50 steps, two anchors, a quarter of which is the subject."""
    gigabytes = {
        profile: estimate_cache_bytes(SDXL_UNET_CONFIG, MethodSettings().with_profile(profile)) / 1e9
        for profile in PROFILES
    }
    assert 5.2 < gigabytes["exact"] <= 5.6 and gigabytes["turbo"] < gigabytes["fast"] <= 1.2
    assert estimate_cache_bytes(SDXL_UNET_CONFIG, MethodSettings(injection=False)) / 1e9 < 0.6 * gigabytes["exact"]
