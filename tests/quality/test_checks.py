"""Checks of single pictures: what they find, and what happens when they fail."""

from __future__ import annotations

import pytest
from PIL import Image

from consistory_ray.errors import AssetError, InputError
from consistory_ray.quality.checks import finding, load_checks

PICTURE = Image.new("RGBA", (4, 4), (250, 0, 0, 255))


def harmless(image: Image.Image) -> str | None:
    assert image.mode == "RGB"
    return None


def red(image: Image.Image) -> str | None:
    return " too red " if image.getpixel((0, 0))[0] > 200 else None


def test_the_first_finding_counts() -> None:
    assert finding([harmless], ["a:harmless"], PICTURE) is None
    assert finding([harmless, red, red], ["a:harmless", "a:red", "b:red"], PICTURE) == "a:red: too red"


@pytest.mark.parametrize(("answer", "told"), [(True, "True"), ("", "''"), (1, "1")])
def test_an_answer_that_says_nothing_is_not_taken_for_harmless(answer: object, told: str) -> None:
    with pytest.raises(AssetError, match=f"the check a:b must return a reason or None, got {told}"):
        finding([lambda image: answer], ["a:b"], PICTURE)  # type: ignore[list-item, return-value]


def test_a_check_that_fails_says_so() -> None:
    with pytest.raises(AssetError, match="the check a:b failed: ZeroDivisionError"):
        finding([lambda image: str(1 / 0)], ["a:b"], PICTURE)


def test_checks_are_found_by_name() -> None:
    (found,) = load_checks(["operator:itemgetter"])
    assert found.__name__ == "itemgetter"
    for name in ("operator:nothing", "nowhere:check", "os:sep"):
        with pytest.raises(InputError) as caught:
            load_checks(["operator:itemgetter", name])
        assert caught.value.problems[0].path == "checks[1]"
