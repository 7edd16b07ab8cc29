"""What pages of a sheet are made of: texts, pictures and boxes, in points from the upper left corner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consistory_ray.export.character_sheet.content import Colour

if TYPE_CHECKING:
    from PIL.Image import Image

INK, GREY, FAINT, GROUND = (24, 26, 30), (104, 108, 116), (206, 208, 212), (245, 245, 243)
_PAPERS = {"a4": (595.28, 841.89), "letter": (612.0, 792.0)}


@dataclass(frozen=True, slots=True)
class Text:
    """Words on one line: x of their beginning, or end if ``right``, and y of the baseline."""

    x: float
    y: float
    words: str
    size: float
    bold: bool = False
    colour: Colour = INK
    right: bool = False


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, filled, with or without a line around it."""

    x: float
    y: float
    width: float
    height: float
    fill: Colour
    line: Colour | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, drawn into a rectangle of its own proportions, over a plain ground."""

    x: float
    y: float
    width: float
    height: float
    image: Image
    ground: Colour = GROUND


@dataclass
class PaperPage:
    """A page: its size in points, and what is on it, in the order in which it is drawn."""

    width: float
    height: float
    parts: list[Text | Box | Picture] = field(default_factory=list)

    @property
    def words(self) -> str:
        """All of its texts."""
        return "\n".join(part.words for part in self.parts if isinstance(part, Text))


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper's size in points."""

    width: float
    height: float

    @property
    def is_across(self) -> bool:
        """Whether it is wider than high."""
        return self.width > self.height


def paper_named(name: str) -> Paper:
    """``a4``, ``letter``, or one of them with ``-landscape``."""
    width, height = _PAPERS[name.removesuffix("-landscape")]
    return Paper(height, width) if name.endswith("-landscape") else Paper(width, height)
