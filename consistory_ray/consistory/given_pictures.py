"""The pictures that a caller gives as anchors, checked: pixels, masks and digests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from consistory_ray.errors import InputError, Problem

MOST = 8
"""How many pictures a subject may have."""


@dataclass(frozen=True)
class GivenPictures:
    """Pictures of one size.

    Attributes:
        images: RGB.
        masks: one per picture, bool [height, width] or None where the subject has to be found.
    """

    images: tuple[Image.Image, ...]
    masks: tuple[Tensor | None, ...]

    @property
    def pixels(self) -> Tensor:
        """[images, 3, height, width] float32 in 0..1."""
        return torch.from_numpy(np.stack([np.asarray(image) for image in self.images])).permute(0, 3, 1, 2) / 255

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each picture's pixels, row by row, three bytes each: 64 hexadecimal digits."""
        return tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in self.images)


def given_pictures(images: Any, masks: Any, count: int, size: tuple[int, int]) -> GivenPictures:
    """Check a caller's pictures and masks.

    Args:
        images: PIL pictures or arrays, upright RGB.
        masks: None, or per picture a bool array or PIL picture of its size, or None.
        count: how many there must be.
        size: height and width in pixels that they must have.

    Raises:
        InputError: naming every picture and mask that cannot be used.
    """
    problems = []
    if not 1 <= len(images) <= MOST:
        problems.append(Problem("images", str(len(images)), f"give 1 to {MOST} pictures"))
    if len(images) != count:
        problems.append(Problem("images", str(len(images)), f"give one per prompt: {count}"))
    if masks is not None and len(masks) != len(images):
        problems.append(Problem("masks", str(len(masks)), f"give one per picture, or None for some: {len(images)}"))
    if problems:
        raise InputError("the pictures cannot be used", problems)
    given: Sequence[Any] = [None] * len(images) if masks is None else masks
    found, cuts = [], []
    for index, (image, mask) in enumerate(zip(images, given, strict=True)):
        picture = (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")
        if (picture.height, picture.width) != size:
            shown = f"{picture.width} x {picture.height}"
            problems.append(Problem(f"images[{index}]", shown, f"must be {size[1]} x {size[0]} pixels"))
        found.append(picture)
        cut = None if mask is None else torch.from_numpy(np.asarray(mask) > 0)
        if cut is not None and tuple(cut.shape) != size:
            problems.append(Problem(f"masks[{index}]", str(tuple(cut.shape)), f"must have the shape {size}"))
        elif cut is not None and not bool(cut.any()):
            problems.append(Problem(f"masks[{index}]", "empty", "mark the subject, or leave the mask out"))
        cuts.append(cut)
    if problems:
        raise InputError("the pictures cannot be used", problems)
    return GivenPictures(tuple(found), tuple(cuts))
