"""Hints made of pictures: edges as OpenCV finds them, silhouettes and outlines of sketches and cut-outs."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from consistory_ray.errors import InputError
from consistory_ray.pictures import picture_of
from consistory_ray.pictures.hints import PREPROCESSORS, canny, prepare_hint
from tests.pictures.making import disc

DOWN, ACROSS = np.mgrid[:96, :120]


def round_spot(across: int, down: int, radius: int) -> NDArray[np.bool_]:
    spot: NDArray[np.bool_] = (ACROSS - across) ** 2 + (DOWN - down) ** 2 < radius**2
    return spot


PICTURES = {
    "ramps": np.stack([ACROSS * 7 % 256, DOWN * 5 % 256, ACROSS * DOWN % 256], 2),
    "discs": np.stack([255 * round_spot(50, 40, 30), 255 * round_spot(80, 60, 20), np.full((96, 120), 60)], 2),
    "blocks": np.kron(np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8), np.ones((8, 8, 1))),
    "noise": np.random.default_rng(1).integers(0, 256, (96, 120, 3), dtype=np.uint8),
}
OPENCV = {
    "ramps": (3164, "ea9dfdb762d44e86"),
    "discs": (320, "4821da219e57180c"),
    "blocks": (2351, "724982558cdfdfd5"),
    "noise": (4203, "65047318e6fd9ea0"),
}
"""Number and digest of the edges that ``cv2.Canny(picture, 100, 200)`` of OpenCV 5.0 finds in them."""


@pytest.mark.parametrize("name", PICTURES)
def test_edges_are_those_of_opencv(name: str) -> None:
    edges = canny(PICTURES[name].astype(np.uint8))
    assert (int(edges.sum()), hashlib.sha256(np.packbits(edges)).hexdigest()[:16]) == OPENCV[name]
    shown = np.asarray(prepare_hint(PICTURES[name].astype(np.uint8), "canny"))
    assert (shown == 255 * edges[..., None].repeat(3, axis=2)).all()


def sketch(width: int = 64, height: int = 48) -> Image.Image:
    """A dark, filled figure with a light belly on paper that is not quite white."""
    image = Image.new("RGB", (width, height), (250, 246, 238))
    pen = ImageDraw.Draw(image)
    pen.ellipse((16, 8, 40, 40), fill=(40, 30, 60))
    pen.ellipse((24, 20, 32, 34), fill=(200, 120, 40))
    return image


def ellipse(width: int = 64, height: int = 48) -> NDArray[np.bool_]:
    image = Image.new("1", (width, height))
    ImageDraw.Draw(image).ellipse((16, 8, 40, 40), fill=1)
    return np.asarray(image)


def where(image: Image.Image) -> NDArray[np.bool_]:
    pixels = np.asarray(image)
    assert image.mode == "RGB" and set(np.unique(pixels)) <= {0, 255}
    found: NDArray[np.bool_] = pixels[..., 0] == 255
    return found


def test_a_silhouette_is_what_differs_from_the_paper() -> None:
    for drawn in (sketch(), prepare_hint(sketch(), "invert")):
        assert (where(prepare_hint(drawn, "silhouette")) == ellipse()).all()


def test_transparency_tells_more_than_colours() -> None:
    cut = np.dstack([np.full((24, 40, 3), 255, np.uint8), 255 * disc().astype(np.uint8)])
    assert (where(prepare_hint(cut, "silhouette")) == disc()).all()
    assert (where(prepare_hint(picture_of(cut, "here"), "silhouette")) == disc()).all()


def test_an_outline_lies_inside_of_the_silhouette_and_closes_at_the_frame() -> None:
    filled = ellipse(128, 128)
    outline = where(prepare_hint(sketch(128, 128), "outline"))
    assert (outline <= filled).all() and not outline[24, 28] and outline[24, 16:19].all() and not outline[24, 19]
    cut = np.zeros((128, 128, 4), np.uint8)
    cut[60:, 40:90] = 255
    outline = where(prepare_hint(cut, "outline"))
    assert outline[125:, 40:90].all() and not outline[124, 43:87].any() and outline[60:63, 40:90].all()


def test_what_is_a_hint_already_stays_as_it_is() -> None:
    assert (np.asarray(prepare_hint(sketch(), "none")) == np.asarray(sketch())).all()
    assert all(prepare_hint(sketch(), name).size == sketch().size for name in PREPROCESSORS)


def test_other_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"preprocess: must be one of none, invert, canny, silhouette, outline"):
        prepare_hint(sketch(), "depth")
