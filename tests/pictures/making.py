"""Pictures as files, in many formats, for tests."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    """A picture that looks different from every side: red grows rightwards, green downwards, blue in one corner."""
    across, down = np.linspace(20, 230, width), np.linspace(20, 230, height)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = across[None, :], down[:, None]
    pixels[: height // 3, : width // 4, 2] = 200
    return Image.fromarray(pixels)


def disc(width: int = 40, height: int = 24) -> NDArray[np.bool_]:
    """A mask of a disc right of the middle, bool ``[height, width]``."""
    down, across = np.mgrid[:height, :width]
    where: NDArray[np.bool_] = (across - 0.6 * width) ** 2 + (down - 0.5 * height) ** 2 < (
        0.3 * min(width, height)
    ) ** 2
    return where


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """A picture as a file's content."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises a picture of this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def ink_profile() -> bytes:
    """A CMYK colour profile of the smallest kind in which the first ink, cyan elsewhere, is red: Lab (53, 80, 67)."""
    inks = [(corner >> 3 & 1, corner >> 2 & 1, corner >> 1 & 1, corner & 1) for corner in range(16)]
    lab = [
        (round(255 * (0.53 if ink[0] else 1.0) * (1 - ink[3])), *((208, 195) if ink[0] else (128, 128))) for ink in inks
    ]
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if n % 4 == 0 else 0 for n in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + bytes(sum(lab, ())) + ramp * 3
    start = 128 + 4 + 12
    header = struct.pack(">I4s", start + len(table), b"lcms") + b"\x02\x40\0\0prtrCMYKLab " + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", start, len(table)) + table
