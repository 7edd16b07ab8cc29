"""Steps of a picture: each changes what it says it does, and says where things are now."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consistory_ray.errors import AssetError, InputError
from consistory_ray.export.encoding import encoded, opened
from consistory_ray.export.making import Recipe, make
from consistory_ray.export.options import PictureOptions
from consistory_ray.export.pictures import Box, Picture, pad, power_of_two, scale, trim
from consistory_ray.export.selection import Source, Wanted, select
from consistory_ray.export.steps import steps
from consistory_ray.output.assets import CONSISTORY_KEY, PARAMETERS_KEY, read_metadata
from consistory_ray.output.storage import OutputStore

Add = Callable[..., Any]


@pytest.fixture
def source(output: OutputStore, add: Add) -> Source:
    add(output, "cat", "snow")
    (one,) = select(output, Wanted()).sources
    return one


@pytest.fixture
def sprite(source: Source) -> Picture:
    """20 x 10 opaque pixels at (4, 8) of a picture of 40 x 30."""
    image = Image.new("RGBA", (40, 30))
    image.paste((222, 62, 58, 255), (4, 8, 24, 18))
    whole = Box(0, 0, 40, 30)
    return Picture(source, image, whole, whole)


def test_trimmed_scaled_padded_and_on_powers_of_two(sprite: Picture) -> None:
    trimmed = trim(sprite)
    assert trimmed.image.size == (20, 10) and trimmed.box == Box(4, 8, 20, 10) and trimmed.placed == Box(0, 0, 20, 10)
    doubled = scale(trimmed, 2, None)
    assert doubled.image.size == (40, 20) and doubled.box == trimmed.box and doubled.placed == Box(0, 0, 40, 20)
    assert scale(trimmed, 1, 100).image.size == (100, 50)
    padded = pad(doubled, 3)
    assert padded.image.size == (46, 26) and padded.placed == Box(3, 3, 40, 20)
    squared = power_of_two(padded)
    assert squared.image.size == (64, 32) and squared.placed == Box(12, 6, 40, 20) and squared.box == trimmed.box
    assert squared.image.getchannel("A").getbbox() == squared.placed.corners
    assert power_of_two(squared).image.size == (64, 32)


def test_colours_of_transparent_pixels_do_not_bleed_into_scaled_edges(sprite: Picture) -> None:
    small = np.asarray(scale(sprite, 0.37, None).image)
    seen = small[..., 3] > 16
    assert seen.any() and np.abs(small[seen][:, :3].astype(int) - (222, 62, 58)).max() <= 8


def test_nothing_left_and_far_too_large_are_failures_of_the_picture(sprite: Picture) -> None:
    with pytest.raises(AssetError, match="nothing is left"):
        trim(sprite.changed(Image.new("RGBA", (8, 8))))
    with pytest.raises(AssetError, match="more than 16384"):
        scale(sprite, 1000, None)


def test_the_order_of_steps() -> None:
    options = PictureOptions(sprites=True, scale=2, padding=1, power_of_two=True)
    names = [getattr(step, "func", step).__name__ for step in steps(options, [trim])]
    assert names == ["cut_out", "trim", "scale", "pad", "power_of_two", "trim"]
    assert steps(PictureOptions()) == ()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"scale": 0}, "--scale"),
        ({"size": 0}, "--size"),
        ({"size": 10, "scale": 2}, "--size"),
        ({"padding": 2}, "--padding"),
        ({"power_of_two": True}, "--power-of-two"),
        ({"matting": "magic"}, "--matting"),
        ({"ending": "gif"}, "--format"),
    ],
)
def test_options_that_cannot_be_used(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        PictureOptions(**given)
    assert [problem.path for problem in caught.value.problems] == [field]


def test_a_digest_tells_what_makes_other_files_apart_and_nothing_else() -> None:
    assert PictureOptions(matting="none").digest() == PictureOptions().digest(), "nothing is cut out"
    others = [PictureOptions(sprites=True), PictureOptions(size=8), PictureOptions(further=(("mark", "1"),))]
    assert len({one.digest() for one in (PictureOptions(), *others)}) == 4


def test_a_picture_that_is_not_changed_stays_as_it_is_to_the_byte(output: OutputStore, source: Source) -> None:
    data = output.read(source.path)
    assert make(output, Recipe(PictureOptions()), "a.png", source).data == data
    assert make(output, Recipe(PictureOptions(scale=1, trim=False)), "a.png", source).data == data


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_what_a_file_says_of_itself(output: OutputStore, source: Source, ending: str) -> None:
    for metadata in (True, False):  # where it comes from is told in any case
        options = PictureOptions(size=32, ending=ending, metadata=metadata)
        made = make(output, Recipe(options), f"a.{ending}", source)
        assert made.data is not None and made == make(output, Recipe(options), f"a.{ending}", source), "the same bytes"
        assert (source.prompt.encode() in made.data or source.prompt.encode("utf-16-be") in made.data) == metadata
        with Image.open(io.BytesIO(made.data)) as image:
            assert image.size == (32, 32) and image.format == ending.upper()
            if ending == "png" and metadata:
                assert {PARAMETERS_KEY, CONSISTORY_KEY} <= set(image.text)
                assert read_metadata(made.data)["asset_id"] == source.asset_id  # type: ignore[index]


def test_webp_is_lossless_where_something_is_seen(sprite: Picture) -> None:
    with Image.open(io.BytesIO(encoded(sprite, PictureOptions(ending="webp")))) as image:
        assert image.mode == "RGBA" and np.array_equal(
            np.asarray(image)[8:18, 4:24], np.asarray(sprite.image)[8:18, 4:24]
        )


def test_bytes_that_are_another_picture(source: Source) -> None:
    with pytest.raises(AssetError, match="not the picture that was indexed"):
        opened(source, b"something else")
