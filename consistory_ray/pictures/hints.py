"""What users have, made into what ControlNets were trained to see: edges, outlines, silhouettes, white on black."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from consistory_ray.errors import InputError, Problem
from consistory_ray.pictures.memory import picture_of
from consistory_ray.pictures.opening import Picture

LOW, HIGH = 100, 200
"""Canny's thresholds: those that the hints of the public ControlNets for edges were made with."""
OUTLINE = 3 / 128
"""Width of an outline, as a share of the picture's shorter side; it lies inside of the subject."""
_TAN_22 = round((2**0.5 - 1) * (1 << 15))
_BINS = 256


def prepare_hint(picture: Any, name: str) -> Image.Image:
    """A hint made of a picture; of the same size, RGB.

    Args:
        picture: as :func:`~consistory_ray.pictures.memory.picture_of` takes it; where it has transparency, that says
            where the subject is.
        name: one of :data:`PREPROCESSORS`.

    Raises:
        InputError: there is no such preprocessor, or this is no picture.
    """
    if name not in PREPROCESSORS:
        fix = f"must be one of {', '.join(PREPROCESSORS)}"
        raise InputError("this hint cannot be prepared", [Problem("preprocess", repr(name)[:100], fix)])
    return PREPROCESSORS[name](picture_of(picture, "picture"))


def canny(pixels: NDArray[np.uint8], low: int = LOW, high: int = HIGH) -> NDArray[np.bool_]:
    """Canny's edges of [height, width, channels], bool [height, width]: the same ones as OpenCV's ``Canny`` finds.

    Gradients by Sobel's filter in the strongest channel, their size by adding up, without blurring first.
    """
    padded = np.pad(pixels.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:, 2:] - padded[:, :-2]
    down = padded[2:] - padded[:-2]
    x = across[:-2] + 2 * across[1:-1] + across[2:]
    y = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    strongest = (np.abs(x) + np.abs(y)).argmax(axis=2)[..., None]
    x, y = (np.take_along_axis(part, strongest, axis=2)[..., 0] for part in (x, y))
    size = np.abs(x) + np.abs(y)
    around = np.pad(size, 1)

    def beside(row: int, column: int) -> NDArray[np.int32]:
        return around[1 + row : 1 + row + size.shape[0], 1 + column : 1 + column + size.shape[1]]

    flat = np.abs(x).astype(np.int64) * _TAN_22
    steep = np.abs(y).astype(np.int64) << 15
    level, upright = steep < flat, steep > flat + (np.abs(x).astype(np.int64) << 16)
    falling = (x ^ y) < 0
    diagonal = np.where(
        falling, (size > beside(-1, 1)) & (size > beside(1, -1)), (size > beside(-1, -1)) & (size > beside(1, 1))
    )
    upwards = (size > beside(-1, 0)) & (size >= beside(1, 0))
    sideways = (size > beside(0, -1)) & (size >= beside(0, 1))
    ridge = np.where(level, sideways, np.where(upright, upwards, diagonal)) & (size > low)
    return _grown(ridge & (size > high), ridge)


def _grown(seeds: NDArray[np.bool_], within: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All of ``within`` that hangs together with the seeds, corners included."""
    waiting, found = np.pad(within, 1), np.pad(seeds, 1)
    waiting &= ~found
    width = found.shape[1]
    steps = np.array([row * width + column for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column])
    front = np.flatnonzero(found)
    while len(front):
        near = np.unique((front[:, None] + steps).ravel())
        front = near[waiting.ravel()[near]]
        waiting.ravel()[front] = False
        found.ravel()[front] = True
    return found[1:-1, 1:-1]


def subject(picture: Picture) -> NDArray[np.bool_]:
    """Where a picture's subject is, bool [height, width]: what is opaque, or what differs from the picture's edge.

    The difference in colour is cut by Otsu's threshold, so the background has to be plain, as in a sketch on paper.
    """
    if picture.alpha is not None:
        return picture.alpha
    pixels = np.asarray(picture.image, dtype=np.float64)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    difference = np.abs(pixels - np.median(edge, axis=0)).max(axis=2)
    counts, bounds = np.histogram(difference, bins=_BINS)
    centres = (bounds[:-1] + bounds[1:]) / 2
    below, total = counts.cumsum()[:-1], counts.sum()
    sums = (counts * centres).cumsum()
    means = sums[:-1] / np.maximum(below, 1), (sums[-1] - sums[:-1]) / np.maximum(total - below, 1)
    between = below * (total - below) * (means[0] - means[1]) ** 2
    found: NDArray[np.bool_] = difference > bounds[1 + int(between.argmax())]
    return found


def _shown(mask: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")


def _outline(picture: Picture) -> Image.Image:
    filled = _shown(subject(picture)).convert("L")
    width = max(1, round(OUTLINE * min(filled.size)))
    # Beyond the frame there is nothing: a subject that is cut by it has an outline there too.
    framed = Image.new("L", (filled.width + 2 * width, filled.height + 2 * width))
    framed.paste(filled, (width, width))
    inner = framed.filter(ImageFilter.MinFilter(2 * width + 1))
    inner = inner.crop((width, width, width + filled.width, width + filled.height))
    return ImageChops.subtract(filled, inner).convert("RGB")


PREPROCESSORS: Mapping[str, Callable[[Picture], Image.Image]] = {
    "none": lambda picture: picture.image,
    "invert": lambda picture: ImageChops.invert(picture.image),
    "canny": lambda picture: _shown(canny(np.asarray(picture.image))),
    "silhouette": lambda picture: _shown(subject(picture)),
    "outline": _outline,
}
"""By name: as it is; black on white to white on black; edges of a photo; the subject filled in white; its outline."""
