"""Alpha and foreground colours of a picture's subject, from a coarse mask or without one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from consistory_ray.errors import InputError, Problem
from consistory_ray.export.segmenting import Booleans, Floats, enlarged, segmented

EDGE = 1 / 128
"""Half of the band in which an edge is looked for, of the picture's longer side."""
LEVELS = (0.1, 0.9)


@dataclass(frozen=True)
class CutOut:
    """A subject alone.

    Attributes:
        alpha: how much of each pixel it is, ``[h, w]`` in 0 to 1.
        colours: its own, without the ground's, sRGB ``[h, w, 3]`` in 0 to 1.
    """

    alpha: Floats
    colours: Floats


def by_tokens(image: Image.Image, mask: Booleans) -> CutOut:
    """What the mask's tokens cover, with hard edges: blocks, for those who refine it themselves.

    Args:
        image: RGB.
        mask: of one value per token.
    """
    covered = enlarged(mask, (image.height, image.width))
    return CutOut(covered.astype(np.float64), np.asarray(image, np.float64) / 255)


def by_closed_form(image: Image.Image, mask: Booleans) -> CutOut:
    """Closed-form matting (Levin et al. 2008) along the edge of :func:`.segmenting.segmented`, and the subject's own
    colours there (Germer et al. 2020).

    Args:
        image: RGB.
        mask: of one value per token.
    """
    from pymatting import estimate_alpha_cf, estimate_foreground_ml

    pixels = np.asarray(image, np.float64) / 255
    subject = segmented(image, mask)
    alpha, colours = subject.astype(np.float64), pixels.copy()
    if not subject.any():
        return CutOut(alpha, colours)
    trimap, (rows, columns) = _trimap(subject)
    if (trimap == 0.5).any() and (trimap == 1).any() and (trimap == 0).any():
        found = np.asarray(estimate_alpha_cf(pixels[rows, columns], trimap[rows, columns]), np.float64)
        alpha[rows, columns] = _levelled(np.clip(found, 0, 1))
        colours[rows, columns] = estimate_foreground_ml(pixels[rows, columns], alpha[rows, columns])
    return CutOut(alpha, np.clip(colours, 0, 1))


def _trimap(subject: Booleans) -> tuple[Floats, tuple[slice, slice]]:
    """What is certainly ground (0) and subject (1), and the band between (0.5); the rows and columns that matter."""
    from scipy import ndimage

    width = max(1, round(EDGE * max(subject.shape)))
    trimap = np.full(subject.shape, 0.5)
    trimap[ndimage.binary_erosion(subject, iterations=width, border_value=1)] = 1
    grown = ndimage.binary_dilation(subject, iterations=width)
    trimap[~grown] = 0
    (around,) = ndimage.find_objects(grown.astype(np.int8))
    rows, columns = (slice(max(0, part.start - 2 * width), part.stop + 2 * width) for part in around)
    return trimap, (rows, columns)


def _levelled(alpha: Floats) -> Floats:
    """Alpha with its ends pulled to 0 and 1: what is nearly there leaves no veil."""
    return np.clip((alpha - LEVELS[0]) / (LEVELS[1] - LEVELS[0]), 0, 1)


def by_rembg(image: Image.Image) -> CutOut:
    """What ``rembg`` finds, by the model that it is set up with.

    Raises:
        InputError: it is not installed.
    """
    try:
        from rembg import remove
    except ImportError as error:
        fix = "pip install 'rembg[cpu]', or use --matting pymatting"
        raise InputError("sprites cannot be cut out", [Problem("--matting", "rembg", f"{fix} ({error})")]) from error
    found = np.asarray(remove(image).convert("RGBA"), np.float64) / 255
    return CutOut(found[..., 3], found[..., :3])
