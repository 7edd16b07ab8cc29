"""Which bytes are a picture, and how large it would be: its header is read, nothing is decoded or allocated.

Pillow is not asked to guess: only PNG, JPEG and WebP are opened, by their own readers, so that no other decoder ever
sees bytes from outside, and sizes are judged by limits of our own (``Image.open`` warns, or raises, by others).
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from consistory_ray.errors import InputError, Problem

MAX_BYTES = 256 << 20
"""Largest file that is read as a picture."""
MAX_PIXELS: Mapping[str, int] = {"png": 128_000_000, "jpg": 128_000_000, "webp": 64_000_000}
"""Most pixels by format: decoding takes less than 1 GiB (a WebP four times its pixels, as its decoder keeps copies)."""
MIN_SIDE = 8

CONVERT = "save it as PNG, JPEG or WebP"
_AGAIN = "save or download it again: a PNG, JPEG or WebP file is needed"
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (rb"GIF8[79]a", "a GIF", CONVERT + ", one picture of it"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "a TIFF", CONVERT),
    (rb"BM", "a BMP", CONVERT),
    (rb".{4}ftypavi[fs]", "an AVIF", CONVERT),
    (rb".{4}ftyp(hei|hev|mif|msf)", "a HEIC", CONVERT),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000", CONVERT),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL", CONVERT),
    (rb"8BPS", "a Photoshop file", CONVERT),
    (rb"%PDF", "a PDF", CONVERT),
    (rb"\s*(<\?xml|<!doctype svg|<!--|<svg).*<svg|\s*<svg", "an SVG drawing", CONVERT),
    (rb"\s*(<!doctype html|<html|<!--.*<html)", "a web page", "give the address of the picture itself"),
    (rb"version https://git-lfs", "a pointer to a file in Git LFS", "fetch the file itself with git lfs pull"),
    (rb"\x1f\x8b|PK\x03\x04", "an archive", "unpack it"),
)


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture says of itself.

    Attributes:
        format: ``png``, ``jpg`` or ``webp``, which is also the ending of such files' names.
        width, height: in pixels, as stored: before it is turned upright.
    """

    format: Literal["png", "jpg", "webp"]
    width: int
    height: int


def read_header(data: bytes, field: str) -> Header:
    """The header of a picture that may be decoded.

    Args:
        data: the file.
        field: what it was given as, for the message.

    Raises:
        InputError: it is empty, no PNG, JPEG or WebP, animated, smaller than 8 pixels, or larger than ``MAX_PIXELS``.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            png = PngImageFile(io.BytesIO(data))
            header, animated = Header("png", *png.size), bool(getattr(png, "is_animated", False))
        elif data.startswith(b"\xff\xd8\xff"):
            header, animated = Header("jpg", *JpegImageFile(io.BytesIO(data)).size), False
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            width, height, animated = _webp(data)
            header = Header("webp", width, height)
        else:
            _refuse_other(data, field)
    except InputError:
        raise
    except Exception as error:  # readers meet broken bytes with many kinds of error
        raise unreadable(field, error) from error
    shown = f"{header.width}x{header.height} pixels"
    if animated:
        refuse(field, "an animated picture", CONVERT + ", one picture of it")
    if min(header.width, header.height) < MIN_SIDE:
        refuse(field, shown, f"give a larger picture, of {MIN_SIDE} pixels at least")
    if header.width * header.height > (limit := MAX_PIXELS[header.format]):
        refuse(field, shown, f"give a smaller one, of {limit // 1_000_000} megapixels at most")
    return header


def unreadable(field: str, error: Exception) -> InputError:
    """The error for a picture that breaks while it is read."""
    reason = re.sub(r"\s*<.*?>", "", str(error)).strip() or type(error).__name__
    value = "a damaged or cut off picture: " + ascii(reason)[1:-1][:120]
    return InputError("this picture cannot be used", [Problem(field, value, _AGAIN)])


def refuse(field: str, value: str, fix: str) -> NoReturn:
    """Say why a picture is not taken.

    Raises:
        InputError: always.
    """
    raise InputError("this picture cannot be used", [Problem(field, value, fix)])


def _refuse_other(data: bytes, field: str) -> NoReturn:
    if not data:
        refuse(field, "an empty file", _AGAIN)
    for pattern, value, fix in _OTHERS:
        if re.match(pattern, data[:4096].removeprefix(b"\xef\xbb\xbf"), re.DOTALL | re.IGNORECASE):
            refuse(field, value, fix)
    refuse(field, "no picture", _AGAIN)


def _webp(data: bytes) -> tuple[int, int, bool]:
    """Size of a WebP and whether it is animated, from its first chunk: its reader would allocate the whole canvas.

    Raises:
        ValueError: it is cut off or has an unknown first chunk.
    """
    kind = data[12:16]
    if len(data) < 30 or len(data) < int.from_bytes(data[4:8], "little") + 8:
        raise ValueError("it ends too early")
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height, bool(data[20] & 2)
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, False
    if kind == b"VP8 ":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        return width, height, False
    raise ValueError("unknown kind of WebP")
