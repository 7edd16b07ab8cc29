"""Rectangles to pages: packed by ``rectpack``, or on a fixed grid. Pure arithmetic, the same for the same rectangles.

A rectangle of ``w`` x ``h`` pixels takes ``w + 2 extrude`` by ``h + 2 extrude``, and at least ``padding`` pixels lie
between any two of those: what a renderer that filters textures picks up beside a sprite is its own border, repeated, or
nothing. No padding is left along a page's edges, where there is no neighbour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Literal

from consistory_ray.errors import InputError, Problem

Arrangement = Literal["packed", "grid"]
Size = tuple[int, int]
LARGEST_PAGE = 16384
"""Pixels along a side that no graphics card's textures exceed."""
_MANY = 400
"""From so many rectangles on a page, MaxRects, which compares every free space with every other, takes seconds."""


@dataclass(frozen=True, slots=True)
class PageRules:
    """What pages are like.

    Attributes:
        arrangement: ``packed`` closely, or ``grid``: cells of one size, in the order of names.
        size: pixels along a page's longer side, at most.
        padding: empty pixels between two rectangles, at least.
        extrude: how often a rectangle's border pixels are repeated around it.
        power_of_two: whether a page's sides are powers of two; else they end with the last rectangle.
        rotate: whether a rectangle may be turned by a quarter; never on a grid.
    """

    arrangement: Arrangement = "packed"
    size: int = 2048
    padding: int = 2
    extrude: int = 1
    power_of_two: bool = True
    rotate: bool = False


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a rectangle lies on its page: its upper left corner, without what is extruded.

    Attributes:
        name: the rectangle's.
        x, y: pixels from the page's left and upper edge.
        width, height: of the rectangle as it was given; on the page they are exchanged where it is ``rotated``.
    """

    name: str
    x: int
    y: int
    width: int
    height: int
    rotated: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page's size in pixels, and what lies on it, in the order of names."""

    width: int
    height: int
    placed: tuple[Placed, ...] = field(default=())


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts ``walk-2`` before ``walk-10``."""
    parts = re.split(r"([0-9]+)", name)
    return (*((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part),)


def check_rules(rules: PageRules) -> None:
    """Whether pages can be like that.

    Raises:
        InputError: they cannot; every problem names its option.
    """
    problems = []
    if not 1 <= rules.size <= LARGEST_PAGE:
        problems.append(Problem("--atlas-size", str(rules.size), f"give 1 to {LARGEST_PAGE} pixels"))
    elif rules.power_of_two and rules.size & (rules.size - 1):
        near = 1 << (rules.size.bit_length() - 1)
        fix = f"give a power of two, as {near} or {2 * near}, or --atlas-any-size"
        problems.append(Problem("--atlas-size", str(rules.size), fix))
    for option, value in (("--atlas-padding", rules.padding), ("--atlas-extrude", rules.extrude)):
        if not 0 <= value <= 64:
            problems.append(Problem(option, str(value), "give 0 to 64 pixels"))
    if rules.rotate and rules.arrangement == "grid":
        problems.append(Problem("--atlas-rotate", "grid", "leave it out, cells of a grid are not turned"))
    if problems:
        raise InputError("there can be no such atlas", problems)


def pack(sizes: Mapping[str, Size], rules: PageRules | None = None) -> list[Page]:
    """Lay rectangles out on as few pages as the heuristic (MaxRects, best short side) needs.

    Args:
        sizes: width and height in pixels by name, each at least 1. Their order does not matter.
        rules: what pages are like.

    Returns:
        Pages, none of them empty; every rectangle lies on exactly one.

    Raises:
        InputError: a rectangle is larger than a page, or there are no pages like that.
    """
    rules = rules or PageRules()
    check_rules(rules)
    _refuse_large(sizes, rules)
    if not sizes:
        return []
    return _on_a_grid(sizes, rules) if rules.arrangement == "grid" else _packed(sizes, rules)


def _refuse_large(sizes: Mapping[str, Size], rules: PageRules) -> None:
    room = rules.size - 2 * rules.extrude
    large = sorted((name for name, size in sizes.items() if max(size) > room), key=natural)
    if large:
        width, height = sizes[large[0]]
        around = f" and {rules.extrude} extruded around it" if rules.extrude else ""
        needed = max(width, height) + 2 * rules.extrude
        larger = 1 << (needed - 1).bit_length()
        more = f" (and {len(large) - 1} more)" if len(large) > 1 else ""
        fix = f"give at least {larger if rules.power_of_two else needed}, or smaller sprites with --scale"
        message = f"{large[0]}{more} does not fit on a page: it has {width}x{height} pixels{around}"
        raise InputError(message, [Problem("--atlas-size", str(rules.size), fix)])


def _on_a_grid(sizes: Mapping[str, Size], rules: PageRules) -> list[Page]:
    """Cells of the largest rectangle's size, row by row."""
    names = sorted(sizes, key=natural)
    cell = (
        max(width for width, _ in sizes.values()) + 2 * rules.extrude,
        max(height for _, height in sizes.values()) + 2 * rules.extrude,
    )
    most_columns, most_rows = ((rules.size + rules.padding) // (side + rules.padding) for side in cell)
    pages = []
    for start in range(0, len(names), most_columns * most_rows):
        some = names[start : start + most_columns * most_rows]
        columns = _columns(len(some), cell, most_columns, most_rows)
        corners = [
            (n % columns * (cell[0] + rules.padding), n // columns * (cell[1] + rules.padding))
            for n in range(len(some))
        ]
        placed = [
            Placed(name, x + rules.extrude, y + rules.extrude, *sizes[name])
            for name, (x, y) in zip(some, corners, strict=True)
        ]
        ends = tuple(max(corner[axis] for corner in corners) + cell[axis] for axis in (0, 1))
        pages.append(Page(*_page_size((ends[0], ends[1]), rules), tuple(placed)))
    return pages


def _columns(count: int, cell: Size, most_columns: int, most_rows: int) -> int:
    """As many columns as make the page nearly square, and no more rows than there is room for."""
    square = max(1, round(sqrt(count * cell[1] / cell[0])))
    return min(max(square, -(-count // most_rows)), most_columns)


def _packed(sizes: Mapping[str, Size], rules: PageRules) -> list[Page]:
    # large ones first, where there is still room for them; names make the order one of its own
    names = sorted(sizes, key=lambda name: (-max(sizes[name]), -min(sizes[name]), natural(name)))
    pages = []
    while names:
        page = _first_that_holds(names, sizes, rules)
        on_it = {placed.name for placed in page.placed}
        names = [name for name in names if name not in on_it]
        pages.append(page)
    return pages


def _first_that_holds(names: Sequence[str], sizes: Mapping[str, Size], rules: PageRules) -> Page:
    """The smallest page that holds all of these; a full one, with what fits, where none does."""
    area = sum(width * height for width, height in (_taken(sizes[name], rules) for name in names))
    placed: list[Placed] = []
    for width, height in _growing(area, rules):
        placed = _fill((width, height), names, sizes, rules, all_or_none=min(width, height) < rules.size)
        if len(placed) == len(names):
            break
    on_page = tuple(sorted(placed, key=lambda one: natural(one.name)))
    return Page(*_page_size(_ends(on_page, rules), rules), on_page)


def _growing(area: int, rules: PageRules) -> Iterator[Size]:
    """Sizes of pages to try, by area, up to the largest: squares and double squares, or squares in finer steps."""
    if not rules.power_of_two:
        side = max(1, int(sqrt(area)) - rules.padding)
        while side < rules.size:
            yield side, side
            side = side * 21 // 20 + 1
    else:
        side = 1
        while side < rules.size:
            for width in (side, 2 * side):
                if (width + rules.padding) * (side + rules.padding) >= area:
                    yield width, side
            side *= 2
    yield rules.size, rules.size


def _taken(size: Size, rules: PageRules) -> Size:
    """What a rectangle takes away from a page that is ``padding`` wider and higher than it is."""
    more = 2 * rules.extrude + rules.padding
    return size[0] + more, size[1] + more


def _fill(
    page: Size, names: Sequence[str], sizes: Mapping[str, Size], rules: PageRules, *, all_or_none: bool
) -> list[Placed]:
    """What fits on one page, in the order of ``names``; with ``all_or_none`` nothing, unless everything does."""
    from rectpack import MaxRectsBssf, SkylineBl

    width, height = page[0] + rules.padding, page[1] + rules.padding
    taken = {name: _taken(sizes[name], rules) for name in names}
    mean = sum(one[0] * one[1] for one in taken.values()) / len(names)
    algorithm = MaxRectsBssf if min(len(names), width * height / mean) < _MANY else SkylineBl
    packer = algorithm(width, height, rot=rules.rotate)
    placed, refused = [], set[Size]()
    for name in names:
        if taken[name] in refused:  # a page only gets fuller
            continue
        found = packer.add_rect(*taken[name])
        if found is None:
            if all_or_none:
                return []
            refused.add(taken[name])
            continue
        turned = (found.width, found.height) != taken[name]
        placed.append(Placed(name, found.x + rules.extrude, found.y + rules.extrude, *sizes[name], turned))
    return placed


def _ends(placed: Sequence[Placed], rules: PageRules) -> Size:
    rights = [one.x + (one.height if one.rotated else one.width) for one in placed]
    lows = [one.y + (one.width if one.rotated else one.height) for one in placed]
    return max(rights) + rules.extrude, max(lows) + rules.extrude


def _page_size(ends: Size, rules: PageRules) -> Size:
    """The size of a page on which everything ends there."""
    if not rules.power_of_two:
        return ends
    return 1 << (ends[0] - 1).bit_length(), 1 << (ends[1] - 1).bit_length()
