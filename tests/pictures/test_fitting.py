"""Pictures of any shape at the size that is rendered, and masks that go with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image

from consistory_ray.errors import InputError
from consistory_ray.pictures import FITS, Picture, draw_mask, fit, open_mask, open_masked, open_picture
from consistory_ray.pictures.fitting import Fit
from tests.pictures.making import disc, encoded, gradient

SIDES = some.integers(8, 90)


def picture_of(width: int, height: int, masked: bool) -> Picture:
    picture = open_picture(encoded(gradient(width, height)), "image")
    return dataclasses.replace(picture, alpha=disc(width, height)) if masked else picture


@given(SIDES, SIDES, SIDES, SIDES, some.booleans(), some.sampled_from(FITS))
def test_every_shape_fits(width: int, height: int, new_width: int, new_height: int, masked: bool, how: Fit) -> None:
    fitted = fit(picture_of(width, height, masked), new_width, new_height, how)
    assert fitted.image.size == (new_width, new_height) and fitted.image.mode == "RGB"
    assert fitted.size == (width, height)
    assert (fitted.alpha is None) != masked
    assert fitted.alpha is None or fitted.alpha.shape == (new_height, new_width)


@pytest.mark.parametrize("how", FITS)
def test_a_picture_of_the_right_size_stays_as_it_is(how: Fit) -> None:
    picture = picture_of(40, 24, True)
    fitted = fit(picture, 40, 24, how)
    assert (np.asarray(fitted.image) == np.asarray(picture.image)).all()
    assert fitted.alpha is not None and (fitted.alpha == disc()).all() and not fitted.notices


def test_cropping_takes_the_middle() -> None:
    whole = np.asarray(gradient(60, 20))
    fitted = fit(picture_of(60, 20, False), 20, 20)
    assert (np.asarray(fitted.image) == whole[:, 20:40]).all()


@pytest.mark.parametrize("at", [3, 20, 52])
def test_cropping_keeps_the_subject(at: int) -> None:
    mask = np.zeros((20, 60), bool)
    mask[5:15, at : at + 6] = True
    fitted = fit(dataclasses.replace(picture_of(60, 20, False), alpha=mask), 20, 20)
    assert fitted.alpha is not None and fitted.alpha.sum() == mask.sum() and not fitted.notices


def test_a_subject_that_cropping_cuts_is_told() -> None:
    mask = np.zeros((20, 60), bool)
    mask[5:15, 5:55] = True
    picture = dataclasses.replace(picture_of(60, 20, False), alpha=mask)
    (notice,) = fit(picture, 20, 20).notices
    assert "60% of the subject" in notice and "letterbox" in notice
    assert not fit(picture, 20, 20, "letterbox").notices


def test_letterbox_keeps_everything() -> None:
    fitted = fit(picture_of(60, 20, True), 60, 60, "letterbox")
    assert (np.asarray(fitted.image)[20:40] == np.asarray(gradient(60, 20))).all()
    assert fitted.alpha is not None and (fitted.alpha[20:40] == disc(60, 20)).all()
    assert not fitted.alpha[:20].any() and not fitted.alpha[40:].any()
    margin = np.asarray(fitted.image)[:20].reshape(-1, 3)
    assert (margin == margin[0]).all(), "of one colour"


def test_a_picture_that_is_too_small_is_told() -> None:
    (notice,) = fit(picture_of(20, 20, False), 64, 64).notices
    assert "20x20" in notice and "64x64" in notice
    assert not fit(picture_of(100, 100, False), 64, 64).notices


def mask_file(**options: bool) -> bytes:
    return encoded(Image.fromarray(disc().astype(np.uint8) * 255), **options)


def test_masks_by_brightness_and_by_transparency() -> None:
    assert (open_mask(mask_file(), "mask", (40, 24)) == disc()).all()
    assert (open_mask(encoded(Image.fromarray(disc())), "mask", (40, 24)) == disc()).all()
    cut_out = Image.new("RGBA", (40, 24), (0, 0, 0, 0))
    cut_out.paste((10, 20, 30, 255), mask=Image.fromarray(disc().astype(np.uint8) * 255))
    assert (open_mask(encoded(cut_out), "mask", (40, 24)) == disc()).all()


def test_a_mask_wins_over_transparency() -> None:
    see_through = gradient()
    see_through.putalpha(Image.fromarray((~disc()).astype(np.uint8) * 255))
    data = encoded(see_through)
    assert (open_masked(data, None, "image", "mask").alpha == ~disc()).all()  # type: ignore[union-attr]
    assert (open_masked(data, mask_file(), "image", "mask").alpha == disc()).all()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "value", "fix"),
    [
        (encoded(Image.new("L", (24, 40), 255)), "24x40 pixels", "40x24"),
        (encoded(Image.new("L", (40, 24), 255)), "the same everywhere", "white on black"),
        (encoded(Image.new("L", (40, 24), 0)), "the same everywhere", "white on black"),
        (b"", "an empty file", "again"),
    ],
)
def test_masks_that_are_refused(data: bytes, value: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        open_masked(encoded(gradient()), data, "pictures[0].image", "pictures[0].mask")
    (problem,) = caught.value.problems
    assert problem.path == "pictures[0].mask" and value in problem.value and fix in problem.fix


def test_masks_of_reduced_pictures_are_reduced_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG is reduced in steps of two, its mask, a PNG, in any."""
    monkeypatch.setattr("consistory_ray.pictures.opening.WORKING_PIXELS", 200 * 120)
    mask = Image.fromarray(disc(1000, 600).astype(np.uint8) * 255)
    picture = open_masked(encoded(gradient(1000, 600), "JPEG"), encoded(mask), "image", "mask")
    assert picture.alpha is not None and picture.alpha.shape == picture.image.size[::-1]
    assert (picture.alpha != disc(*picture.image.size)).mean() < 0.01


@pytest.mark.parametrize("grid", [(24, 40), (6, 10)])
def test_a_drawn_mask_dims_the_rest(grid: tuple[int, int]) -> None:
    mask = disc(*grid[::-1])
    drawn = np.asarray(draw_mask(gradient(), mask)).astype(int)
    before = np.asarray(gradient()).astype(int)
    where = np.asarray(Image.fromarray(mask).resize((40, 24), Image.Resampling.NEAREST))
    assert (drawn[where] == before[where]).all()
    assert (drawn[:, 0].sum(axis=-1) < 0.5 * before[:, 0].sum(axis=-1)).all()
