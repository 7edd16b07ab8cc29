"""A picture of any shape at the size that is rendered: cut to it, or whole with a margin."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consistory_ray.pictures.opening import Picture

Fit = Literal["crop", "letterbox"]
FITS: tuple[Fit, ...] = get_args(Fit)

_CUT = 0.1
_ENLARGED = 1.5


def fit(picture: Picture, width: int, height: int, how: Fit = "crop") -> Picture:
    """A picture at another size.

    ``crop`` keeps the largest part that has the new shape: the middle, or as much of the subject as there is room for
    where it is known. ``letterbox`` keeps all of it, and fills the rest with the mean colour of the picture's edge.

    Args:
        picture: what to fit; its transparency, or mask, goes with it, and there is no subject in a margin.
        width, height: in pixels.
        how: ``crop`` or ``letterbox``.
    """
    image, mask = picture.image, picture.alpha
    if how == "crop":
        scale = max(width / image.width, height / image.height)
        box = _box(image, mask, width / scale, height / scale)
        fitted = image.resize((width, height), Image.Resampling.LANCZOS, box)
        where = None if mask is None else _resized(mask, (width, height), box)
    else:
        scale = min(width / image.width, height / image.height)
        inner = (min(width, max(1, round(image.width * scale))), min(height, max(1, round(image.height * scale))))
        at = ((width - inner[0]) // 2, (height - inner[1]) // 2)
        fitted = Image.new("RGB", (width, height), _edge_colour(image))
        fitted.paste(image.resize(inner, Image.Resampling.LANCZOS), at)
        where = None if mask is None else np.zeros((height, width), bool)
        if where is not None and mask is not None:
            where[at[1] : at[1] + inner[1], at[0] : at[0] + inner[0]] = _resized(mask, inner)
    notices = list(picture.notices)
    if scale * image.width / picture.size[0] > _ENLARGED:
        notices.append(f"it has {picture.size[0]}x{picture.size[1]} pixels and was enlarged to {width}x{height}")
    if mask is not None and how == "crop":
        left, upper, right, lower = (round(edge) for edge in box)
        lost = 1 - mask[upper:lower, left:right].sum() / max(1, mask.sum())
        if lost > _CUT:
            notices.append(f"cropping cuts off {lost:.0%} of the subject: fit: letterbox keeps all of it")
    return dataclasses.replace(picture, image=fitted, alpha=where, notices=tuple(notices))


def _box(
    image: Image.Image, mask: NDArray[np.bool_] | None, width: float, height: float
) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge of a part of this size: around the subject's middle, or the picture's."""
    middle = [image.width / 2, image.height / 2]
    if mask is not None:
        for axis in (0, 1):
            there = np.flatnonzero(mask.any(axis=axis))
            middle[axis] = (there[0] + there[-1] + 1) / 2 if len(there) else middle[axis]
    left = min(max(middle[0] - width / 2, 0.0), image.width - width)
    upper = min(max(middle[1] - height / 2, 0.0), image.height - height)
    return max(left, 0.0), max(upper, 0.0), min(left + width, image.width), min(upper + height, image.height)


def _resized(
    mask: NDArray[np.bool_], size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> NDArray[np.bool_]:
    shares = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX, box)
    return np.asarray(shares) >= 128


def _edge_colour(image: Image.Image) -> tuple[int, int, int]:
    pixels = np.asarray(image)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = edge.mean(axis=0).round().astype(int).tolist()
    return red, green, blue
