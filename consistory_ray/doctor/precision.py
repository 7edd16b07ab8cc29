"""How far half precision is from float32, in pictures: the same weights, noise and anchors, other arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from consistory_ray.doctor.diagnosis import VANILLA, PrecisionCheck
from consistory_ray.doctor.models import MeasuredModel
from consistory_ray.errors import AssetError

STEPS = 3
"""Enough for a step of each kind: blended, injected, shared."""


@dataclass(frozen=True)
class Difference:
    """How far two renders of the same pictures are apart: latents (over their root mean square), and mask tokens.

    Attributes:
        largest, mean, rms: of the latents' differences.
        flipped: share of mask tokens that differ, of the level where it is largest; 0 where there are no masks.
    """

    largest: float
    mean: float
    rms: float
    flipped: float

    @classmethod
    def between(cls, first: Any, second: Any) -> Difference:
        """Of two results with latents."""
        a, b = (result.images.double().cpu() for result in (first, second))
        delta = (a - b).abs() / b.square().mean().sqrt()
        flipped = [(first.masks[level] != second.masks[level]).float().mean().item() for level in second.masks]
        return cls(
            delta.max().item(), delta.mean().item(), delta.square().mean().sqrt().item(), max(flipped, default=0.0)
        )


def examined_precision(model: MeasuredModel, half: torch.dtype, steps: int = STEPS) -> PrecisionCheck:
    """Render a scene and a vanilla picture in both; the model is left in the dtype it had.

    Its weights are rounded to the half one on the way, which changes nothing in a model of that dtype.
    """
    before = model.pipe.backbone.dtype
    name = str(half).removeprefix("torch.")
    try:
        _move(model, half)
        subject = model.subject(steps, "latent")
        rounded = [model.pictures(way, steps, 1, subject, "latent") for way in ("exact", VANILLA)]
        model.pictures(VANILLA, 1, 1, None, "np")  # decoded, too
        _move(model, torch.float32)
        exact = [model.pictures(way, steps, 1, subject, "latent") for way in ("exact", VANILLA)]
    except AssetError:  # numbers that are not finite
        return PrecisionCheck(name, steps, float("inf"), float("inf"), 1.0, finite=False, vanilla_rms=float("inf"))
    finally:
        _move(model, before)
    scene, vanilla = (Difference.between(*pair) for pair in zip(rounded, exact, strict=True))
    return PrecisionCheck(name, steps, scene.rms, scene.largest, scene.flipped, finite=True, vanilla_rms=vanilla.rms)


def _move(model: MeasuredModel, dtype: torch.dtype) -> None:
    model.pipe.pipe.to(dtype)
