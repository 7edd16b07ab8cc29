"""Sprites: pixels from tokens, alpha at the edge, and what is told of pictures that cannot be cut out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from consistory_ray.errors import InputError
from consistory_ray.export import options as options_module
from consistory_ray.export import segmenting
from consistory_ray.export.making import Recipe, make, makers
from consistory_ray.export.matting import by_closed_form, by_tokens
from consistory_ray.export.options import PictureOptions, check_installed
from consistory_ray.export.records import Record
from consistory_ray.export.segmenting import TUNED, cielab, segmented, with_rim
from consistory_ray.export.selection import Wanted, select
from consistory_ray.output.storage import OutputStore
from tests.export.conftest import disc, drawn, tokens

Add = Callable[..., Any]
SPRITES = PictureOptions(sprites=True)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def made(output: OutputStore, options: PictureOptions = SPRITES) -> Record:
    (source,) = select(output, Wanted()).sources
    return make(output, Recipe(options), "a.png", source).record


def test_pixels_from_tokens_far_better_than_the_tokens() -> None:
    where = disc((60, 68), 37, side=128)
    image, mask = drawn(where), tokens(where)
    raw = iou(by_tokens(image, mask).alpha >= 0.5, where)
    cut = by_closed_form(image, mask)
    assert raw < 0.93 < 0.98 < iou(segmented(image, mask), where)
    assert iou(cut.alpha >= 0.5, where) > 0.98
    assert cut.alpha[60, 68] == 1 and cut.alpha[2, 2] == 0
    rows, columns = np.mgrid[:128, :128] + 0.5
    edge = (cut.alpha > 0.3) & ((rows - 60) ** 2 + (columns - 68) ** 2 > 36**2)
    assert edge.any() and cut.colours[edge].mean() < 0.3, "the ground's light colour is not in the outline"


def test_a_colour_that_is_in_no_example_goes_by_where_it_is() -> None:
    """Neither the subject's colours nor the ground's are like it: which is a little less unlike says nothing."""
    examples = np.random.default_rng(0).normal((50, 20, 20), 2, (200, 3))
    colours = np.array([[(50.0, 20.0, 20.0), (90.0, -80.0, 80.0), (10.0, 60.0, -60.0)]])
    known, *unknown = segmenting._surprise(colours, examples, TUNED)[0]
    assert known < 8 and unknown == pytest.approx([-TUNED.unknown] * 2)


def test_a_mask_that_is_wrong_by_some_tokens_does_not_decide() -> None:
    where = disc((60, 68), 37, side=128)
    mask = tokens(where)
    mask[2:4, 8] = True  # above the subject
    mask[7, 12:] = False  # a notch in its side
    assert iou(segmented(drawn(where), mask), where) > 0.97


def test_outlines_on_dark_ground() -> None:
    where = disc((64, 64), 40, side=128)
    pixels = np.asarray(drawn(where)).copy()
    pixels[~where] = (28, 24, 36)
    found = segmented(Image.fromarray(pixels), tokens(where))
    assert iou(found, where) > 0.95
    inner = ndimage.binary_fill_holes(np.asarray(drawn(where))[..., 0] == 222)
    assert iou(inner, where) < 0.93, "what colours alone can tell"
    lightness = cielab(pixels / 255.0)[..., 0]
    assert with_rim(inner, lightness, 2, TUNED).sum() > inner.sum()
    assert with_rim(inner, lightness, 2, replace(TUNED, dark=0)).sum() == inner.sum(), "ground that is not dark"
    assert with_rim(inner, lightness, 2, replace(TUNED, light=100)).sum() == inner.sum(), "a subject that is dark"
    assert with_rim(inner, lightness, 2, replace(TUNED, ink=0.5)).sum() == inner.sum(), "no drawing"


def test_larger_pictures_and_pictures_that_are_not_square() -> None:
    where = disc((150, 120), 75, side=288)[:, :224]
    mask = np.asarray(Image.fromarray(where).resize((14, 18), Image.Resampling.BOX)) > 0
    cut = by_closed_form(drawn(where), mask)
    assert cut.alpha.shape == (288, 224) and iou(cut.alpha >= 0.5, where) > 0.97


@pytest.mark.parametrize("full", [True, False])
def test_masks_of_everything_and_of_one_token(full: bool) -> None:
    mask = np.full((16, 16), full)
    mask[8, 8] = True
    cut = by_closed_form(drawn(disc()), mask)
    assert np.isfinite(cut.alpha).all() and cut.alpha.min() >= 0 and cut.alpha.max() <= 1


def test_a_sprite_says_where_it_was(output: OutputStore, add: Add) -> None:
    add(output, "cat", "snow")
    record = made(output)
    assert record.state == "ok" and record.box is not None
    assert np.abs(np.subtract(record.box, (18, 18, 28, 28))).max() <= 2
    assert (record.width, record.height) == record.box[2:] == (record.placed or ())[2:]


def test_a_subject_at_the_frame_is_listed(output: OutputStore, add: Add) -> None:
    where = disc((32, 4))
    add(output, "cat", "snow", image=drawn(where), mask=tokens(where))
    record = made(output)
    assert record.state == "touches_frame" and record.note == "touches the frame: left" and record.is_there


@pytest.mark.parametrize(
    ("given", "state", "told"),
    [
        ({"mask": np.zeros((16, 16), bool)}, "empty_mask", "its mask is empty"),
        ({"masked": False}, "no_mask", "the index holds no mask"),
    ],
)
def test_pictures_that_cannot_be_cut_out_are_listed(
    output: OutputStore, add: Add, given: dict[str, Any], state: str, told: str
) -> None:
    add(output, "cat", "snow", **given)
    record = made(output)
    assert record.state == state and told in record.note and not record.is_there


def test_other_processes_make_the_same(output: OutputStore, add: Add) -> None:
    add(output, "cat", "snow")
    (source,) = select(output, Wanted()).sources
    recipe = Recipe(PictureOptions(sprites=True, matting="none"))
    with makers(output, recipe, 1) as maker:
        assert maker("a.png", source) == make(output, recipe, "a.png", source)


def test_rembg_is_used_where_it_is(output: OutputStore, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(image: Image.Image) -> Image.Image:
        found = image.convert("RGBA")
        found.putalpha(Image.fromarray(disc().astype(np.uint8) * 255))
        return found

    module = ModuleType("rembg")
    module.remove = remove  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rembg", module)
    add(output, "cat", "snow", masked=False)
    record = made(output, PictureOptions(sprites=True, matting="rembg"))
    assert record.state == "ok" and record.box == (18, 18, 28, 28)


@pytest.mark.parametrize(("matting", "told"), [("rembg", "rembg[cpu]"), ("pymatting", "consistory-ray[export]")])
def test_what_is_not_installed_says_how(matting: Any, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        check_installed(PictureOptions(sprites=True, matting=matting))
    assert told in caught.value.problems[0].fix
    check_installed(PictureOptions(sprites=True, matting="none"))
    check_installed(PictureOptions())
