"""How large an anchor cache gets, known before anything is loaded. Pure: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
_HEADER_BYTES_PER_TENSOR = 110
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
        settings: the method's settings; height and width are taken from them where not given.
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
    item = _ITEM_BYTES[dtype]
    subject = {level: anchors * mask_fraction * grids[level].tokens for level in LEVELS.names}

    halves = 2 if settings.guidance_scale > 1 else 1
    kept = 1 - settings.mask_dropout
    per_step = sum(
        (halves * _shared_layers(layers, level) * level_channels(unet_config, level) * item + _POSITION_BYTES)
        * subject[level]
        * kept
        for level in LEVELS.names
    )
    shared_steps = len(plan.shared_in(1)) + (0 if given else len(plan.shared_in(2)))
    injected_layers = sum(layer.injected_slot is not None for layer in layers)
    injected = len(plan.injected) * injected_layers * level_channels(unet_config, FINE) * subject[FINE] * item
    features = subject[FINE] * int(unet_config["block_out_channels"][-1]) * item if plan.injected else 0
    masks = anchors * sum(grids[level].tokens for level in LEVELS.names)
    header = _HEADER_BYTES_PER_TENSOR * (2 * len(LEVELS.names) * shared_steps + len(plan.injected)) + 2048
    return round(shared_steps * per_step + injected + features + masks + header)


def _shared_layers(layers: tuple[Layer, ...], level: Level) -> int:
    return sum(layer.shared_slot is not None and layer.level == level for layer in layers)
