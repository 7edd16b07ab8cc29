"""Text to conditioning, with the user's own text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from consistory_ray.consistory.method.conditioning import Conditioning, Rows
from consistory_ray.consistory.models.hooks import evaluating
from consistory_ray.consistory.models.prompts import bounded_tokenizers


def encode_prompts(
    pipe: Any,
    prompts: Sequence[str],
    negative_prompt: str | None,
    size: tuple[int, int],
    guided: bool,
    device: torch.device,
) -> Conditioning:
    """What the UNet is conditioned on.

    Args:
        pipe: the user's pipeline.
        prompts: of the batch.
        negative_prompt: of the unconditional half, None for SDXL's zero embedding.
        size: picture height and width in pixels.
        guided: whether there is an unconditional half.
        device: of the UNet.
    """
    with evaluating(pipe.text_encoder, pipe.text_encoder_2), bounded_tokenizers(pipe):
        text, negative_text, pooled, negative_pooled = pipe.encode_prompt(
            list(prompts), device=device, do_classifier_free_guidance=guided, negative_prompt=negative_prompt
        )
    if guided:
        text, pooled = torch.cat([negative_text, text]), torch.cat([negative_pooled, pooled])
    dtype = pipe.unet.dtype
    rows = Rows(2 if guided else 1, len(prompts))
    time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=dtype, device=device).expand(text.shape[0], -1)
    return Conditioning(rows, text.to(device, dtype), pooled.to(device, dtype), {"time_ids": time_ids})
