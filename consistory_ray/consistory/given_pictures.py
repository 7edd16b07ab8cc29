"""The pictures that a caller gives as anchors, checked and fitted: pixels, masks and digests."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from consistory_ray.errors import InputError, Problem
from consistory_ray.pictures import Picture, fit, picture_of

MOST = 8
"""How many pictures a subject may have."""


@dataclass(frozen=True)
class GivenPictures:
    """Pictures of one size.

    Attributes:
        images: RGB.
        masks: one per picture, bool [height, width] or None where the subject has to be found.
        notices: for each picture, what somebody should know about it.
    """

    images: tuple[Image.Image, ...]
    masks: tuple[Tensor | None, ...]
    notices: tuple[tuple[str, ...], ...]

    @property
    def pixels(self) -> Tensor:
        """[images, 3, height, width] float32 in 0..1."""
        return torch.from_numpy(np.stack([np.asarray(image) for image in self.images])).permute(0, 3, 1, 2) / 255

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each picture's pixels, row by row, three bytes each: 64 hexadecimal digits."""
        return tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in self.images)


def refuse_both(images: Any, masks: Any, latents: Any, callback: Any = None) -> None:
    """Refuse what has no meaning with given pictures, or without them.

    Raises:
        InputError: naming the argument.
    """
    useless = (
        [("masks", masks, "leave them out, or give the images that they are of")]
        if images is None
        else [
            ("latents", latents, "leave them out: given pictures are noised by their seeds"),
            (
                "callback_on_step_end",
                callback,
                "leave it out: given pictures are not denoised, progress tells of steps",
            ),
        ]
    )
    problems = [Problem(name, "given", fix) for name, value, fix in useless if value is not None]
    if problems:
        raise InputError("the arguments do not fit each other", problems)


def given_pictures(images: Any, masks: Any, count: int, size: tuple[int, int]) -> GivenPictures:
    """Check a caller's pictures and masks, and fit them to the size that is rendered.

    Args:
        images: pictures as :func:`~consistory_ray.pictures.memory.picture_of` takes them.
        masks: None, or per picture None, or a bool array [height, width] or PIL image of its size, white on black; it
            goes before the picture's own transparency.
        count: how many there must be.
        size: height and width in pixels.

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
    found = []
    for index, image in enumerate(() if problems else images):
        try:
            found.append(_fitted(image, masks[index] if masks is not None else None, index, size))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError("the pictures cannot be used", problems)
    cuts = tuple(None if picture.alpha is None else torch.from_numpy(picture.alpha) for picture in found)
    return GivenPictures(tuple(one.image for one in found), cuts, tuple(one.notices for one in found))


def _fitted(image: Any, mask: Any, index: int, size: tuple[int, int]) -> Picture:
    picture = picture_of(image, f"images[{index}]")
    if mask is not None:
        picture = dataclasses.replace(picture, alpha=_mask_of(mask, f"masks[{index}]", picture.image))
    if picture.image.size != size[::-1]:
        picture = fit(picture, size[1], size[0])
    if picture.alpha is not None and not picture.alpha.any():
        fix = "mark the subject where the picture is not cut off, or leave the mask out"
        raise InputError("the pictures cannot be used", [Problem(f"masks[{index}]", "nothing marked", fix)])
    return picture


def _mask_of(given: Any, field: str, image: Image.Image) -> NDArray[np.bool_]:
    if isinstance(given, Image.Image):
        picture = picture_of(given, field)
        mask = np.asarray(picture.image.convert("L")) >= 128 if picture.alpha is None else picture.alpha
    else:
        numbers = np.asarray(given)
        mask = numbers > 0.5 * numbers.max(initial=0)
    if mask.shape != image.size[::-1]:
        fix = f"must have the shape of its picture, {image.size[::-1]}"
        raise InputError("the pictures cannot be used", [Problem(field, str(mask.shape), fix)])
    return mask
