"""How the miniature's subjects are drawn: eight kinds with silhouettes of their own, outlined like cartoon stickers.

Subject coordinates: the origin is the subject's centre, y points down, and a subject spans about [-1, 1] in height.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from consistory_ray.miniature.world import COLOURS, Identity, Placement

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


def eyes(pen: Pen, y: float, spacing: float, radius: float, x: float = 0.0) -> None:
    """Two large eyes with a highlight."""
    for side in (-1, 1):
        cx = x + side * spacing
        pen.ellipse(cx, y, radius * 1.05, radius * 1.25, INK)
        pen.ellipse(cx, y, radius * 0.9, radius * 1.08, (252, 252, 252))
        pen.ellipse(cx + 0.02, y + 0.03, radius * 0.6, radius * 0.75, INK)
        pen.ellipse(cx - radius * 0.2, y - radius * 0.3, radius * 0.25, radius * 0.25, (255, 255, 255))


def smile(pen: Pen, x: float, y: float, width: float) -> None:
    """A curved mouth."""
    pen.stroke(
        [
            (x - width, y),
            (x - width / 2, y + width * 0.55),
            (x, y + width * 0.7),
            (x + width / 2, y + width * 0.55),
            (x + width, y),
        ],
        0.05,
        INK,
    )


def cheeks(pen: Pen, y: float, spacing: float, x: float = 0.0) -> None:
    """Rosy cheeks."""
    for side in (-1, 1):
        pen.ellipse(x + side * spacing, y, 0.09, 0.055, (250, 150, 150))


def draw_cat(pen: Pen, who: Identity, main: Colour, second: Colour, limbs: float) -> Anchors:
    body, head = ellipse(0, 0.52, 0.42, 0.44), ellipse(0, -0.22, 0.66, 0.52)
    tail = stroke(0.17, (0.3, 0.75), (0.66, 0.62), (0.8, 0.3), (0.7 + 0.14 * limbs, 0.05))
    if who.variant:
        ears = [polygon((s * 0.62, -0.35), (s * 0.6, -1.0), (s * 0.14, -0.62)) for s in (-1, 1)]
    else:
        ears = [ellipse(s * 0.47, -0.68, 0.2, 0.24) for s in (-1, 1)]
    legs = [ellipse(s * 0.25, 0.88, 0.17, 0.12) for s in (-1, 1)]
    paint(pen, main, tail, body, *ears, head)
    paint_pattern(pen, who, second, body, head)
    for s in (-1, 1):
        if who.variant:
            pen.polygon([(s * 0.54, -0.5), (s * 0.54, -0.84), (s * 0.28, -0.62)], second)
        else:
            pen.ellipse(s * 0.47, -0.7, 0.1, 0.13, second)
    pen.ellipse(0, 0.6, 0.24, 0.26, second)
    paint(pen, main, *legs)
    eyes(pen, -0.22, 0.27, 0.14)
    pen.polygon([(-0.07, -0.02), (0.07, -0.02), (0, 0.06)], (240, 120, 130))
    smile(pen, 0, 0.08, 0.13)
    for s in (-1, 1):
        for dy in (0.0, 0.1):
            pen.stroke([(s * 0.42, 0.0 + dy), (s * 0.78, -0.06 + 2 * dy)], 0.035, INK)
    return Anchors(top=(0, -0.68, 0.36), neck=(0, 0.26, 0.4), eyes=(0, -0.22, 0.27, 0.14))


def draw_dragon(pen: Pen, who: Identity, main: Colour, second: Colour, limbs: float) -> Anchors:
    lift = 0.25 * limbs
    wings = [
        polygon(
            (s * 0.25, 0.3),
            (s * 1.0, -0.25 - lift),
            (s * 1.05, 0.12 - lift / 2),
            (s * 0.84, 0.12),
            (s * 0.82, 0.4),
            (s * 0.62, 0.36),
            (s * 0.5, 0.62),
        )
        for s in (-1, 1)
    ]
    paint(pen, second, *wings)
    tail = polygon((0.2, 0.62), (0.72, 0.72), (0.98, 0.5), (1.0, 0.74), (0.78, 0.96), (0.2, 0.96))
    body, head = ellipse(0, 0.5, 0.44, 0.46), ellipse(0, -0.3, 0.5, 0.42)
    snout = ellipse(0, -0.06, 0.42, 0.27)
    if who.variant:
        paint(
            pen, shade(second, 1.35), *[polygon((s * 0.16, -0.6), (s * 0.46, -1.04), (s * 0.44, -0.5)) for s in (-1, 1)]
        )
    else:
        spikes = [polygon((x - 0.15, -0.58), (x, -1.0 + abs(x) * 0.5), (x + 0.15, -0.58)) for x in (-0.3, 0.0, 0.3)]
        paint(pen, second, *spikes)
    paint(pen, main, tail, body, head, snout)
    paint_pattern(pen, who, second, body, head, tail)
    pen.ellipse(0, 0.6, 0.26, 0.3, shade(second, 1.3))
    for y in (0.46, 0.6, 0.74):
        pen.stroke([(-0.2, y), (0.2, y)], 0.03, shade(second, 0.75))
    paint(pen, main, *[ellipse(s * 0.28, 0.88, 0.19, 0.13) for s in (-1, 1)])
    pen.ellipse(0, -0.04, 0.36, 0.2, shade(main, 1.25))
    for s in (-1, 1):
        pen.ellipse(s * 0.14, -0.08, 0.045, 0.06, INK)
    eyes(pen, -0.36, 0.23, 0.14)
    smile(pen, 0, 0.02, 0.15)
    return Anchors(top=(0, -0.66, 0.32), neck=(0, 0.22, 0.38), eyes=(0, -0.36, 0.23, 0.14))


def draw_rabbit(pen: Pen, who: Identity, main: Colour, second: Colour, limbs: float) -> Anchors:
    lean = 0.12 * (limbs - 0.5)
    body, head = ellipse(0, 0.58, 0.4, 0.38), ellipse(0, 0.02, 0.5, 0.42)
    ears = [ellipse(s * 0.23 + lean, -0.62, 0.15, 0.46, s * 9) for s in (-1, 1)]
    if not who.variant:
        ears[1] = stroke(0.28, (0.22, -0.3), (0.3 + lean, -0.72), (0.62 + lean, -0.62))
    puff = ellipse(0.44, 0.66, 0.17, 0.17)
    paint(pen, shade(second, 1.4), puff)
    paint(pen, main, body, *ears, head)
    paint_pattern(pen, who, second, body, head)
    pen.ellipse(-0.23 + lean, -0.62, 0.07, 0.34, second, turn=-9)
    if who.variant:
        pen.ellipse(0.23 + lean, -0.62, 0.07, 0.34, second, turn=9)
    pen.ellipse(0, 0.66, 0.22, 0.22, second)
    paint(pen, main, *[ellipse(s * 0.28, 0.9, 0.24, 0.1) for s in (-1, 1)])
    eyes(pen, 0.0, 0.22, 0.13)
    cheeks(pen, 0.18, 0.34)
    pen.ellipse(0, 0.15, 0.06, 0.045, (240, 120, 140))
    pen.polygon([(-0.07, 0.24), (0.07, 0.24), (0.06, 0.36), (-0.06, 0.36)], (252, 252, 252))
    smile(pen, 0, 0.2, 0.11)
    return Anchors(top=(0, -0.32, 0.28), neck=(0, 0.38, 0.36), eyes=(0, 0.0, 0.22, 0.13))


def draw_robot(pen: Pen, who: Identity, main: Colour, second: Colour, limbs: float) -> Anchors:
    arm = 0.5 - 0.65 * limbs
    paint(
        pen,
        shade(main, 0.7),
        *[stroke(0.14, (s * 0.45, 0.3), (s * 0.8, 0.3 + arm * 0.6)) for s in (-1, 1)],
        *[stroke(0.16, (s * 0.22, 0.7), (s * 0.22, 0.9)) for s in (-1, 1)],
    )
    paint(
        pen,
        second,
        *[ellipse(s * 0.84, 0.34 + arm * 0.6, 0.13, 0.13) for s in (-1, 1)],
        *[
            polygon((s * 0.22 - 0.17, 0.98), (s * 0.22 - 0.17, 0.86), (s * 0.22 + 0.17, 0.86), (s * 0.22 + 0.17, 0.98))
            for s in (-1, 1)
        ],
    )
    if who.variant:
        paint(pen, second, stroke(0.06, (0, -0.6), (0, -0.9)), ellipse(0, -0.9, 0.11, 0.11))
    else:
        paint(
            pen,
            second,
            *[polygon((s * 0.6, -0.5), (s * 0.78, -0.5), (s * 0.78, -0.12), (s * 0.6, -0.12)) for s in (-1, 1)],
        )
    head = polygon((-0.6, -0.68), (0.6, -0.68), (0.6, 0.04), (-0.6, 0.04))
    body = polygon((-0.46, 0.12), (0.46, 0.12), (0.46, 0.76), (-0.46, 0.76))
    paint(pen, main, body, head)
    paint_pattern(pen, who, second, body, head)
    pen.polygon([(-0.26, 0.3), (0.26, 0.3), (0.26, 0.6), (-0.26, 0.6)], INK)
    pen.polygon([(-0.22, 0.34), (0.22, 0.34), (0.22, 0.56), (-0.22, 0.56)], shade(second, 1.2))
    pen.polygon([(-0.5, -0.58), (0.5, -0.58), (0.5, -0.06), (-0.5, -0.06)], INK)
    for s in (-1, 1):
        pen.polygon(
            [(s * 0.25 - 0.12, -0.5), (s * 0.25 + 0.12, -0.5), (s * 0.25 + 0.12, -0.26), (s * 0.25 - 0.12, -0.26)],
            (150, 244, 250),
        )
        pen.ellipse(s * 0.25, -0.38, 0.05, 0.05, INK)
    pen.stroke([(-0.18, -0.16), (0.18, -0.16)], 0.06, (150, 244, 250))
    return Anchors(top=(0, -0.68, 0.42), neck=(0, 0.1, 0.46), eyes=(0, -0.38, 0.25, 0.15))


def draw_ghost(pen: Pen, who: Identity, main: Colour, second: Colour, limbs: float) -> Anchors:
    wave = [(0.62 - 0.31 * k, (0.66 if k % 2 else 0.94) + 0.05 * math.sin(6 * limbs + k)) for k in range(5)]
    dome = [(0.62 * math.cos(a), -0.32 + 0.6 * math.sin(a)) for a in [math.pi + math.pi * k / 16 for k in range(17)]]
    body = polygon(*dome, *wave)
    up = 0.3 * limbs
    arms = [stroke(0.24, (s * 0.55, 0.2), (s * 0.86, 0.12 - up)) for s in (-1, 1)]
    paint(pen, main, body, *arms)
    paint_pattern(pen, who, second, body)
    if who.variant:
        paint(pen, second, *[polygon((s * 0.16, -0.84), (s * 0.36, -1.04), (s * 0.46, -0.7)) for s in (-1, 1)])
    else:
        paint(pen, second, stroke(0.13, (0.0, -0.9), (0.1, -1.0), (0.26, -0.98)))
    pen.ellipse(0, 0.42, 0.3, 0.2, second)
    eyes(pen, -0.3, 0.24, 0.16)
    cheeks(pen, -0.04, 0.4)
    pen.ellipse(0, 0.02, 0.1, 0.13, INK)
    pen.ellipse(0, 0.06, 0.06, 0.06, (230, 90, 100))
    return Anchors(top=(0, -0.84, 0.3), neck=(0, 0.22, 0.5), eyes=(0, -0.3, 0.24, 0.16))


def draw_penguin(pen: Pen, who: Identity, main: Colour, second: Colour, limbs: float) -> Anchors:
    body = ellipse(0, 0.08, 0.56, 0.84)
    flap = 20 + 40 * limbs
    wings = [ellipse(s * 0.6, 0.2 - 0.12 * limbs, 0.14, 0.4, -s * flap) for s in (-1, 1)]
    paint(pen, (246, 160, 50), *[ellipse(s * 0.26, 0.92, 0.24, 0.1) for s in (-1, 1)])
    if who.variant:
        paint(pen, second, *[stroke(0.09, (0, -0.7), (dx, -1.0)) for dx in (-0.2, 0.0, 0.2)])
    paint(pen, main, *wings, body)
    paint_pattern(pen, who, second, body, *wings)
    pen.ellipse(0, 0.36, 0.38, 0.5, shade(second, 1.5))
    for s in (-1, 1):
        pen.ellipse(s * 0.2, -0.34, 0.22, 0.24, shade(second, 1.5))
    eyes(pen, -0.36, 0.2, 0.13)
    cheeks(pen, -0.12, 0.36)
    paint(pen, (246, 160, 50), polygon((-0.13, -0.22), (0.13, -0.22), (0, -0.02)))
    return Anchors(top=(0, -0.68, 0.3), neck=(0, 0.08, 0.52), eyes=(0, -0.36, 0.2, 0.13))


def draw_octopus(pen: Pen, who: Identity, main: Colour, second: Colour, limbs: float) -> Anchors:
    tentacles = []
    for k in range(6):
        x = -0.5 + 0.2 * k
        curl = (0.16 if k % 2 else -0.16) * (0.6 + limbs)
        tentacles.append(
            stroke(0.2, (x * 0.8, 0.2), (x * 1.35, 0.56), (x * 1.6 + curl * 0.3, 0.8), (x * 1.75 + curl, 0.9))
        )
    head = ellipse(0, -0.28, 0.66, 0.64)
    paint(pen, main, *tentacles, head)
    paint_pattern(pen, who, second, head, *tentacles)
    for k in range(6):
        x = -0.5 + 0.2 * k
        for t in (0.55, 0.75):
            pen.ellipse(x * (0.9 + 0.85 * t), t, 0.05, 0.05, second)
    if who.variant:
        paint(pen, second, *[ellipse(s * 0.6, -0.72, 0.18, 0.12, s * 40) for s in (-1, 1)])
    else:
        pen.ellipse(-0.3, -0.66, 0.12, 0.09, shade(main, 1.5), turn=-30)
    eyes(pen, -0.18, 0.26, 0.17)
    cheeks(pen, 0.08, 0.42)
    smile(pen, 0, 0.08, 0.15)
    return Anchors(top=(0, -0.86, 0.36), neck=(0, 0.3, 0.46), eyes=(0, -0.18, 0.26, 0.17))


def draw_snail(pen: Pen, who: Identity, main: Colour, second: Colour, limbs: float) -> Anchors:
    soft = shade(second, 1.2)
    bob = 0.06 * limbs
    foot = [
        polygon((-0.9, 0.94), (0.95, 0.94), (0.55, 0.66), (-0.5, 0.62)),
        ellipse(-0.62, 0.28 - bob, 0.32, 0.34),
        stroke(0.4, (-0.6, 0.4), (-0.5, 0.74)),
    ]
    stalks = [stroke(0.09, (x, 0.1), (x + dx, -0.28 - bob)) for x, dx in ((-0.72, -0.1), (-0.5, 0.06))]
    paint(pen, soft, *stalks, *foot)
    shell = ellipse(0.24, 0.02, 0.66, 0.66)
    paint(pen, main, shell)
    paint_pattern(pen, who, second, shell)
    turns = 26
    spiral = [
        (0.24 + (0.5 - 0.44 * k / turns) * math.cos(0.55 * k), 0.02 + (0.5 - 0.44 * k / turns) * math.sin(0.55 * k))
        for k in range(turns)
    ]
    if who.variant:
        pen.stroke(spiral, 0.07, shade(main, 0.62))
    else:
        for radius in (0.46, 0.24):
            pen.ellipse(0.24, 0.02, radius, radius, shade(main, 0.62))
            pen.ellipse(0.24, 0.02, radius - 0.07, radius - 0.07, main if radius > 0.3 else second)
    for x, dx in ((-0.72, -0.1), (-0.5, 0.06)):
        pen.ellipse(x + dx, -0.32 - bob, 0.14, 0.15, INK)
        pen.ellipse(x + dx, -0.32 - bob, 0.11, 0.12, (252, 252, 252))
        pen.ellipse(x + dx, -0.3 - bob, 0.06, 0.07, INK)
    smile(pen, -0.66, 0.36 - bob, 0.13)
    cheeks(pen, 0.34 - bob, 0.2, -0.66)
    return Anchors(top=(0.24, -0.6, 0.34), neck=(-0.6, 0.56, 0.3), eyes=(-0.61, -0.32 - bob, 0.17, 0.13))


class Anchors:
    """Where accessories sit: (x, y, half-width) of head and neck, (x, y, spacing, radius) of the eyes."""

    def __init__(
        self, top: tuple[float, float, float], neck: tuple[float, float, float], eyes: tuple[float, float, float, float]
    ) -> None:
        self.top, self.neck, self.eyes = top, neck, eyes


def wear(pen: Pen, who: Identity, anchors: Anchors) -> None:
    """Draw the accessory."""
    colour = COLOURS[who.accessory_colour]
    if who.accessory == "hat":
        x, y, w = anchors.top
        paint(
            pen,
            colour,
            polygon(
                (x - w * 0.75, y + 0.04), (x - w * 0.7, y - 0.36), (x + w * 0.7, y - 0.36), (x + w * 0.75, y + 0.04)
            ),
        )
        pen.polygon(
            [(x - w * 0.74, y - 0.0), (x - w * 0.73, y - 0.13), (x + w * 0.73, y - 0.13), (x + w * 0.74, y - 0.0)],
            shade(colour, 0.55),
        )
        paint(pen, colour, ellipse(x, y + 0.05, w * 1.3, 0.075))
    elif who.accessory == "crown":
        x, y, w = anchors.top
        points = [
            (x - w, y + 0.1),
            (x - w, y - 0.28),
            (x - w * 0.45, y - 0.06),
            (x, y - 0.34),
            (x + w * 0.45, y - 0.06),
            (x + w, y - 0.28),
            (x + w, y + 0.1),
        ]
        paint(pen, (252, 204, 50), polygon(*points))
        for dx in (-0.5, 0.0, 0.5):
            pen.ellipse(x + dx * w, y + 0.0, 0.05, 0.05, colour)
    elif who.accessory == "scarf":
        x, y, w = anchors.neck
        paint(
            pen, colour, polygon((x + w * 0.3, y), (x + w * 0.75, y), (x + w * 0.85, y + 0.42), (x + w * 0.4, y + 0.42))
        )
        paint(pen, colour, ellipse(x, y, w, 0.11))
    elif who.accessory == "bow":
        x, y, w = anchors.neck
        paint(pen, colour, *[polygon((x, y), (x + s * 0.3, y - 0.17), (x + s * 0.3, y + 0.17)) for s in (-1, 1)])
        paint(pen, shade(colour, 0.8), ellipse(x, y, 0.08, 0.08))
    elif who.accessory == "glasses":
        x, y, spacing, radius = anchors.eyes
        for s in (-1, 1):
            for k in range(20):
                a, b = 2 * math.pi * k / 20, 2 * math.pi * (k + 1) / 20
                r = radius * 1.45
                cx = x + s * max(spacing, r * 0.95)
                pen.stroke(
                    [(cx + r * math.cos(a), y + r * math.sin(a)), (cx + r * math.cos(b), y + r * math.sin(b))],
                    0.085,
                    shade(colour, 0.75),
                )
        pen.stroke([(x - 0.06, y - 0.03), (x + 0.06, y - 0.03)], 0.08, shade(colour, 0.75))


PAINTERS: dict[str, Callable[[Pen, Identity, Colour, Colour, float], Anchors]] = {
    "cat": draw_cat,
    "dragon": draw_dragon,
    "rabbit": draw_rabbit,
    "robot": draw_robot,
    "ghost": draw_ghost,
    "penguin": draw_penguin,
    "octopus": draw_octopus,
    "snail": draw_snail,
}


def draw_subject(identity: Identity, placement: Placement, side: int) -> Image.Image:
    """One subject on a transparent RGBA layer of ``side`` pixels squared."""
    pen = Pen(side, placement)
    main, second = COLOURS[identity.body], COLOURS[identity.second]
    anchors = PAINTERS[identity.kind](pen, identity, main, second, placement.limbs)
    wear(pen, identity, anchors)
    return pen.layer
