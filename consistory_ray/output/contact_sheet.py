"""Contact sheets: one labelled PNG with a row per subject, for a README or a quick look."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from consistory_ray.errors import InputError, Problem
from consistory_ray.output.assets import open_picture
from consistory_ray.output.index.index import Output, current_index, read_index
from consistory_ray.output.storage import MissingFileError, UnfitFileError, as_store

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Asset

CONTACT_SHEET = "gallery/contact-sheet.png"
_PAPER, _INK, _SOFT, _EMPTY = "#ffffff", "#1d1f23", "#5f636b", "#e9e7e2"
_MAX_PIXELS = 60_000_000


@dataclass(frozen=True)
class SheetRow:
    """One row of a contact sheet.

    Attributes:
        label: written at the left, or above the row when the sheet has no label column.
        pictures: caption and picture of each cell; a picture of None leaves an empty cell.
        note: smaller text under the label.
    """

    label: str
    pictures: Sequence[tuple[str, Image.Image | None]]
    note: str = ""


def draw_contact_sheet(
    rows: Sequence[SheetRow], *, cell: int = 160, gap: int = 8, captions: bool = True
) -> Image.Image:
    """Draw rows of pictures with their labels.

    Args:
        rows: from top to bottom; shorter rows end early.
        cell: side of a square cell in pixels; pictures are fitted into it, smaller ones enlarged.
        gap: pixels between cells.
        captions: whether to write each picture's caption below it.

    Raises:
        InputError: there is nothing to draw, or the sheet would be larger than 60 megapixels.
    """
    columns = max((len(row.pictures) for row in rows), default=0)
    if columns == 0:
        raise InputError("a contact sheet needs pictures", [Problem("rows", "none", "render something first")])
    font, small = ImageFont.load_default(max(12, cell // 10)), ImageFont.load_default(max(10, cell // 13))
    label_width = _label_width(rows, font, small, cell)
    caption_height = _caption_lines(rows, small, cell) * _line_height(small) + 6 if captions else 0
    width = label_width + columns * (cell + gap) + gap
    height = len(rows) * (cell + caption_height + gap) + gap
    if width * height > _MAX_PIXELS:
        fix = "choose fewer subjects, fewer columns, or a smaller cell"
        raise InputError("the contact sheet would be too large", [Problem("cell", f"{width} x {height} pixels", fix)])
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        top = gap + index * (cell + caption_height + gap)
        _draw_label(draw, row, (gap, top), label_width - 2 * gap, cell, font, small)
        for column, (caption, picture) in enumerate(row.pictures):
            left = label_width + gap + column * (cell + gap)
            _draw_cell(sheet, draw, picture, (left, top), cell)
            if captions:
                lines = _wrap(caption, small, cell, 2)
                draw.multiline_text((left, top + cell + 3), "\n".join(lines), _SOFT, small, spacing=2)
    return sheet


def contact_sheet(
    output: Output,
    assets: Iterable[Asset] | None = None,
    *,
    max_subjects: int = 12,
    max_columns: int = 8,
    cell: int = 160,
    path: str = CONTACT_SHEET,
) -> str:
    """Draw an output's pictures, a row per subject, anchors first, and write the PNG.

    Args:
        output: the output.
        assets: the plan's pictures, which give choice and order; all of the index, by name, without it.
        max_subjects, max_columns: how many rows and columns at most; the first ones are taken.
        cell: side of a cell in pixels.
        path: where to write it, below the output.

    Returns:
        ``path``.

    Raises:
        InputError: there are no pictures, or the sheet would be too large.
        StorageError: the storage failed, or the index cannot be read.
    """
    store = as_store(output)
    if assets is None:
        records = read_index(store).to_pylist()
    else:
        order = {asset.asset_id: place for place, asset in enumerate(assets)}
        records = sorted(current_index(store, order).to_pylist(), key=lambda record: order[record["asset_id"]])
    subjects: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        subjects.setdefault(record["subject"], []).append(record)
    chosen = [(subject, own[:max_columns]) for subject, own in list(subjects.items())[:max_subjects]]

    def load(record: dict[str, Any]) -> Image.Image | None:
        return _load(store.read, record, cell)

    with ThreadPoolExecutor(8) as pool:
        rows = [
            SheetRow(subject, list(zip((record["scene"] for record in own), pool.map(load, own), strict=True)))
            for subject, own in chosen
        ]
    buffer = io.BytesIO()
    draw_contact_sheet(rows, cell=cell).save(buffer, "PNG", optimize=True)
    store.write_atomic(path, buffer.getvalue())
    return path


def _load(read: Callable[[str], bytes], record: dict[str, Any], cell: int) -> Image.Image | None:
    """The record's picture, scaled to a cell, or None if it failed, is missing or broken."""
    if record["status"] != "ok":
        return None
    try:
        data = read(record["path"])
    except (MissingFileError, UnfitFileError):
        return None
    try:
        with open_picture(data) as image:
            return _fitted(image.convert("RGB"), cell)
    except Exception:  # see open_picture
        return None


