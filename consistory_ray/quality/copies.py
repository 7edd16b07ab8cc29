"""Copied scenes: a picture whose background is that of an anchor or of another scene, told by a perceptual hash.

The hash is ``imagehash``'s ``phash`` (64 bits of the low frequencies of the grey picture) of the picture with the mean
colour of its background in place of its subject. Package ``imagehash``, extra ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from consistory_ray.errors import InputError, Problem
from consistory_ray.evaluation.measures import enlarged

if TYPE_CHECKING:
    from consistory_ray.quality.identity import Mask

BACKGROUND = "background_distance"
COPIED = 4
"""Backgrounds that differ in so many of 64 bits at most are taken for copies."""
LEAST_BACKGROUND = 0.1
"""Share of the picture below which there is too little background to be told."""


class Shown(Protocol):
    """What of a picture matters here."""

    @property
    def asset_id(self) -> str:
        """Of the picture."""

    @property
    def prompt(self) -> str:
        """What it was asked to show."""


class CopyFinder:
    """Hashes backgrounds, and finds the nearest one of another picture.

    Raises:
        InputError: the package ``imagehash`` is not installed.
    """

    def __init__(self) -> None:
        try:
            import imagehash
        except ImportError as error:
            fix = 'pip install "consistory-ray[evaluate]"'
            raise InputError("copied scenes cannot be found", [Problem("imagehash", "not installed", fix)]) from error
        self._imagehash: Any = imagehash
        self.version = f"1-imagehash-{imagehash.__version__}"

    def mark(self, image: Image.Image, mask: Mask | None) -> np.ndarray | None:
        """64 bits of a picture's background; None where there is (almost) none, or only one colour."""
        pixels = np.asarray(image.convert("RGB"), np.float32)
        inside = np.zeros(pixels.shape[:2], bool) if mask is None else enlarged(mask, *pixels.shape[:2])
        outside = pixels[~inside]
        if len(outside) < LEAST_BACKGROUND * inside.size or np.ptp(outside, axis=0).max() == 0:
            return None
        filled = np.where(inside[..., None], outside.mean(0), pixels).round().astype(np.uint8)
        return np.asarray(self._imagehash.phash(Image.fromarray(filled)).hash, bool).ravel()

    def nearest(
        self, pictures: Sequence[Shown], marks: Sequence[np.ndarray | None]
    ) -> list[tuple[float | None, str | None]]:
        """Of each picture the smallest number of bits in which another one's background differs, and that one's id.

        Pictures with the same prompt are asked to look alike, so they are not compared. None where none is left.
        """
        told = {place: mark for place, mark in enumerate(marks) if mark is not None}
        known = list(told)
        found: list[tuple[float | None, str | None]] = [(None, None)] * len(pictures)
        if len(known) < 2:
            return found
        signs = np.stack([np.where(mark, 1, -1) for mark in told.values()]).astype(np.int16)
        prompts = np.unique([pictures[place].prompt for place in known], return_inverse=True)[1]
        for number, place in enumerate(known):
            distances = (64 - signs @ signs[number]) // 2
            distances[prompts == prompts[number]] = 65
            best = int(distances.argmin())
            if distances[best] <= 64:
                found[place] = (float(distances[best]), pictures[known[best]].asset_id)
        return found
