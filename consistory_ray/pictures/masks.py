"""Where the subject of a picture is: from a mask that a user gives, and drawn over the picture for people to see."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consistory_ray.pictures.formats import refuse
from consistory_ray.pictures.opening import Picture, open_picture

_DIMMED = 0.35
MAX_MASK_BYTES = 1 << 16
_MAX_MASK_SIDE = 4096
_EDGE = (255, 0, 160)


def open_mask(data: bytes, field: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask: white, or what is opaque where it has transparency, is the subject.

    Args:
        data: the file, anything that :func:`~consistory_ray.pictures.opening.open_picture` opens.
        field: what it was given as, for the message.
        size: width and height of its picture, upright: :attr:`Picture.size`.

    Returns:
        bool ``[height, width]``; smaller than ``size`` where that is reduced on opening too.

    Raises:
        InputError: it cannot be opened, has another size, or is the same everywhere.
    """
    picture = open_picture(data, field)
    mask = shown_by(picture)
    check_mask(field, picture.size, size, is_uniform=bool(mask.all() or not mask.any()))
    return mask


def shown_by(picture: Picture) -> NDArray[np.bool_]:
    """What a picture marks if it is taken for a mask, bool ``[height, width]``."""
    return np.asarray(picture.image.convert("L")) >= 128 if picture.alpha is None else picture.alpha


def check_mask(field: str, size: tuple[int, int], wanted: tuple[int, int], *, is_uniform: bool) -> None:
    """What a mask must be like.

    Args:
        field: what it was given as, for the message.
        size, wanted: width and height of the mask, and of its picture.
        is_uniform: whether it is the same everywhere.

    Raises:
        InputError: it is not.
    """
    if size != wanted:
        shown, needed = ("x".join(map(str, pair)) for pair in (size, wanted))
        refuse(field, f"{shown} pixels", f"give a mask of its picture's size, {needed} pixels")
    if is_uniform:
        refuse(field, "a mask that is the same everywhere", "draw the subject white on black")


def open_masked(data: bytes, mask: bytes | None, field: str, mask_field: str) -> Picture:
    """A picture with a mask in the place of its transparency.

    Args:
        data, field: see :func:`~consistory_ray.pictures.opening.open_picture`.
        mask, mask_field: see :func:`open_mask`; None leaves the picture as it is.

    Raises:
        InputError: one of them cannot be used.
    """
    picture = open_picture(data, field)
    if mask is None:
        return picture
    where = open_mask(mask, mask_field, picture.size)
    if where.shape[::-1] != picture.image.size:  # a JPEG is reduced in other steps than a PNG
        where = np.asarray(Image.fromarray(where).resize(picture.image.size, Image.Resampling.NEAREST))
    return dataclasses.replace(picture, alpha=where)


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """A mask ``[h, w]`` as a PNG of one bit per value, white where it is true."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(mask, bool)).save(file, "PNG")
    return file.getvalue()


def decode_mask(data: bytes | None) -> NDArray[np.bool_] | None:
    """The inverse of :func:`encode_mask`; None for None, and for whatever is no such picture."""
    if data is None or len(data) > MAX_MASK_BYTES:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode != "1" or max(image.size) > _MAX_MASK_SIDE:
                return None
            return np.asarray(image, bool)
    except Exception:  # decoders have dozens of ways to fail on bytes that were made up
        return None


def draw_mask(image: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """A picture with everything dimmed that is not the subject, and a line around what is.

    Args:
        image: RGB.
        mask: bool ``[h, w]``, of the picture's size or a coarser grid.
    """
    where = np.asarray(Image.fromarray(np.asarray(mask, bool)).resize(image.size, Image.Resampling.NEAREST))
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    grey = pixels.mean(axis=-1, keepdims=True)
    shown = np.where(where[..., None], pixels, _DIMMED * (0.5 * pixels + 0.5 * grey))
    width = max(1, min(image.size) // 256)
    padded = np.pad(where, width, mode="edge")
    height_, width_ = where.shape
    shifts = [(dy, dx) for dy in (0, width, 2 * width) for dx in (0, width, 2 * width)]
    around = np.any([padded[dy : dy + height_, dx : dx + width_] for dy, dx in shifts], axis=0)
    shown[around & ~where] = _EDGE
    return Image.fromarray(shown.round().astype(np.uint8))
