"""Decoding: a picture from outside becomes an upright sRGB picture, and what of it is opaque.

Memory is bounded by the limits of :mod:`~consistory_ray.pictures.formats`: what has more than 16 megapixels is reduced
while it is decoded (JPEG) or right after, and only one such picture is decoded at a time.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.Image import Transpose
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from consistory_ray.pictures.formats import Header, read_header, refuse, unreadable

BACKGROUND = (255, 255, 255)
"""What shows through where a picture is transparent."""
WORKING_PIXELS = 16_000_000
"""Larger pictures are reduced to at most so many."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_READERS: dict[str, type[ImageFile.ImageFile]] = {"png": PngImageFile, "jpg": JpegImageFile, "webp": WebPImageFile}
_large = threading.Lock()


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the method takes it.

    Attributes:
        image: upright, RGB, sRGB; white shows through where it is transparent.
        alpha: where it is opaque, bool ``[height, width]``; None where it has no transparency. A mask that was given
            takes its place.
        size: width and height of the whole picture, upright, before it was reduced or fitted.
        notices: what people should know about it, as sentences.
    """

    image: Image.Image
    alpha: NDArray[np.bool_] | None
    size: tuple[int, int]
    notices: tuple[str, ...] = ()


def open_picture(data: bytes, field: str) -> Picture:
    """Decode a picture.

    Args:
        data: the file: PNG, JPEG or WebP.
        field: what it was given as, for the message.

    Raises:
        InputError: see :func:`~consistory_ray.pictures.formats.read_header`; or it is broken, or nothing in it is
            opaque.
    """
    header = read_header(data, field)
    large = header.width * header.height > WORKING_PIXELS
    try:
        with _large if large else contextlib.nullcontext():
            image, orientation, profile = _decoded(data, header)
    except Exception as error:  # decoders meet broken bytes with many kinds of error
        raise unreadable(field, error) from error
    return finished(image, orientation, profile, (header.width, header.height), field)


def finished(image: Image.Image, orientation: int, profile: bytes | None, size: tuple[int, int], field: str) -> Picture:
    """A decoded picture as the method takes it.

    Args:
        image: of one of the modes L, LA, RGB, RGBA and CMYK.
        orientation: of Exif.
        profile: of its colours, or None.
        size: width and height as it was stored.
        field: what it was given as, for the message.

    Raises:
        InputError: nothing in it is opaque.
    """
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
        size = size[::-1] if orientation >= 5 else size
    if image.mode not in ("LA", "RGBA"):
        rgb, notices = _srgb(image, profile)
        return Picture(rgb, None, size, notices)
    transparency = image.getchannel("A")
    opaque = np.asarray(transparency) >= 128
    if not opaque.any():
        refuse(field, "a picture that is transparent everywhere", "give one that shows something")
    rgb, notices = _srgb(image.convert(image.mode[:-1]), profile)
    rgb = Image.composite(rgb, Image.new("RGB", rgb.size, BACKGROUND), transparency)
    return Picture(rgb, None if opaque.all() else opaque, size, notices)


def _decoded(data: bytes, header: Header) -> tuple[Image.Image, int, bytes | None]:
    """A picture in one of the modes L, LA, RGB, RGBA and CMYK, its Exif orientation, and its colour profile."""
    reader = _READERS[header.format](io.BytesIO(data))
    factor = _factor(header.width, header.height)
    if factor > 1:
        reader.draft(reader.mode, (header.width // factor, header.height // factor))
    reader.load()
    orientation = 1
    with contextlib.suppress(Exception):  # a broken Exif block breaks no picture
        orientation = int(reader.getexif().get(_ORIENTATION, 1))
    profile = reader.info.get("icc_profile")
    image = plain(reader)
    if (rest := _factor(*image.size)) > 1:
        image = image.reduce(rest)
    return image, orientation, profile


def _factor(width: int, height: int) -> int:
    """By how much both sides are divided."""
    return math.ceil(math.sqrt(width * height / WORKING_PIXELS))


def plain(image: Image.Image) -> Image.Image:
    """The same in 8 bits, without a palette, its transparency as a channel."""
    if image.mode.startswith("I"):  # grey in 16 bits
        grey, key = np.asarray(image), image.info.get("transparency")
        plain = Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8))
        if isinstance(key, int):
            plain.putalpha(Image.fromarray(np.where(grey == key, 0, 255).astype(np.uint8)))
        return plain
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")


def _srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, tuple[str, ...]]:
    """A picture of mode L, RGB or CMYK in sRGB, going by its profile where it has a usable one; and notices."""
    if not profile:
        guessed = ("it is CMYK without a colour profile, so its colours are a guess",) if image.mode == "CMYK" else ()
        return image.convert("RGB"), guessed
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception as error:  # broken profiles, those of another kind of picture, Pillow without Little CMS
        reason = ascii(str(error) or type(error).__name__)[1:-1][:80]
        return image.convert("RGB"), (f"its colour profile cannot be used ({reason}) and was left out",)
    return converted or image.convert("RGB"), ()
