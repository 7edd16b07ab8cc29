"""How far apart are two colours, two masks, several layouts? Measures of pixels in which nothing is learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def srgb_to_lab(pixels: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of sRGB values in 0..255, ``[..., 3]``; a distance of about 2.3 is just visible."""
    values = np.asarray(pixels, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    scaled = linear @ _TO_XYZ.T / _WHITE
    roots = np.where(scaled > 216 / 24389, np.cbrt(scaled), (24389 / 27 * scaled + 16) / 116)
    return np.stack(
        [116 * roots[..., 1] - 16, 500 * (roots[..., 0] - roots[..., 1]), 200 * (roots[..., 1] - roots[..., 2])],
        axis=-1,
    )


def lab_to_srgb(colours: np.ndarray) -> np.ndarray:
    """The inverse of :func:`srgb_to_lab`; colours that sRGB lacks come out below 0 or above 255."""
    light = (np.asarray(colours, dtype=np.float64)[..., 0] + 16) / 116
    roots = np.stack([light + colours[..., 1] / 500, light, light - colours[..., 2] / 200], axis=-1)
    scaled = np.where(roots > 6 / 29, roots**3, (roots * 116 - 16) * 27 / 24389)
    linear = scaled * _WHITE @ np.linalg.inv(_TO_XYZ).T
    bright = 1.055 * np.clip(linear, 0.0031308, None) ** (1 / 2.4) - 0.055
    return np.asarray(255 * np.where(linear <= 0.0031308, 12.92 * linear, bright))


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bool masks; 1 when both are empty."""
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 1.0


def enlarged(tokens: np.ndarray, height: int, width: int) -> np.ndarray:
    """A token mask ``[rows, columns]`` at the picture's size; every token covers the pixels nearest to it."""
    rows = (np.arange(height) * tokens.shape[0]) // height
    columns = (np.arange(width) * tokens.shape[1]) // width
    return np.asarray(tokens[rows[:, None], columns[None]])


def token_overlap(tokens: np.ndarray, pixels: np.ndarray) -> float:
    """IoU of a token mask with a pixel mask, at the picture's size."""
    return overlap(enlarged(tokens, *pixels.shape), pixels)


def best_token_overlap(pixels: np.ndarray, rows: int, columns: int) -> float:
    """The largest IoU that any token mask of that many rows and columns can have with a pixel mask.

    Adding tokens in the order of the share of their pixels that the subject covers is optimal, so only as many masks as
    there are tokens need to be tried.
    """
    height, width = pixels.shape
    if height % rows or width % columns:
        raise ValueError(f"a picture of {height} x {width} pixels does not divide into {rows} x {columns} tokens")
    inside = np.sort(pixels.reshape(rows, height // rows, columns, width // columns).sum((1, 3)).ravel())[::-1]
    if inside[0] == 0:
        return 1.0
    taken = np.cumsum(inside)
    size = height * width // (rows * columns)
    return float((taken / (pixels.sum() + np.arange(1, len(inside) + 1) * size - taken)).max())


def layout_spread(masks: Sequence[np.ndarray]) -> float:
    """How differently a subject stands in its pictures, from its masks.

    The mean of the standard deviations of its centre x, centre y and size (square root of its area), as fractions of
    the frame; NaN with fewer than two masks that show anything.
    """
    placed = []
    for mask in masks:
        if mask.any():
            ys, xs = np.nonzero(mask)
            placed.append((xs.mean() / mask.shape[1], ys.mean() / mask.shape[0], np.sqrt(mask.mean())))
    return float(np.std(placed, axis=0).mean()) if len(placed) > 1 else float("nan")
