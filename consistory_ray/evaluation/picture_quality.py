"""Are the pictures still good drawings? Distance from drawings in the judge's features, outlines, sharpness, chroma.

Accuracies of the judge say nothing here: it recognises blurred and blotched subjects as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from consistory_ray.evaluation.bootstrap import RESAMPLES
from consistory_ray.evaluation.measures import srgb_to_lab

DARKEST_WITHIN = 5
"""Side of the neighbourhood in which an outline is looked for, in pixels."""


def lightness(image: np.ndarray) -> np.ndarray:
    """CIELAB L of an sRGB picture ``[H, W, 3]``, 0 to 100."""
    return np.asarray(srgb_to_lab(image)[..., 0])


def sharpness(image: np.ndarray) -> float:
    """Variance of the Laplacian of the lightness of a picture, uint8 ``[H, W, 3]``; blur lowers it."""
    light = lightness(image)
    middle = light[1:-1, 1:-1]
    laplacian = light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:] - 4 * middle
    return float(laplacian.var())


def outline_strength(image: np.ndarray, mask: np.ndarray) -> float:
    """How much darker a subject's outline is than the subject, in CIELAB L.

    Args:
        image: uint8 ``[H, W, 3]``.
        mask: the subject, bool ``[H, W]``.

    Returns:
        The subject's median lightness less the mean, along its edge, of the darkest pixel nearby; NaN for a subject
        without inside.
    """
    inside = _filtered(mask, ImageFilter.MinFilter(3))
    edge = mask & ~inside
    if not inside.any() or not edge.any():
        return float("nan")
    light = lightness(image)
    darkest = _filtered(np.round(2.55 * light), ImageFilter.MinFilter(DARKEST_WITHIN)) / 2.55
    return float(np.median(light[inside]) - darkest[edge].mean())


def chroma(image: np.ndarray, mask: np.ndarray) -> float:
    """How colourful a subject is: the mean CIELAB chroma inside its mask, about 0 for gray; NaN for an empty mask.

    Colours of several individuals that meet in the middle are duller than each of them.

    Args:
        image: uint8 ``[H, W, 3]``.
        mask: the subject, bool ``[H, W]``.
    """
    return float(np.hypot(*srgb_to_lab(image[mask])[:, 1:].T).mean()) if mask.any() else float("nan")


def blurred(image: np.ndarray, radius: float = 1.0) -> np.ndarray:
    """A picture under a Gaussian blur: what measures of quality must be able to see."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def discrepancies(pictures: Sequence[np.ndarray], drawings: Sequence[np.ndarray]) -> np.ndarray:
    """Between every two subjects, what they add to the distance of the pictures from the drawings.

    The distance is the squared maximum mean discrepancy under the polynomial kernel of the Kernel Inception Distance
    (Binkowski et al., ICLR 2018), ``(x y / d + 1) ** 3``, whose estimate has no bias with however few pictures, of
    features in units of the drawings' deviations. It is taken over subjects, each with its pictures and with drawings
    of the same kind in the same scenes: pictures of one subject, which are alike because they show one individual, are
    never compared with each other.

    Args:
        pictures: features of each subject's pictures, ``[N, D]`` each.
        drawings: features of each subject's drawings, ``[M, D]`` each.

    Returns:
        float64 ``[subjects, subjects]``, symmetric; what lies on the diagonal means nothing.
    """
    everything = np.concatenate([*drawings])
    centre, scale = everything.mean(0), everything.std(0) + 1e-6

    def stacked(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        owners = np.repeat(np.arange(len(features)), [len(own) for own in features])
        return (np.concatenate([*features]).astype(np.float64) - centre) / scale, owners

    def means(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
        (a, rows), (b, columns) = stacked(first), stacked(second)
        kernel = (a @ b.T / a.shape[1] + 1) ** 3
        by_row = np.eye(len(first))[rows] / np.bincount(rows)[rows][:, None]
        by_column = np.eye(len(second))[columns] / np.bincount(columns)[columns][:, None]
        return np.asarray(by_row.T @ kernel @ by_column)

    between = means(pictures, drawings)
    return np.asarray(means(pictures, pictures) - between - between.T + means(drawings, drawings))


def distance(table: np.ndarray) -> float:
    """The distance over all pairs of different subjects of :func:`discrepancies`; NaN with fewer than two subjects."""
    count = len(table)
    return float((table.sum() - np.trace(table)) / (count * (count - 1))) if count > 1 else float("nan")


def distance_interval(table: np.ndarray, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Its percentile interval by bootstrap over subjects; a subject drawn twice is not compared with itself.

    Give it a difference of two tables, and it is the interval of the difference of two distances.
    """
    count = len(table)
    if count < 2:
        return float("nan"), float("nan")
    off = table - np.diag(np.diag(table))
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)
    pairs = draws.sum(1) ** 2 - (draws**2).sum(1)
    known = pairs > 0  # all but those in which one subject was drawn every time
    values = np.einsum("rs,st,rt->r", draws, off, draws, optimize=True)[known] / pairs[known]
    low, high = np.quantile(values, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def _filtered(values: np.ndarray, rule: ImageFilter.Filter) -> np.ndarray:
    """A filter of Pillow's over a mask, or over values in 0..255."""
    if values.dtype == bool:
        return np.asarray(Image.fromarray(values.astype(np.uint8) * 255).filter(rule)) > 0
    return np.asarray(Image.fromarray(values.astype(np.uint8)).filter(rule)).astype(np.float64)
