"""Text to conditioning, with the user's own text encoders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from consistory_ray.consistory.method.conditioning import Conditioning, Rows
from consistory_ray.consistory.models.hooks import evaluating
from consistory_ray.consistory.models.prompts import bounded_tokenizers
from consistory_ray.consistory.models.weighted import Weights
from consistory_ray.errors import InputError, Problem
from consistory_ray.settings import MethodSettings

Embeddings = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
"""Texts [images, tokens, channels], the unconditional half's, and of both the pooled ones [images, channels]."""


def encode_prompts(
    pipe: Any,
    prompts: Sequence[str],
    prompts_2: Sequence[str],
    negatives: Sequence[str | None],
    settings: MethodSettings,
    device: torch.device,
) -> Conditioning:
    """What the UNet is conditioned on.

    Args:
        pipe: the user's pipeline.
        prompts: of the batch.
        prompts_2: what the second encoder reads of each; empty for the prompts.
        negatives: of each image's unconditional half, None for SDXL's zero embedding; empty for the settings' one.
        settings: complete ones. Of a negative prompt no layers are skipped, as in diffusers; where the second encoder
            alone is given one, the first reads the empty text.
        device: of the UNet.

    Raises:
        InputError: ``clip_skip`` skips all layers of a text encoder.
    """
    _check_clip_skip(pipe, settings.clip_skip)
    guided = settings.guidance_scale > 1
    against = list(negatives) or [settings.negative_prompt] * len(prompts)
    embed = _plain if settings.prompt_syntax == "plain" else _weighted
    with evaluating(pipe.text_encoder, pipe.text_encoder_2), bounded_tokenizers(pipe):
        text, negative_text, pooled, negative_pooled = embed(pipe, prompts, prompts_2, against, settings, device)
    if negative_text is not None and negative_pooled is not None:
        text, pooled = torch.cat([negative_text, text]), torch.cat([negative_pooled, pooled])
    dtype = pipe.unet.dtype
    rows = Rows(2 if guided else 1, len(prompts))
    time_ids = torch.tensor([size_conditioning(settings)], dtype=dtype, device=device).expand(text.shape[0], -1)
    return Conditioning(rows, text.to(device, dtype), pooled.to(device, dtype), {"time_ids": time_ids})


GUIDANCE = "guidance"
"""What is told a network that takes the guidance as an input, in what else it is told: [rows, channels]."""


def told_guidance(conditioning: Conditioning, guidance_scale: float, width: int) -> Conditioning:
    """For networks that were distilled to take the guidance as an input (arXiv 2310.04378): one half does for them.

    The embedding is that of diffusers: sines and cosines of a thousand times the guidance above 1.

    Args:
        conditioning: of the conditional half alone.
        guidance_scale: the guidance.
        width: of the embedding, ``time_cond_proj_dim`` of the UNet.
    """
    text, half = conditioning.text, width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = (guidance_scale - 1) * 1000.0 * rates
    embedding = F.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))
    rows = embedding.to(text.device, text.dtype).expand(text.shape[0], -1)
    return replace(conditioning, extra={**conditioning.extra, GUIDANCE: rows})


def size_conditioning(settings: MethodSettings) -> list[int]:
    """What SDXL is told of a picture: original height and width, top and left of the crop, target height and width."""
    size = settings.height or 0, settings.width or 0
    told = settings.original_size or size, settings.crops_coords_top_left, settings.target_size or size
    return [number for pair in told for number in pair]


def _plain(
    pipe: Any,
    prompts: Sequence[str],
    prompts_2: Sequence[str],
    against: list[str | None],
    settings: MethodSettings,
    device: torch.device,
) -> Embeddings:
    """As diffusers encodes texts: the first tokens of each, every character as it stands."""
    guided, second = settings.guidance_scale > 1, settings.negative_prompt_2
    negative: Any = None
    if second is not None or any(text is not None for text in against):
        negative = [text or "" for text in against]
    text, negative_text, pooled, negative_pooled = pipe.encode_prompt(
        list(prompts),
        prompt_2=list(prompts_2) or None,
        device=device,
        do_classifier_free_guidance=guided,
        negative_prompt=negative,
        negative_prompt_2=None if second is None else [second] * len(prompts),
        clip_skip=settings.clip_skip,
    )
    if not guided:
        return text, None, pooled, None
    if zero := zeroed(pipe, against, settings):
        negative_text[zero], negative_pooled[zero] = 0, 0
    return text, negative_text, pooled, negative_pooled


def _weighted(
    pipe: Any,
    prompts: Sequence[str],
    prompts_2: Sequence[str],
    against: list[str | None],
    settings: MethodSettings,
    device: torch.device,
) -> Embeddings:
    """As compel encodes texts: all of each, with weights."""
    zero = zeroed(pipe, against, settings)
    unwanted = _unwanted(against, settings) if settings.guidance_scale > 1 else []
    seconds = list(prompts_2) or list(prompts)
    given = {index: pair for index, pair in enumerate(unwanted) if index not in zero}
    weights = Weights(pipe)
    text, pooled, others = weights.encoded(prompts, seconds, given, settings.clip_skip, device)
    if not unwanted:
        return text, None, pooled, None
    negative_text, negative_pooled = torch.zeros_like(text), torch.zeros_like(pooled)
    for index, (half, pool) in others.items():
        negative_text[index], negative_pooled[index] = half[0], pool[0]
    return text, negative_text, pooled, negative_pooled


def weighted_lengths(
    pipe: Any,
    prompts: Sequence[str],
    prompts_2: Sequence[str],
    negatives: Sequence[str | None],
    settings: MethodSettings,
) -> list[int]:
    """How many tokens each image's texts are with compel, its negative prompt's among them where there is guidance.

    Args:
        pipe, prompts, prompts_2, negatives, settings: as for :func:`encode_prompts`.

    Raises:
        PromptError: naming every text that cannot be read.
    """
    against = list(negatives) or [settings.negative_prompt] * len(prompts)
    unwanted = _unwanted(against, settings) if settings.guidance_scale > 1 else []
    return Weights(pipe).lengths(prompts, list(prompts_2) or list(prompts), unwanted)


def _unwanted(against: Sequence[str | None], settings: MethodSettings) -> list[tuple[str, str]]:
    """What both encoders read of each image's unconditional half."""
    second = settings.negative_prompt_2
    return [(text or "", (text or "") if second is None else second) for text in against]


def zeroed(pipe: Any, against: Sequence[str | None], settings: MethodSettings) -> list[int]:
    """The images whose unconditional half is the zero embedding: those without any negative text, in most models."""
    if settings.negative_prompt_2 is not None or not pipe.config.force_zeros_for_empty_prompt:
        return []
    return [index for index, text in enumerate(against) if text is None]


def _check_clip_skip(pipe: Any, clip_skip: int | None) -> None:
    layers = min(int(encoder.config.num_hidden_layers) for encoder in (pipe.text_encoder, pipe.text_encoder_2))
    if clip_skip is not None and not 0 <= clip_skip < layers:
        fix = f"must be from 1 to {layers - 1}: the model's smaller text encoder has {layers} layers"
        raise InputError("the settings cannot be used with this model", [Problem("clip_skip", str(clip_skip), fix)])