def _fitted(image: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image | None, corner: tuple[int, int], cell: int
) -> None:
    left, top = corner
    if picture is None:
        draw.rectangle((left, top, left + cell - 1, top + cell - 1), _EMPTY)
        draw.line((left + cell // 3, top + cell // 3, left + 2 * cell // 3, top + 2 * cell // 3), _SOFT, 2)
        draw.line((left + 2 * cell // 3, top + cell // 3, left + cell // 3, top + 2 * cell // 3), _SOFT, 2)
        return
    fitted = _fitted(picture.convert("RGB"), cell)
    sheet.paste(fitted, (left + (cell - fitted.width) // 2, top + (cell - fitted.height) // 2))


def _caption_lines(rows: Sequence[SheetRow], font: Any, cell: int) -> int:
    return max(len(_wrap(caption, font, cell, 2)) for row in rows for caption, _ in row.pictures)


def _label_width(rows: Sequence[SheetRow], font: Any, small: Any, cell: int) -> int:
    """Room for the widest label or note, at most one and a half cells; none when no row has a label."""
    widths = [font.getlength(word) for row in rows for word in row.label.splitlines()]
    widths += [small.getlength(line) for row in rows for line in row.note.splitlines()]
    return min(int(max(widths)) + 20, cell * 3 // 2) if widths else 0


def _draw_label(
    draw: ImageDraw.ImageDraw, row: SheetRow, corner: tuple[int, int], width: int, cell: int, font: Any, small: Any
) -> None:
    lines = _wrap(row.label, font, width, 3)
    notes = _wrap(row.note, small, width, 3)
    height = len(lines) * _line_height(font) + len(notes) * _line_height(small)
    left, y = corner[0], corner[1] + max(0, (cell - height) // 2)
    for text, face, ink in [(line, font, _INK) for line in lines] + [(line, small, _SOFT) for line in notes]:
        draw.text((left, y), text, ink, face)
        y += _line_height(face)


def _line_height(font: Any) -> int:
    ascent, descent = font.getmetrics()
    return int(ascent + descent)


def _wrap(text: str, font: Any, width: int, lines: int) -> list[str]:
    """``text`` in at most so many lines of so many pixels, cut with an ellipsis; breaks at spaces and hyphens."""
    if not text:
        return []
    wrapped = [""]
    for word in text.replace("-", "-\0").replace(" ", " \0").split("\0"):
        if font.getlength((wrapped[-1] + word).rstrip()) <= width or not wrapped[-1]:
            wrapped[-1] += word
        else:
            wrapped.append(word)
    cut = wrapped[:lines]
    if len(wrapped) > lines:
        cut[-1] = cut[-1].rstrip() + "…"
    return [_shorten(line.rstrip(), font, width) for line in cut]


def _shorten(line: str, font: Any, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
