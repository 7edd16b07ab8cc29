"""Pages of rectangles: nothing overlaps, nothing is lost, and the order in which they are given does not matter."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consistory_ray.errors import InputError
from consistory_ray.export.packing import Page, PageRules, Placed, natural, pack

names = st.text("abcXYZ0189-_/é", min_size=1, max_size=8)
sizes = st.dictionaries(names, st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=40)


@st.composite
def rules(draw: st.DrawFn) -> PageRules:
    arrangement = draw(st.sampled_from(["packed", "grid"]))
    power_of_two = draw(st.booleans())
    return PageRules(
        arrangement,
        draw(st.sampled_from([128, 256]) if power_of_two else st.integers(100, 300)),
        draw(st.integers(0, 8)),
        draw(st.integers(0, 4)),
        power_of_two,
        arrangement == "packed" and draw(st.booleans()),
    )


def covered(one: Placed, extrude: int) -> tuple[int, int, int, int]:
    """Left, upper, right and lower end of what a rectangle takes, what is extruded included."""
    width, height = (one.height, one.width) if one.rotated else (one.width, one.height)
    return one.x - extrude, one.y - extrude, one.x + width + extrude, one.y + height + extrude


def assert_sound(pages: list[Page], given_sizes: dict[str, tuple[int, int]], how: PageRules) -> None:
    assert sorted(one.name for page in pages for one in page.placed) == sorted(given_sizes), "each exactly once"
    for page in pages:
        assert page.placed and max(page.width, page.height) <= how.size
        if how.power_of_two:
            assert page.width.bit_count() == page.height.bit_count() == 1
        for one in page.placed:
            assert (one.width, one.height) == given_sizes[one.name]
            left, upper, right, lower = covered(one, how.extrude)
            assert min(left, upper) >= 0 and right <= page.width and lower <= page.height
        for one, other in combinations(page.placed, 2):
            a, b = covered(one, how.extrude), covered(other, how.extrude)
            gaps = (b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])
            assert max(gaps) >= how.padding, f"{one} and {other} are nearer than {how.padding}"


@settings(max_examples=150, deadline=None)
@given(sizes, rules(), st.randoms(use_true_random=False))
def test_pages_are_sound_whatever_the_order(
    given_sizes: dict[str, tuple[int, int]], how: PageRules, chance: st.DataObject
) -> None:
    pages = pack(given_sizes, how)
    assert_sound(pages, given_sizes, how)
    shuffled = list(given_sizes.items())
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert pack(dict(shuffled), how) == pages
    if not how.rotate:
        assert not any(one.rotated for page in pages for one in page.placed)


def test_equal_rectangles_fill_a_page_to_the_last_pixel() -> None:
    for arrangement in ("packed", "grid"):
        how = PageRules(arrangement, 256, 0, 0)  # type: ignore[arg-type]
        (page,) = pack({f"s-{n}": (32, 32) for n in range(64)}, how)
        assert (page.width, page.height) == (256, 256), arrangement
        pages = pack({f"s-{n}": (32, 32) for n in range(65)}, how)
        assert [len(one.placed) for one in pages] == [64, 1], arrangement


def test_a_grid_has_cells_of_one_size_in_the_order_of_names() -> None:
    how = PageRules("grid", 64, 2, 1)
    (page,) = pack({f"walk-{n}": (8, 10) for n in (10, 2, 1, 3)}, how)
    assert [(one.name, one.x, one.y) for one in page.placed] == [
        ("walk-1", 1, 1),
        ("walk-2", 13, 1),
        ("walk-3", 1, 15),
        ("walk-10", 13, 15),
    ]
    assert (page.width, page.height) == (32, 32)
    assert pack({"one": (8, 10)}, PageRules("grid", 64, 2, 1, power_of_two=False))[0].width == 10


def test_pages_are_used_before_there_is_another() -> None:
    given_sizes = {f"{n}": (20 + n % 13, 20 + n % 17) for n in range(400)}
    for padding in (0, 20):
        pages = pack(given_sizes, PageRules(size=256, padding=padding, extrude=0))
        needed = sum((width + padding) * (height + padding) for width, height in given_sizes.values())
        assert (len(pages) - 1) * (256 + padding) ** 2 < 1.15 * needed, "full pages are nearly full"
    many = pack({f"{n}": (8 + n % 5, 8 + n % 7) for n in range(1500)}, PageRules(size=512))
    assert_sound(many, {f"{n}": (8 + n % 5, 8 + n % 7) for n in range(1500)}, PageRules(size=512))
    assert len(many) == 2


def test_turning_saves_a_page() -> None:
    given_sizes = {"high": (10, 60), **{f"wide-{n}": (60, 10) for n in range(5)}}
    how = PageRules(size=64, padding=0, extrude=0)
    assert len(pack(given_sizes, how)) == 2
    (page,) = pack(given_sizes, PageRules(size=64, padding=0, extrude=0, rotate=True))
    assert [one.name for one in page.placed if one.rotated] in (["high"], [f"wide-{n}" for n in range(5)])


@pytest.mark.parametrize("arrangement", ["packed", "grid"])
def test_what_is_larger_than_a_page_is_named(arrangement: str) -> None:
    how = PageRules(arrangement, 128)  # type: ignore[arg-type]
    assert len(pack({"large": (126, 126)}, how)) == 1
    with pytest.raises(InputError, match=r"moss/large does not fit on a page: it has 127x4 pixels and 1 extruded"):
        pack({"moss/large": (127, 4), "small": (4, 4)}, how)
    with pytest.raises(InputError, match=r"give at least 1024.*\(got 128\)"):
        pack({"a": (600, 4), "b": (4, 600)}, how)
    assert len(pack({"large": (600, 4)}, PageRules(size=1024))) == 1


@pytest.mark.parametrize(
    ("how", "field"),
    [
        (PageRules(size=0), "--atlas-size"),
        (PageRules(size=20000), "--atlas-size"),
        (PageRules(size=3000), "give a power of two, as 2048 or 4096"),
        (PageRules(padding=-1), "--atlas-padding"),
        (PageRules(extrude=65), "--atlas-extrude"),
        (PageRules("grid", rotate=True), "--atlas-rotate"),
    ],
)
def test_rules_that_cannot_be(how: PageRules, field: str) -> None:
    with pytest.raises(InputError, match=field):
        pack({}, how)


def test_nothing_takes_no_page() -> None:
    assert pack({}) == []


def test_numbers_in_names_are_numbers() -> None:
    given_names = ["b", "a-10", "a-2", "a", "2", "10", "a-02"]
    assert sorted(given_names, key=natural) == ["2", "10", "a", "a-02", "a-2", "a-10", "b"]
