"""How the miniature's subjects are drawn: eight kinds with silhouettes of their own, outlined like cartoon stickers.

Coordinates are those of :mod:`training.drawing.pen`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from PIL import Image

from consistory_ray.miniature.vocabulary import COLOURS
from training.drawing.accessories import Anchors, wear
from training.drawing.pen import INK, Colour, Pen, ellipse, paint, paint_pattern, polygon, shade, stroke
from training.individuals import Identity, Placement


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
