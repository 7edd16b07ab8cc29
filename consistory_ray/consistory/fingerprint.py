"""A model's fingerprint: the same for the same weights in any dtype, another for other weights or configurations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_SAMPLES = 256  # per weight tensor


def model_fingerprint(pipe: Any) -> str:
    """SHA-256 over configurations and every weight's name, shape and the signs of evenly spaced entries.

    Rounding to another dtype changes values but no sign, so that float16 and float32 workers agree; a fine-tuned model
    flips many signs among the hundreds of thousands that are looked at. Reads about 1 MB of a full-size model.
    """
    digest = hashlib.sha256()
    for name in ("unet", "vae", "scheduler"):
        digest.update(json.dumps(_public(getattr(pipe, name).config), sort_keys=True, default=str).encode())
    signs: list[Tensor] = []
    for name in ("unet", "text_encoder", "text_encoder_2", "vae"):
        module = getattr(pipe, name)
        for key, tensor in (module.state_dict() if module is not None else {}).items():
            if not tensor.is_floating_point():
                continue
            key = key.removeprefix("text_model.")  # there or not, depending on the version of transformers
            digest.update(f"{name}.{key}:{tuple(tensor.shape)};".encode())
            flat = tensor.detach().flatten()
            signs.append(torch.signbit(flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]))
    if signs:
        digest.update(torch.cat([sign.to(signs[0].device) for sign in signs]).cpu().numpy().tobytes())
    return digest.hexdigest()


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}
