"""Hints: pictures that lead a rendered picture's layout, such as an outline or a pose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consistory_ray.guards.numerics import whole_number


@dataclass(frozen=True, eq=False)
class ControlHint:
    """One picture that leads, for one of a model's ControlNets.

    Attributes:
        image: as the ControlNet was trained to see it: a PIL image, a
            :class:`~consistory_ray.pictures.opening.Picture`, or an array [height, width, 3] of uint8 or of floats in
            0..1. It is fitted to the rendered size: scaled, and cropped where its shape is another.
        scale: what the ControlNet's residuals are multiplied with; 0 is none at all.
        start, end: shares of the steps between which it acts: a step lies there from its beginning to its end.
        net: which of the pipeline's ControlNets, by its position.
        mode: of a ControlNet for several kinds of hints (a union) the kind, by its name or number; None for others.
    """

    image: Any
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    net: int = 0
    mode: int | str | None = None

    def acts_at(self, step: int, steps: int) -> bool:
        """Whether it does anything at a step of so many."""
        return self.scale != 0 and self.start <= step / steps and (step + 1) / steps <= self.end


Hints = tuple[tuple[ControlHint, ...], ...]
"""For each picture of a batch those that lead it; of a batch without any an empty tuple."""


def mode_number(mode: Any, names: Sequence[str]) -> int | None:
    """The position of a kind of hint, given by its name or by that; None for what is no such kind."""
    if isinstance(mode, str):
        return names.index(mode) if mode in names else None
    number = whole_number(mode)
    return number if number is not None and 0 <= number < len(names) else None
