"""Pictures in memory: they come to the same as their files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consistory_ray.errors import InputError
from consistory_ray.pictures import open_picture, picture_of


def some(mode: str) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 18, 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def as_file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_of_every_mode(mode: str) -> None:
    image = some(mode)
    ours, opened = picture_of(image, "images[0]"), open_picture(as_file(image), "images[0]")
    assert ours.image.tobytes() == opened.image.tobytes() and ours.size == opened.size
    assert (ours.alpha is None) == (opened.alpha is None) == (mode not in ("RGBA", "LA", "P"))
    if ours.alpha is not None and opened.alpha is not None:
        assert np.array_equal(ours.alpha, opened.alpha)


def test_orientation_and_other_modes() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = as_file(some("RGB"), "JPEG", exif=exif)
    opened, ours = open_picture(data, "images[0]"), picture_of(Image.open(io.BytesIO(data)), "images[0]")
    assert ours.size == opened.size == (12, 18) and ours.image.tobytes() == opened.image.tobytes()
    for mode in ("YCbCr", "CMYK", "F", "HSV"):
        assert picture_of(some("RGB").convert("L" if mode == "F" else "RGB").convert(mode), "x").image.mode == "RGB"


def test_arrays() -> None:
    pixels = np.asarray(some("RGBA"))
    assert np.array_equal(np.asarray(picture_of(pixels[..., :3], "x").image), pixels[..., :3])
    assert np.array_equal(np.asarray(picture_of(pixels[..., :3] / 255, "x").image), pixels[..., :3])
    assert np.array_equal(np.asarray(picture_of(pixels[..., 0] > 99, "x").image)[..., 1] == 255, pixels[..., 0] > 99)
    alpha = picture_of(pixels, "x").alpha
    assert alpha is not None and np.array_equal(alpha, pixels[..., 3] >= 128)
    picture = picture_of(pixels, "x")
    assert picture_of(picture, "x") is picture


@pytest.mark.parametrize(
    "given",
    [
        "mia.png",
        None,
        np.zeros((9, 9, 2), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
        np.full((9, 9, 3), 2.0),
        np.full((9, 9, 3), np.nan),
        np.zeros((9, 9, 3), np.int64),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 1, 3), np.uint8),
    ],
)
def test_what_is_no_picture(given: Any) -> None:
    with pytest.raises(InputError, match=r"images\[3\]"):
        picture_of(given, "images[3]")
