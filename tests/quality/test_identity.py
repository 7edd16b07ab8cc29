"""The subject alone before noise, and cosines with anchors and among scenes, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consistory_ray.quality.identity import (
    background_alone,
    likeness,
    likeness_among,
    noise,
    subject_alone,
    subject_embeddings,
)

RED, BLUE = (200, 10, 10), (10, 10, 200)


class Corners:
    """Sees the first and the last pixel."""

    name, version = "corners", "1"

    def __init__(self, finds_subject: bool = False) -> None:
        self.finds_subject = finds_subject

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        rows = [[image.getpixel((0, 0))[0], image.getpixel((image.width - 1, image.height - 1))[0]] for image in images]
        return np.array(rows, np.float32)


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (8, 8), right)
    image.paste(left, (0, 0, 4, 8))
    return image


LEFT = np.array([[True, False], [True, False]])


def test_what_is_not_the_subject_becomes_noise_that_knows_nothing_of_the_picture() -> None:
    forest, beach = (
        np.asarray(subject_alone(halves(RED, ground), LEFT, "a")) for ground in ((0, 90, 0), (250, 240, 90))
    )
    assert (forest == beach).all()
    assert (forest[:, :4] == RED).all() and (forest[:, 4:] == noise(8, 8, "a")[:, 4:]).all()
    other = np.asarray(subject_alone(halves(RED, BLUE), LEFT, "b"))
    assert (other[:, 4:] != forest[:, 4:]).any(), "noise that all pictures share would make them alike"


def test_the_background_alone_is_the_rest() -> None:
    pixels = np.asarray(background_alone(halves(RED, BLUE), LEFT, "a"))
    assert (pixels[:, 4:] == BLUE).all() and (pixels[:, :4] == noise(8, 8, "a")[:, :4]).all()


@pytest.mark.parametrize("mask", [None, np.zeros((2, 2), bool)])
def test_without_a_mask_the_picture_stays(mask: np.ndarray | None) -> None:
    assert (np.asarray(subject_alone(halves(RED, BLUE), mask, "a")) == np.asarray(halves(RED, BLUE))).all()


def test_a_metric_that_finds_the_subject_gets_whole_pictures() -> None:
    images, masks = [halves(RED, BLUE)] * 2, [LEFT, None]
    whole = subject_embeddings(Corners(finds_subject=True), images, masks, ["a", "b"])
    assert whole.tolist() == [[200, 10], [200, 10]]
    alone = subject_embeddings(Corners(), images, masks, ["a", "b"])
    assert alone.tolist() == [[200, int(noise(8, 8, "a")[7, 7, 0])], [200, 10]]


def test_likeness_is_the_mean_cosine() -> None:
    anchors = np.array([[1, 0], [0, 1]], np.float32)
    scenes = np.array([[1, 0], [0.6, 0.8], [0, 0]], np.float32)
    assert likeness(scenes, anchors) == pytest.approx([0.5, 0.7, 0.0])
    assert np.isnan(likeness(scenes, anchors[:0])).all()
    assert likeness_among(scenes[:2]) == pytest.approx([0.6, 0.6])
    assert likeness_among(np.concatenate([scenes[:2], anchors[1:]])) == pytest.approx([0.3, 0.7, 0.4])
    assert np.isnan(likeness_among(scenes[:1])).all()


@given(st.integers(1, 24), st.integers(1, 24), st.text(max_size=8))
def test_noise_fills_its_size_and_is_the_same_again(width: int, height: int, key: str) -> None:
    first = noise(width, height, key)
    assert first.shape == (height, width, 3) and first.dtype == np.uint8
    assert (first == noise(width, height, key)).all()
