"""Alpha and foreground colours of a picture's subject, from a coarse mask or without one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consistory_ray.errors import InputError, Problem

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CutOut:
    """A subject alone.

    Attributes:
        alpha: how much of each pixel it is, ``[h, w]`` in 0 to 1.
        colours: its own, without the ground's, sRGB ``[h, w, 3]`` in 0 to 1.
    """

    alpha: Floats
    colours: Floats


def by_tokens(pixels: Floats, mask: NDArray[np.bool_]) -> CutOut:
    """What the mask's tokens cover, with hard edges: blocks, for those who refine it themselves.

    Args:
        pixels: ``[h, w, 3]`` in 0 to 1.
        mask: of one value per token.
    """
    return CutOut(_enlarged(mask, pixels.shape[:2]).astype(np.float64), pixels)


def by_closed_form(pixels: Floats, mask: NDArray[np.bool_]) -> CutOut:
    """Closed-form matting (Levin et al. 2008) in a band around the mask's edge, colours by Germer et al. 2020.

    Args:
        pixels: ``[h, w, 3]`` in 0 to 1.
        mask: of one value per token.
    """
    from pymatting import estimate_alpha_cf, estimate_foreground_ml
    from scipy import ndimage

    where = _enlarged(mask, pixels.shape[:2])
    reach = max(1, round(pixels.shape[0] / mask.shape[0]))
    trimap = np.full(where.shape, 0.5)
    trimap[ndimage.binary_erosion(where, iterations=reach, border_value=1)] = 1
    trimap[~ndimage.binary_dilation(where, iterations=reach)] = 0
    alpha = np.asarray(estimate_alpha_cf(pixels, trimap))
    return CutOut(alpha, np.clip(estimate_foreground_ml(pixels, alpha), 0, 1))


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


def _enlarged(mask: NDArray[np.bool_], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask at a picture's height and width."""
    large = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(large, np.bool_)
