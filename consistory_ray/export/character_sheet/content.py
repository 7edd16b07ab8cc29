"""What stands on a character sheet: pictures, colours and words, before anything is laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Swatch:
    """One of a subject's main colours, sRGB, and the share of its pixels that are nearest to it."""

    colour: Colour
    share: float

    @property
    def code(self) -> str:
        """As ``#1f9a6c``."""
        return "#{:02x}{:02x}{:02x}".format(*self.colour)


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture with what is written below it.

    Attributes:
        image: RGB, or RGBA where it was cut out.
        label: its name.
        caption: what it shows; may be empty.
        note: small print, as its seed.
    """

    image: Image
    label: str
    caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class SheetContent:
    """A character sheet's content.

    Attributes:
        title: the subject's id.
        run: the name of what it was rendered in.
        lead: what the subject is called, as in prompts.
        details: what is to be seen of it; may be empty.
        anchors: the pictures that define it, or that were given.
        scenes: its other pictures.
        palette: its main colours, the most frequent first.
        facts: names and values of what else has decided its pictures.
        left_out: how many further scenes there are.
    """

    title: str
    run: str
    lead: str
    details: str
    anchors: tuple[Shown, ...]
    scenes: tuple[Shown, ...]
    palette: tuple[Swatch, ...]
    facts: tuple[tuple[str, str], ...]
    left_out: int = 0
