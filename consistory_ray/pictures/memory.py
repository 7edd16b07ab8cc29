"""Pictures that a caller has in memory already."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from consistory_ray.pictures.formats import MIN_SIDE, refuse
from consistory_ray.pictures.opening import Picture, finished, plain


def picture_of(image: Any, field: str) -> Picture:
    """A picture as the method takes it: upright, RGB, sRGB, its transparency apart.

    Args:
        image: a PIL image of any mode, or an array [height, width] or [height, width, 3 or 4], uint8 or floats in 0..1;
            a :class:`~consistory_ray.pictures.opening.Picture` is returned as it is.
        field: what it was given as, for the message.

    Raises:
        InputError: it is none of these, or very small, or nothing in it is opaque.
    """
    if isinstance(image, Picture):
        return image
    if not isinstance(image, Image.Image):
        image = _from_array(image, field)
    if min(image.size) < MIN_SIDE:
        refuse(field, "x".join(map(str, image.size)) + " pixels", f"give a larger picture, of {MIN_SIDE} at least")
    orientation = int(image.getexif().get(Base.Orientation, 1))
    return finished(plain(image), orientation, image.info.get("icc_profile"), image.size, field)


def _from_array(given: Any, field: str) -> Image.Image:
    pixels = np.asarray(given)
    shown = f"{type(given).__name__} of shape {pixels.shape} and {pixels.dtype}"
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) or not pixels.size:
        refuse(field, shown, "give a PIL image, or an array [height, width, 3]")
    if pixels.dtype.kind == "f" and np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1:
        pixels = (pixels * 255).round().astype(np.uint8)
    elif pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype != np.uint8:
        refuse(field, shown, "give uint8, or floats from 0 to 1")
    return Image.fromarray(pixels)
