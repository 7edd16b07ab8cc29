"""Drawing in a subject's own coordinates: filled shapes with one outline around them, and patterns on them.

The origin is the subject's centre, y points down, and a subject spans about [-1, 1] in height.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from training.individuals import Identity, Placement

Colour = tuple[int, int, int]
Point = tuple[float, float]
Shape = Callable[["Pen", Colour, float], None]
INK: Colour = (44, 36, 52)
OUTLINE = 0.055
"""Width of the outline in subject units."""


def shade(colour: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or lighter (factor > 1, towards white) tone of a colour."""
    if factor <= 1:
        return tuple(int(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(int(c + (255 - c) * (factor - 1)) for c in colour)  # type: ignore[return-value]


class Pen:
    """Draws in subject coordinates on one transparent layer."""

    def __init__(self, side: int, placement: Placement) -> None:
        self.layer = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.layer)
        self.unit = placement.half_size * side
        self.centre = (placement.x * side, placement.y * side)
        self.mirror = -1.0 if placement.flip else 1.0
        self.stretch = placement.stretch
        angle = math.radians(placement.tilt)
        self.cos, self.sin = math.cos(angle), math.sin(angle)

    def at(self, x: float, y: float) -> Point:
        """Pixel position of a point in subject coordinates."""
        x, y = x * self.mirror / self.stretch, y * self.stretch
        return (
            self.centre[0] + (x * self.cos - y * self.sin) * self.unit,
            self.centre[1] + (x * self.sin + y * self.cos) * self.unit,
        )

    def polygon(self, points: Sequence[Point], colour: Colour, grow: float = 0.0) -> None:
        """A filled polygon, grown by ``grow`` subject units with rounded corners."""
        pixels = [self.at(*point) for point in points]
        self.draw.polygon(pixels, fill=colour)
        if grow > 0:
            width = max(1, round(2 * grow * self.unit))
            self.draw.line([*pixels, pixels[0], pixels[1]], fill=colour, width=width, joint="curve")

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, grow: float = 0.0, turn: float = 0.0
    ) -> None:
        """A filled ellipse around (x, y), turned by ``turn`` degrees."""
        rx, ry = rx + grow, ry + grow
        if turn == 0 and abs(rx - ry) < 1e-6:
            cx, cy = self.at(x, y)
            r = rx * self.unit
            self.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour)
            return
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        ring = [(2 * math.pi * k / 28) for k in range(28)]
        self.polygon(
            [
                (x + rx * math.cos(a) * c - ry * math.sin(a) * s, y + rx * math.cos(a) * s + ry * math.sin(a) * c)
                for a in ring
            ],
            colour,
        )

    def stroke(self, points: Sequence[Point], width: float, colour: Colour, grow: float = 0.0) -> None:
        """A thick line with round ends."""
        pixels = [self.at(*point) for point in points]
        radius = (width / 2 + grow) * self.unit
        self.draw.line(pixels, fill=colour, width=max(1, round(2 * radius)), joint="curve")
        for px, py in (pixels[0], pixels[-1]):
            self.draw.ellipse((px - radius, py - radius, px + radius, py + radius), fill=colour)


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Shape:
    """A shape for :func:`paint`."""
    return lambda pen, colour, grow: pen.ellipse(x, y, rx, ry, colour, grow, turn)


def polygon(*points: Point) -> Shape:
    """A shape for :func:`paint`."""
    return lambda pen, colour, grow: pen.polygon(points, colour, grow)


def stroke(width: float, *points: Point) -> Shape:
    """A shape for :func:`paint`."""
    return lambda pen, colour, grow: pen.stroke(points, width, colour, grow)


def paint(pen: Pen, colour: Colour, *shapes: Shape) -> None:
    """Shapes of one colour with one outline around their union."""
    for shape in shapes:
        shape(pen, INK, OUTLINE)
    for shape in shapes:
        shape(pen, colour, 0.0)


def paint_pattern(pen: Pen, identity: Identity, colour: Colour, *shapes: Shape) -> None:
    """The identity's pattern, clipped to the union of the shapes."""
    if identity.pattern == "plain":
        return
    cover = Pen.__new__(Pen)
    cover.__dict__ = dict(pen.__dict__)
    cover.layer = Image.new("L", pen.layer.size, 0)
    cover.draw = ImageDraw.Draw(cover.layer)
    for shape in shapes:
        shape(cover, 255, 0.0)  # type: ignore[arg-type]
    marks = Pen.__new__(Pen)
    marks.__dict__ = dict(pen.__dict__)
    marks.layer = Image.new("RGBA", pen.layer.size, (0, 0, 0, 0))
    marks.draw = ImageDraw.Draw(marks.layer)
    if identity.pattern == "spotted":
        for row in range(-3, 4):
            for column in range(-3, 4):
                x, y = column * 0.36 + (0.18 if row % 2 else 0.0), row * 0.31
                marks.ellipse(x, y, 0.095, 0.095, colour)
    else:
        for row in range(-4, 5):
            y = row * 0.27
            marks.stroke([(-1.2, y + 0.1), (0.0, y), (1.2, y + 0.1)], 0.11, colour)
    alpha = Image.composite(marks.layer.getchannel("A"), Image.new("L", pen.layer.size, 0), cover.layer)
    pen.layer.paste(marks.layer, (0, 0), alpha)
