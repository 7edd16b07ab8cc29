"""Fonts of a sheet: DejaVu Sans where the machine has it, else Bitstream Vera, which reportlab brings along.

Both look alike; DejaVu has the letters of most European scripts. Any other TrueType font can be given.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from consistory_ray.errors import InputError, Problem

_PLACES = ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts", "~/.fonts", "~/.local/share/fonts")
_BESIDE = (("matplotlib", "mpl-data/fonts/ttf"), ("reportlab", "fonts"))
_PAIRS = (("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"), ("Vera.ttf", "VeraBd.ttf"))


@dataclass(frozen=True)
class Fonts:
    """A regular font and its bold one, as TrueType files."""

    regular: Path
    bold: Path

    def path(self, *, bold: bool) -> Path:
        """The file of one."""
        return self.bold if bold else self.regular

    def name(self, *, bold: bool) -> str:
        """What reportlab calls one."""
        return str(self._loaded[bold].fontName)

    def width(self, text: str, size: float, *, bold: bool = False) -> float:
        """How wide a text is, in the unit of ``size``."""
        return float(self._loaded[bold].stringWidth(text, size))

    def missing(self, text: str) -> str:
        """Letters of a text that the regular font does not have, each once; they are drawn as boxes."""
        known = self._loaded[False].face.charToGlyph
        return "".join(dict.fromkeys(letter for letter in text if ord(letter) not in known and not letter.isspace()))

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return _registered(self.regular), _registered(self.bold)


def find_fonts(given: str | None = None) -> Fonts:
    """The fonts to use.

    Args:
        given: a TrueType file, for all texts.

    Raises:
        InputError: it cannot be used.
    """
    if given is not None:
        path = Path(given).expanduser()
        try:
            _registered(path)
        except Exception as error:  # reportlab has no common class for what can be wrong with a font
            fix = f"give a TrueType font (.ttf) with outlines that PDF takes: {error}"
            raise InputError("the font cannot be used", [Problem("--sheet-font", given, fix)]) from error
        return Fonts(path, path)
    folders = [*_folders()]
    for pair in _PAIRS:
        for folder in folders:
            if all((folder / name).is_file() for name in pair):
                return Fonts(folder / pair[0], folder / pair[1])
    raise RuntimeError("reportlab's own fonts are missing")


def _folders() -> Iterator[Path]:
    for place in _PLACES:
        for folder, folders, _ in os.walk(Path(place).expanduser()):
            folders.sort()
            yield Path(folder)
    for package, inside in _BESIDE:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent / inside


def _registered(path: Path) -> Any:
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    font = TTFont(f"sheet-{path.stem}", str(path))
    pdfmetrics.registerFont(font)
    return font
