"""What the miniature's subjects wear, and where."""

from __future__ import annotations

import math

from consistory_ray.miniature.vocabulary import COLOURS
from training.drawing.pen import Pen, ellipse, paint, polygon, shade
from training.individuals import Identity


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
