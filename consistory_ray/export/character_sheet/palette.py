"""The main colours of a subject: those of its pixels, in all of its pictures, that are told apart by eye."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from consistory_ray.export.character_sheet.content import Swatch

MOST_COLOURS = 8
_PIXELS_EACH = 4096
"""Pixels of each picture that are counted: a small one says no less than a large one."""
_FINE = 32
_APART = 14.0
"""CIELAB distance below which two colours are one swatch; a just noticeable difference is about 2.3."""
_LEAST = 0.015
_OPAQUE = 250


def palette(images: Iterable[Image.Image], most: int = MOST_COLOURS) -> tuple[Swatch, ...]:
    """Main colours of what is opaque in pictures (RGBA), the most frequent first; none where nothing is."""
    pixels = [_opaque(image) for image in images]
    found = np.concatenate(pixels) if pixels else np.zeros((0, 3), np.uint8)
    if not len(found):
        return ()
    line = Image.fromarray(found[None])
    indexed = line.quantize(_FINE, Image.Quantize.MEDIANCUT, kmeans=4)
    colours = np.asarray(indexed.getpalette(), np.float64).reshape(-1, 3)
    counts = np.bincount(np.asarray(indexed).ravel(), minlength=len(colours)).astype(np.float64)[: len(colours)]
    swatches = [
        Swatch((int(red), int(green), int(blue)), float(share))
        for (red, green, blue), share in _merged(colours, counts / counts.sum())
    ]
    return tuple(one for one in swatches if one.share >= _LEAST)[:most]


def _opaque(image: Image.Image) -> NDArray[np.uint8]:
    """Opaque pixels of a picture, evenly chosen, ``[n, 3]``; their number does not depend on its size."""
    pixels = np.asarray(image.convert("RGBA"), np.uint8).reshape(-1, 4)
    opaque: NDArray[np.uint8] = pixels[pixels[:, 3] >= _OPAQUE, :3]
    if not len(opaque):
        return opaque
    chosen: NDArray[np.uint8] = opaque[np.linspace(0, len(opaque) - 1, _PIXELS_EACH).round().astype(int)]
    return chosen


def _merged(colours: NDArray[np.float64], shares: NDArray[np.float64]) -> list[tuple[NDArray[np.float64], float]]:
    """Colours that are alike made one, the nearest two first, each as much as it is there."""
    kept = [(colour, float(share)) for colour, share in zip(colours, shares, strict=True) if share > 0]
    while len(kept) > 1:
        lab = _lab(np.array([colour for colour, _ in kept]))
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(len(kept)) * 1e6
        first, second = np.unravel_index(int(distance.argmin()), distance.shape)
        if distance[first, second] >= _APART:
            break
        (a, b), (share, other) = (kept[first][0], kept[second][0]), (kept[first][1], kept[second][1])
        mixed = ((a * share + b * other) / (share + other), share + other)
        kept = [one for n, one in enumerate(kept) if n not in (first, second)] + [mixed]
    return sorted(((colour.round(), share) for colour, share in kept), key=lambda one: (-one[1], tuple(one[0])))


def _lab(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB of sRGB colours ``[n, 3]`` of 0 to 255."""
    line = Image.fromarray(colours.round().astype(np.uint8)[None])
    converted = ImageCms.applyTransform(line, _to_lab())
    if converted is None:
        raise RuntimeError("Pillow converted in place, which it was not asked for")
    values = np.asarray(converted)[0].astype(np.float64)
    signed = np.where(values[:, 1:] > 127, values[:, 1:] - 256, values[:, 1:])  # Pillow keeps a and b as signed bytes
    return np.column_stack([values[:, 0] / 2.55, signed])


@cache
def _to_lab() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
