"""What a model's own files say about it, without loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from consistory_ray.settings import BUNDLED_MODEL

_SDXL_PIXELS = 1024
_MAX_BYTES = 1 << 20


def native_size(model: str) -> tuple[int, int]:
    """Height and width of the pictures that a model was made for: its own where it lies here, else SDXL's."""
    try:
        sample: Any = (model_config(model, "unet") or {})["sample_size"]
        scale = pixels_per_latent(model)
        height, width = (sample, sample) if isinstance(sample, int) else sample
        size = int(height) * scale, int(width) * scale
    except (KeyError, TypeError, ValueError):
        return _SDXL_PIXELS, _SDXL_PIXELS
    return size if min(size) > 0 else (_SDXL_PIXELS, _SDXL_PIXELS)


def pixels_per_latent(model: str) -> int:
    """How many pixels a latent stands for in each direction: the model's own number where it lies here, else SDXL's."""
    vae = model_config(model, "vae")
    return 2 ** (len(vae["block_out_channels"]) - 1) if vae else 8


def model_config(model: str, part: str) -> Mapping[str, Any] | None:
    """The configuration of a part of a model that lies on this machine; None where there is none to be read."""
    folder: Any = Path(model)
    if model == BUNDLED_MODEL:
        folder = resources.files("consistory_ray.miniature").joinpath("weights")
    try:
        path = folder.joinpath(part, "config.json")
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            values = json.loads(stream.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):  # a model that is broken here is reported by whoever loads it
        return None
    return values if isinstance(values, dict) else None
