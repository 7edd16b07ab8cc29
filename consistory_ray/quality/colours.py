"""A metric without a network: are the subject's colours those of its anchors, in the same shares?

Nothing in it was learned, it needs no weights, and it works for every model. It sees what most often goes wrong
(another colour of fur, a hat of another colour) and is blind to shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consistory_ray.errors import InputError, Problem
from consistory_ray.evaluation.measures import srgb_to_lab
from consistory_ray.quality.metrics import Embeddings, MetricOptions

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 128
"""Pictures are looked at in this size."""
CELL = 4
"""Side of the cells that are looked at, in pixels: what varies much inside of one is noise, such as takes the place of
backgrounds, and counts little."""
REACH = 12.0
"""CIELAB distance at which two colours have half-parted: the width of the histogram's bins."""
_LIGHT, _HUE = (15.0, 35.0, 55.0, 75.0, 95.0), tuple(np.linspace(-80.0, 80.0, 9))
_NOISE = 20.0
"""Standard deviation inside a cell, in levels of 0..255, at which it counts half."""


def _centres() -> NDArray[np.float64]:
    return np.array([(light, a, b) for light in _LIGHT for a in _HUE for b in _HUE])


class ColourMetric:
    """Shares of colours: the cosine of two pictures is the Bhattacharyya coefficient of their colour histograms."""

    name = "colours"
    version = "1"
    finds_subject = False

    def __init__(self, options: MetricOptions | None = None) -> None:
        if options is not None and self.name in options.weights:
            fix = "leave it out: nothing in it is learned"
            raise InputError("colours takes no weights", [Problem("weights", options.weights[self.name], fix)])
        self._bins = _centres()

    def embed(self, images: Sequence[Image]) -> Embeddings:
        """Square roots of the shares of 405 colours, ``[N, 405]``."""
        rows = [self._histogram(np.asarray(image.convert("RGB").resize((SIDE, SIDE)), np.float64)) for image in images]
        return np.asarray(np.sqrt(rows), np.float32).reshape(len(rows), len(self._bins))

    def _histogram(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares of colours in ``[SIDE, SIDE, 3]``; they sum to 1."""
        count = SIDE // CELL
        cells = pixels.reshape(count, CELL, count, CELL, 3).swapaxes(1, 2).reshape(count * count, CELL * CELL, 3)
        spread = cells.std(1).max(1)
        weights = 1 / (1 + (spread / _NOISE) ** 4)
        colours = srgb_to_lab(cells.mean(1))
        near = np.exp(-((colours[:, None] - self._bins[None]) ** 2).sum(-1) / (2 * REACH**2))
        near /= near.sum(1, keepdims=True) + 1e-12
        shares: NDArray[np.float64] = (weights[:, None] * near).sum(0)
        return np.asarray(shares / shares.sum())
