"""What do the pictures and the numbers look like? Contact sheets and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

PAPER, INK = (255, 255, 255), (60, 56, 68)
GAP = 4


def _fitted(image: Image.Image, side: int) -> Image.Image:
    return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def grid_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int = 8, side: int = 144
) -> Image.Image:
    """Pictures in rows, each with its caption below in up to three lines."""
    font = ImageFont.load_default(11)
    text_height = 42
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + GAP) + GAP, rows * (side + text_height + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (image, text) in enumerate(zip(images, captions, strict=True)):
        x, y = GAP + index % columns * (side + GAP), GAP + index // columns * (side + text_height + GAP)
        sheet.paste(_fitted(image, side), (x, y))
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            lines[-1:] = [longer] if pen.textlength(longer, font=font) <= side else [lines[-1], word]
        pen.multiline_text((x, y + side + 1), "\n".join(lines[:3]), fill=INK, font=font, spacing=1)
    return sheet


def comparison_sheet(
    above: Sequence[Sequence[Image.Image]],
    below: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    labels: tuple[str, str] = ("vanilla", "ConsiStory"),
    width: int = 1200,
) -> Image.Image:
    """Subjects in bands two abreast: one row of pictures without the method, and below it one with.

    Args:
        above, below: pictures ``[subjects][scenes]``.
        titles: one per subject.
        labels: names of the two rows.
        width: of the sheet in pixels.
    """
    font, margin, title_height, between = ImageFont.load_default(15), 24, 24, 16
    scenes = len(above[0])
    side = (width - margin - between - 2 * scenes * GAP) // (2 * scenes)
    band = title_height + 2 * (side + GAP) + 10
    sheet = Image.new("RGB", (width, -(-len(above) // 2) * band), PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (vanilla, ours) in enumerate(zip(above, below, strict=True)):
        left = margin + index % 2 * (scenes * (side + GAP) + between)
        top = index // 2 * band
        pen.text((left, top + 3), titles[index], fill=INK, font=font)
        for row, images in enumerate((vanilla, ours)):
            y = top + title_height + row * (side + GAP)
            for column, image in enumerate(images):
                sheet.paste(_fitted(image, side), (left + column * (side + GAP), y))
            if index % 2 == 0:
                _write_upwards(sheet, labels[row], y, side, font)
    return sheet


def blocks_sheet(
    rows: Sequence[Sequence[Sequence[Image.Image]]], labels: Sequence[str], titles: Sequence[str], side: int = 112
) -> Image.Image:
    """Subjects in rows, each with blocks of pictures side by side.

    Args:
        rows: pictures ``[subjects][blocks][pictures]``, as many pictures in a block for every subject.
        labels: one per block, above it.
        titles: one per row, along it.
        side: of a picture in pixels.
    """
    font, margin, between = ImageFont.load_default(14), 24, 14
    lefts, x = [], margin
    for block in rows[0]:
        lefts.append(x)
        x += len(block) * (side + GAP) + between
    sheet = Image.new("RGB", (x - between, margin + len(rows) * (side + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for left, label in zip(lefts, labels, strict=True):
        pen.text((left, 4), label, fill=INK, font=font)
    for index, (blocks, title) in enumerate(zip(rows, titles, strict=True)):
        y = margin + index * (side + GAP)
        _write_upwards(sheet, title, y, side, font)
        for left, block in zip(lefts, blocks, strict=True):
            for column, image in enumerate(block):
                sheet.paste(_fitted(image, side), (left + column * (side + GAP), y))
    return sheet


def _write_upwards(sheet: Image.Image, text: str, top: int, height: int, font: Any) -> None:
    strip = Image.new("RGB", (height, 22), PAPER)
    ImageDraw.Draw(strip).text((height / 2, 11), text, fill=INK, font=font, anchor="mm")
    sheet.paste(strip.rotate(90, expand=True), (1, top))


def plot_plane(numbers: Mapping[str, Any], path: Path) -> None:
    """Identity similarity over scene accuracy, both ways of rendering, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 4), dpi=150)
    for label, suffix, colour in (("vanilla", "_vanilla", "#8a8f9a"), ("ConsiStory", "", "#d6542c")):
        x, y = 100 * numbers[f"scene_accuracy{suffix}"], numbers[f"identity_similarity{suffix}"]
        low_x, high_x = (100 * bound for bound in numbers[f"scene_accuracy{suffix}_interval"])
        low_y, high_y = numbers[f"identity_similarity{suffix}_interval"]
        spread_x, spread_y = [[max(x - low_x, 0)], [max(high_x - x, 0)]], [[max(y - low_y, 0)], [max(high_y - y, 0)]]
        axes.errorbar(x, y, xerr=spread_x, yerr=spread_y, fmt="o", color=colour, capsize=3, label=label)
    axes.set_xlabel("prompt alignment: scene recognised (%)")
    axes.set_ylabel("identity similarity within a subject")
    axes.set_xlim(min(80, axes.get_xlim()[0]), 101)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    axes.set_title(f"{numbers['subjects']} subjects, 95 % bootstrap intervals", fontsize=10)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
