"""Pages of a sheet as files: one PDF with its words as text, and one PNG of 300 dots per inch for each page.

The same pages make the same bytes: nothing tells when they were written.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from consistory_ray.export.character_sheet.content import Colour
from consistory_ray.export.character_sheet.fonts import Fonts
from consistory_ray.export.character_sheet.primitives import Box, PaperPage, Picture, Text
from consistory_ray.pictures.provenance import PACKET, XMP_KEYWORD

DPI = 300
_JPEG_QUALITY = 93


def as_pdf(pages: Sequence[PaperPage], fonts: Fonts, title: str, keywords: str = "") -> bytes:
    """A PDF file; pictures as JPEG of 300 dots per inch, of fonts the letters that are used."""
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    file = io.BytesIO()
    canvas = Canvas(file, pageCompression=1, invariant=1)
    canvas.setTitle(title)
    canvas.setSubject("Character sheet; its pictures were made by a generative model")
    canvas.setCreator("consistory_ray")
    canvas.setKeywords(keywords)
    for page in pages:
        canvas.setPageSize((page.width, page.height))
        for part in page.parts:
            if isinstance(part, Text):
                canvas.setFont(fonts.name(bold=part.bold), part.size)
                canvas.setFillColorRGB(*_shares(part.colour))
                draw = canvas.drawRightString if part.right else canvas.drawString
                draw(part.x, page.height - part.y, part.words)
            elif isinstance(part, Box):
                canvas.setFillColorRGB(*_shares(part.fill))
                canvas.setStrokeColorRGB(*_shares(part.line or part.fill))
                canvas.setLineWidth(0.4)
                rectangle = (part.x, page.height - part.y - part.height, part.width, part.height)
                canvas.rect(*rectangle, stroke=int(part.line is not None), fill=1)
            else:
                encoded = io.BytesIO()
                _printed(part, DPI).save(encoded, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
                y = page.height - part.y - part.height
                canvas.drawImage(ImageReader(encoded), part.x, y, part.width, part.height)
        canvas.showPage()
    canvas.save()
    return file.getvalue()


def as_png(page: PaperPage, fonts: Fonts, dpi: int = DPI) -> bytes:
    """A page as PNG, white paper, that says its size in print and that a model made its pictures."""

    def dots(points: float) -> int:
        return round(points * dpi / 72)

    image = Image.new("RGB", (dots(page.width), dots(page.height)), "white")
    pen = ImageDraw.Draw(image)
    for part in page.parts:
        if isinstance(part, Text):
            font = _font(fonts.path(bold=part.bold), part.size * dpi / 72)
            place = (part.x * dpi / 72, part.y * dpi / 72)
            pen.text(place, part.words, part.colour, font, anchor="rs" if part.right else "ls")
        elif isinstance(part, Box):
            left, upper = dots(part.x), dots(part.y)
            right, lower = dots(part.x + part.width) - 1, dots(part.y + part.height) - 1
            rectangle = (left, upper, max(right, left), max(lower, upper))
            pen.rectangle(rectangle, part.fill, part.line, width=2 if part.line else 0)
        else:
            image.paste(_printed(part, dpi), (dots(part.x), dots(part.y)))
    file, info = io.BytesIO(), PngInfo()
    info.add_itxt(XMP_KEYWORD, PACKET)
    image.save(file, "PNG", dpi=(dpi, dpi), pnginfo=info, compress_level=6)
    return file.getvalue()


def _printed(part: Picture, dpi: int) -> Image.Image:
    """A picture over its ground, with as many pixels as are printed: viewers enlarge small ones badly."""
    size = max(1, round(part.width * dpi / 72)), max(1, round(part.height * dpi / 72))
    smaller = size[0] < part.image.width
    how = Image.Resampling.LANCZOS if smaller else Image.Resampling.BICUBIC  # which rings less around hard edges
    if part.image.mode != "RGBA":
        return part.image.convert("RGB").resize(size, how)
    ground = Image.new("RGBA", part.image.size, (*part.ground, 255))
    ground.alpha_composite(part.image)
    return ground.convert("RGB").resize(size, how)


def _shares(colour: Colour) -> tuple[float, float, float]:
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


@lru_cache(maxsize=32)
def _font(path: Path, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
