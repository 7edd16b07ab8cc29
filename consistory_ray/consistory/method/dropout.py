"""Self-attention dropout (section 3.2 of the paper): which of an anchor's subject tokens are not shared at a step."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from consistory_ray.consistory.method.layout import Level
from consistory_ray.consistory.method.steps import Pass


def undropped(probability: float, tokens: int, seed: int, at: Pass, level: Level) -> Tensor:
    """Which tokens of one anchor may be shared, bool [tokens] on the CPU.

    Drawn from the anchor's seed, the pass, the step and the level alone, never from a draw shaped by a batch.
    """
    digest = hashlib.sha256(f"{seed}/{at.number}/{at.step}/{level}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(tokens, generator=generator) >= probability


def kept_tokens(probability: float, mask: Tensor, seeds: tuple[int, ...], at: Pass, level: Level) -> list[Tensor]:
    """Per anchor the indices of the tokens that it shares, int64 [kept], of masks that are bool [anchors, tokens]."""
    drawn = [undropped(probability, mask.shape[1], seed, at, level) for seed in seeds]
    kept = mask & torch.stack(drawn).to(mask.device)
    return [row.nonzero()[:, 0] for row in kept]
