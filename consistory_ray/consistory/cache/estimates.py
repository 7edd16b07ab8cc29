"""How large an anchor cache gets, known before anything is loaded. Pure: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consistory_ray.consistory.cache.codec_sizes import packed_bytes
from consistory_ray.consistory.method.layout import Layer, Level
from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.consistory.models.sdxl_layout import (
    FINE,
    LEVELS,
    expected_layer_names,
    level_channels,
    level_grids,
    read_layers,
)
from consistory_ray.settings import MethodSettings

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_HEADER_BYTES_PER_TENSOR = 100
_HEADER_BYTES = 1600
_POSITION_BYTES = 4


def estimate_cache_bytes(
    unet_config: Mapping[str, Any],
    settings: MethodSettings,
    anchors: int = 2,
    mask_fraction: float = 0.25,
    height: int | None = None,
    width: int | None = None,
    dtype: str = "float16",
    vae_scale_factor: int = 8,
    given: bool = False,
) -> int:
    """Bytes of a subject's anchor cache (sections 3.2 and 3.4: shared hidden states with positions, injected outputs).

    Args:
        unet_config: the UNet's configuration, e.g. ``SDXL_UNET_CONFIG`` or a parsed ``unet/config.json``.
        settings: the method's settings, and those of the scenes that the cache is for, which say what of it is read and
            how it is packed; height and width are taken from them where not given.
        anchors: number of anchors.
        mask_fraction: share of an anchor's tokens that its subject mask covers.
        height, width: picture size in pixels; the model's own where neither this nor the settings give one.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        vae_scale_factor: pixels per latent.
        given: whether the anchors are given pictures, which go through one pass only.

    Returns:
        The expected size in bytes, file header included.
    """
    native = int(unet_config["sample_size"]) * vae_scale_factor
    rows = (height or settings.height or native) // vae_scale_factor
    columns = (width or settings.width or native) // vae_scale_factor
    grids = level_grids(rows, columns)
    layers = read_layers(expected_layer_names(unet_config), len(unet_config["down_block_types"]))
    plan = StepPlan.from_settings(settings)
    item, codec = _ITEM_BYTES[dtype], settings.cache_codec
    subject = {level: anchors * mask_fraction * grids[level].tokens for level in LEVELS.names}

    def token(level: Level) -> int:
        return packed_bytes(codec, level_channels(unet_config, level), item)

    halves = 2 if settings.guidance_scale > 1 else 1
    kept = 1 - settings.mask_dropout
    per_step = sum(
        (halves * _shared_layers(layers, level) * token(level) + _POSITION_BYTES) * subject[level] * kept
        for level in LEVELS.names
    )
    shared_steps = len({at.step for at in plan.reads} if given else plan.reads)
    injected_layers = sum(layer.injected_slot is not None for layer in layers)
    injected = len(plan.injected) * injected_layers * token(FINE) * subject[FINE]
    features = (1 if plan.injected else 0) + len(plan.live_features)  # of the DIFT step, and of others; not packed
    feature_bytes = features * subject[FINE] * int(unet_config["block_out_channels"][-1]) * item
    masks = anchors * sum(grids[level].tokens for level in LEVELS.names)
    return round(shared_steps * per_step + injected + feature_bytes + masks) + _header_bytes(
        shared_steps, len(plan.injected), features, packed=codec != "none"
    )


def _header_bytes(shared_steps: int, injected_steps: int, features: int, *, packed: bool) -> int:
    """Of the file: what it says of itself, and of each tensor, of which there are two where one is packed."""
    levels, parts = len(LEVELS.names), 2 if packed else 1
    tensors = shared_steps * levels * (parts + 1) + injected_steps * parts + features + levels
    return _HEADER_BYTES_PER_TENSOR * tensors + _HEADER_BYTES


def _shared_layers(layers: tuple[Layer, ...], level: Level) -> int:
    return sum(layer.shared_slot is not None and layer.level == level for layer in layers)
