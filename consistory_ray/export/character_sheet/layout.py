"""From a sheet's content to pages of primitives: texts, pictures, boxes and lines, in points from the upper left.

The first page has the subject's name and words, its anchors large, its colours and what decided them; then come the
scenes as a grid that goes on for as many pages as it takes. Everything stands on one set of columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from consistory_ray.export.character_sheet.content import Colour, SheetContent, Shown
from consistory_ray.export.character_sheet.fonts import Fonts
from consistory_ray.export.character_sheet.lines import wrapped
from consistory_ray.export.character_sheet.primitives import (
    FAINT,
    GREY,
    GROUND,
    INK,
    Box,
    Paper,
    PaperPage,
    Picture,
    Text,
)

MARGIN, FOOT, GAP = 42.0, 26.0, 10.0
TITLE, LEAD, HEADING, BODY, LABEL, SMALL = 26.0, 11.0, 9.0, 7.5, 7.5, 6.2
_INSET = 0.05
"""Room around sprites in their cells, in sides of these."""
_MOST_ANCHOR_COLUMNS = 8
_LABEL_LINES, _CAPTION_LINES = 2, 2
LEADING = 1.32
"""From one baseline to the next, in font sizes."""
_BY_WIDTH = {False: (4, 5, 6), True: (6, 7, 8)}
"""Columns of scenes, upright and across: for up to 12 of them, up to 30, and more."""


def lay_out(content: SheetContent, paper: Paper, fonts: Fonts) -> list[PaperPage]:
    """The pages of a sheet, at least one."""
    setter = _Setter(content, paper, fonts)
    setter.head()
    setter.first_block()
    setter.scenes()
    setter.feet()
    return setter.pages


class _Setter:
    """Sets one sheet, from the top down; ``y`` is where the next part begins."""

    def __init__(self, content: SheetContent, paper: Paper, fonts: Fonts) -> None:
        self._content, self._paper, self._fonts = content, paper, fonts
        self.pages = [PaperPage(paper.width, paper.height)]
        self._left, self._right = MARGIN, paper.width - MARGIN
        self._bottom = paper.height - MARGIN - FOOT
        self._y = MARGIN

    @property
    def _width(self) -> float:
        return self._right - self._left

    def _add(self, *parts: Text | Box | Picture) -> None:
        self.pages[-1].parts.extend(parts)

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        width: float,
        lines: int,
        *,
        bold: bool = False,
        colour: Colour = INK,
    ) -> float:
        """Set a text whose upper edge is ``y``; returns where its lower edge is."""
        for words in wrapped(text, width, size, self._fonts, lines=lines, bold=bold):
            self._add(Text(x, y + size, words, size, bold, colour))
            y += size * LEADING
        return y

    def _rule(self, y: float, colour: Colour = FAINT) -> None:
        self._add(Box(self._left, y, self._width, 0.6, colour))

    def _heading(self, x: float, y: float, text: str, more: str = "") -> float:
        self._add(Text(x, y + HEADING, text, HEADING, bold=True))
        if more:
            at = x + self._fonts.width(text, HEADING, bold=True) + 6
            self._add(Text(at, y + HEADING, more, BODY, colour=GREY))
        return y + HEADING * LEADING + 5

    def head(self) -> None:
        """Name, words, and where it is from."""
        content = self._content
        run = wrapped(content.run, self._width * 0.3, BODY, self._fonts, lines=1)
        self._add(Text(self._right, self._y + TITLE * 0.94, run[0] if run else "", BODY, colour=GREY, right=True))
        room = self._width * 0.68
        fits = (size for size in (TITLE, 20.0, 16.0) if self._fonts.width(content.title, size, bold=True) <= room)
        y = self._text(self._left, self._y, content.title, next(fits, 16.0), room, 2, bold=True) + 1
        y = self._text(self._left, y, content.lead, LEAD, self._width, 2)
        if content.details:
            y = self._text(self._left, y + 1, content.details, LEAD, self._width, 4, colour=GREY)
        self._rule(y + 7, INK)
        self._y = y + 7 + 14

    def first_block(self) -> None:
        """Anchors, and beside them colours and facts."""
        share = 0.64 if not self._paper.is_across else 0.56
        side_x = self._left + self._width * share + 2 * GAP
        anchors_end = self._anchors(self._left, self._y, self._width * share)
        side_width = self._right - side_x
        if not self._content.anchors:
            side_x, side_width = self._left, self._width
        side_end = self._facts(side_x, self._palette(side_x, self._y, side_width), side_width)
        self._y = max(anchors_end, side_end) + 16

    def _anchors(self, x: float, y: float, width: float) -> float:
        shown = self._content.anchors
        if not shown:
            return y
        y = self._heading(x, y, "Anchors", "the pictures that define it")
        columns = 2 if len(shown) <= 2 and not self._paper.is_across else 3 if len(shown) <= 6 else 4
        while columns < _MOST_ANCHOR_COLUMNS and y + self._grid_height(shown, width, columns) > self._bottom:
            columns += 1
        return self._grid(shown, x, y, width, columns, ground=GROUND)

    def _grid_height(self, shown: Sequence[Shown], width: float, columns: int) -> float:
        cell = (width - (columns - 1) * GAP) / columns
        return -(-len(shown) // columns) * (cell + self._words_height(shown, cell) + GAP) - GAP

    def _palette(self, x: float, y: float, width: float) -> float:
        swatches = self._content.palette
        if not swatches:
            return y
        y = self._heading(x, y, "Colours")
        side, columns = 21.0, max(2, int(width // 84))
        step = width / columns
        for number, swatch in enumerate(swatches):
            left, top = x + number % columns * step, y + number // columns * (side + 6)
            self._add(Box(left, top, side, side, swatch.colour, FAINT))
            self._add(Text(left + side + 6, top + 9.5, swatch.code, LABEL, bold=True))
            self._add(Text(left + side + 6, top + 18.5, f"{100 * swatch.share:.0f} %", SMALL, colour=GREY))
        return y + -(-len(swatches) // columns) * (side + 6) + 8

    def _facts(self, x: float, y: float, width: float) -> float:
        if not self._content.facts:
            return y
        y = self._heading(x, y, "Made with")
        names = max(self._fonts.width(name, BODY) for name, _ in self._content.facts) + 8
        lines = 3
        while lines > 1 and y + self._facts_height(width - names, lines) > self._bottom:
            lines -= 1
        for name, value in self._content.facts:
            self._add(Text(x, y + BODY, name, BODY, colour=GREY))
            y = self._text(x + names, y, value, BODY, width - names, lines) + 1.5
        return y

    def _facts_height(self, width: float, lines: int) -> float:
        values = (wrapped(value, width, BODY, self._fonts, lines=lines) for _, value in self._content.facts)
        return sum(len(value) * BODY * LEADING + 1.5 for value in values)

    def scenes(self) -> None:
        """The grid of scenes, over as many pages as it takes."""
        shown = self._content.scenes
        if not shown:
            return
        few, some, many = _BY_WIDTH[self._paper.is_across]
        usual = few if len(shown) <= 12 else some if len(shown) <= 30 else many
        room = self._bottom - self._y - 11 - HEADING * LEADING - 5
        fitting = (n for n in range(usual, many + 1) if self._grid_height(shown, self._width, n) <= room)
        columns = next(fitting, usual)  # rather a little smaller than two that are left over on another page
        cell = (self._width - (columns - 1) * GAP) / columns
        words_height = self._words_height(shown, cell)
        row_height = cell + words_height
        more = f"{len(shown)}" + (f" of {len(shown) + self._content.left_out}" if self._content.left_out else "")
        if self._y + HEADING * 2 + row_height > self._bottom:
            self._turn()
        else:
            self._rule(self._y)
            self._y += 11
        self._y = self._heading(self._left, self._y, "Scenes", more)
        rest, largest = list(shown), _largest(shown)
        while rest:
            rows = max(1, int((self._bottom - self._y + GAP) // (row_height + GAP)))
            some_of_it, rest = rest[: rows * columns], rest[rows * columns :]
            self._grid(some_of_it, self._left, self._y, self._width, columns, GROUND, largest, words_height)
            if rest:
                self._turn()

    def _turn(self) -> None:
        """A new page."""
        self.pages.append(PaperPage(self._paper.width, self._paper.height))
        title = wrapped(self._content.title, self._width * 0.68, LEAD, self._fonts, lines=1, bold=True)
        self._add(Text(self._left, MARGIN + LEAD, title[0], LEAD, bold=True))
        self._rule(MARGIN + LEAD + 7, INK)
        self._y = MARGIN + LEAD + 7 + 14

    def _grid(
        self,
        shown: Sequence[Shown],
        x: float,
        y: float,
        width: float,
        columns: int,
        ground: Colour,
        largest: float | None = None,
        words_height: float | None = None,
    ) -> float:
        """Pictures in square cells, all at one scale, with their words below; returns where the last row ends."""
        cell = (width - (columns - 1) * GAP) / columns
        height = self._words_height(shown, cell) if words_height is None else words_height
        is_cut_out = any(one.image.mode == "RGBA" for one in shown)
        inset = cell * _INSET if is_cut_out else 0.0
        scale = (cell - 2 * inset) / (largest or _largest(shown))
        for number, one in enumerate(shown):
            left = x + number % columns * (cell + GAP)
            top = y + number // columns * (cell + height + GAP)
            self._add(Box(left, top, cell, cell, ground))
            drawn = one.image.width * scale, one.image.height * scale
            self._add(Picture(left + (cell - drawn[0]) / 2, top + cell - inset - drawn[1], *drawn, one.image, ground))
            self._words(one, left, top + cell + 3, cell)
        return y + -(-len(shown) // columns) * (cell + height + GAP) - GAP

    def _words_height(self, shown: Sequence[Shown], width: float) -> float:
        """Of what stands below pictures of a width, the most that any of them has."""

        def height(one: Shown) -> float:
            label = wrapped(one.label, width, LABEL, self._fonts, lines=_LABEL_LINES, bold=True)
            caption = wrapped(one.caption, width, SMALL, self._fonts, lines=_CAPTION_LINES)
            return LEADING * (len(label) * LABEL + (len(caption) + bool(one.note)) * SMALL)

        return 3 + max(map(height, shown))

    def _words(self, one: Shown, x: float, y: float, width: float) -> None:
        y = self._text(x, y, one.label, LABEL, width, _LABEL_LINES, bold=True)
        if one.caption:
            y = self._text(x, y, one.caption, SMALL, width, _CAPTION_LINES)
        self._text(x, y, one.note, SMALL, width, 1, colour=GREY)

    def feet(self) -> None:
        """The last line of every page."""
        y = self._paper.height - MARGIN + SMALL
        for number, page in enumerate(self.pages):
            made = "Pictures made by a generative model · consistory_ray"
            page.parts.append(Text(self._left, y, made, SMALL, colour=GREY))
            page.parts.append(Text(self._right, y, f"{number + 1} / {len(self.pages)}", SMALL, colour=GREY, right=True))


def _largest(shown: Sequence[Shown]) -> float:
    return float(max(max(one.image.size) for one in shown))
