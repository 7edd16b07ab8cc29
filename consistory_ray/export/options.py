"""What an export makes of each picture: checked before anything is read; its digest says when a file is out of date."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from consistory_ray.errors import InputError, Problem
from consistory_ray.export.naming import ENDINGS

Matting = Literal["pymatting", "rembg", "none"]
CODE = 1
"""Counted up with every change of this package that makes other files of the same pictures and options."""
MAX_SIDE = 16384


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """What decides the bytes of an exported picture, beside the picture.

    Attributes:
        sprites: cut the subject out, onto transparent ground.
        matting: how its edge is found: pymatting from the run's mask, rembg (which looks for itself), or none: the
            mask's own tokens.
        trim: cut away what is empty around a sprite.
        scale: of the picture's sides; 1 leaves it.
        size: the longer side in pixels, in the place of a scale, padding not counted; None for none.
        padding: transparent pixels on every side.
        power_of_two: widen both sides to powers of two, the sprite in the middle.
        ending: the format, ``png`` or ``webp`` (lossless).
        metadata: keep what the picture's file says of itself: prompt, seed, settings.
        further: what other steps depend on (signatures, marks), JSON-ready.
    """

    sprites: bool = False
    matting: Matting = "pymatting"
    trim: bool = True
    scale: float = 1.0
    size: int | None = None
    padding: int = 0
    power_of_two: bool = False
    ending: str = "png"
    metadata: bool = True
    further: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        problems = [*self._problems()]
        if problems:
            raise InputError("the export cannot be made", problems)

    def _problems(self) -> list[Problem]:
        found = []
        if self.matting not in get_args(Matting):
            found.append(Problem("--matting", self.matting, f"use {', '.join(get_args(Matting))}"))
        if self.ending not in ENDINGS:
            found.append(Problem("--format", self.ending, f"use {' or '.join(ENDINGS)}"))
        if not 0 < self.scale <= 16:
            found.append(Problem("--scale", str(self.scale), "use a factor above 0, at most 16"))
        if self.size is not None and not 1 <= self.size <= MAX_SIDE:
            found.append(Problem("--size", str(self.size), f"use 1 to {MAX_SIDE} pixels"))
        if self.size is not None and self.scale != 1:
            found.append(Problem("--size", str(self.size), "give --size or --scale, not both"))
        if not 0 <= self.padding <= 4096:
            found.append(Problem("--padding", str(self.padding), "use 0 to 4096 pixels"))
        if not self.sprites:
            without = "add --sprites: whole pictures have no transparent ground"
            found += [Problem("--padding", str(self.padding), without)] if self.padding else []
            found += [Problem("--power-of-two", "", without)] if self.power_of_two else []
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, what does not count left out."""
        values = asdict(self)
        if not self.sprites:
            values = {name: value for name, value in values.items() if name not in ("matting", "trim")}
        return values | {"further": dict(self.further), "code": CODE}

    def digest(self) -> str:
        """16 hexadecimal digits; two exports with the same make the same file of the same picture."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def check_installed(options: PictureOptions) -> None:
    """Whether what cuts out is there.

    Raises:
        InputError: it is not.
    """
    if not options.sprites or options.matting == "none":
        return
    fixes = {
        "pymatting": "pip install 'consistory-ray[export]', or use --matting none",
        "rembg": "pip install 'rembg[cpu]', or use --matting pymatting",
    }
    if importlib.util.find_spec(options.matting) is None:
        raise InputError("sprites cannot be cut out", [Problem("--matting", options.matting, fixes[options.matting])])
