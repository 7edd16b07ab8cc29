"""How the miniature's twelve scenes are drawn: a plain, clearly different backdrop each, varied by its own seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


class Backdrop:
    """An RGB canvas with coordinates in [0, 1], y down, and the scene's own random numbers."""

    def __init__(self, rng: random.Random, side: int) -> None:
        self.rng, self.side = rng, side
        self.image = Image.new("RGB", (side, side))
        self.pen = ImageDraw.Draw(self.image)

    def gradient(self, top: Colour, bottom: Colour) -> None:
        """Fill the whole canvas from top to bottom, slightly varied in brightness."""
        glow = self.rng.uniform(0.93, 1.05)
        steps = np.linspace(0, 1, self.side)[:, None]
        rows = (np.array(top) * (1 - steps) + np.array(bottom) * steps) * glow
        column = np.clip(rows, 0, 255).astype(np.uint8)
        self.image.paste(Image.fromarray(np.repeat(column[:, None, :], self.side, axis=1)))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        s = self.side
        self.pen.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        s = self.side
        self.pen.rectangle((x0 * s, y0 * s, x1 * s, y1 * s), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self.pen.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def line(self, points: list[tuple[float, float]], width: float, colour: Colour) -> None:
        self.pen.line(
            [(x * self.side, y * self.side) for x, y in points],
            fill=colour,
            width=max(1, round(width * self.side)),
            joint="curve",
        )

    def hills(self, base: float, height: float, colour: Colour, waves: float = 1.5) -> None:
        """Rolling ground from ``base`` down to the bottom edge."""
        phase, swing = self.rng.uniform(0, 6.3), height * self.rng.uniform(0.6, 1.0)
        ridge = [(k / 24, base + swing * math.sin(phase + waves * 6.3 * k / 24)) for k in range(25)]
        self.polygon([*ridge, (1, 1), (0, 1)], colour)

    def cloud(self, x: float, y: float, size: float, colour: Colour) -> None:
        for dx, dy, r in ((-1, 0.15, 0.7), (0, -0.2, 1.0), (1, 0.15, 0.75)):
            self.ellipse(x + dx * size, y + dy * size, r * size, r * size * 0.75, colour)


def forest(b: Backdrop) -> None:
    b.gradient((150, 206, 168), (196, 226, 170))
    for layer, tone in ((0.5, (74, 138, 92)), (0.62, (48, 108, 66))):
        for k in range(5):
            x = k / 4 + b.rng.uniform(-0.1, 0.1)
            top = b.rng.uniform(0.02, 0.22)
            b.box(x - 0.025, layer - 0.1, x + 0.025, layer + 0.2, (104, 72, 48))
            for part in range(3):
                y = top + part * 0.14
                w = 0.09 + 0.035 * part
                b.polygon([(x, y), (x - w, y + 0.22), (x + w, y + 0.22)], tone)
    b.hills(0.76, 0.02, (104, 158, 74))


def beach(b: Backdrop) -> None:
    b.gradient((118, 198, 246), (206, 238, 252))
    b.ellipse(b.rng.uniform(0.12, 0.88), b.rng.uniform(0.1, 0.2), 0.085, 0.085, (255, 236, 120))
    b.box(0, 0.46, 1, 0.72, (40, 150, 200))
    for _ in range(5):
        x, y = b.rng.random(), b.rng.uniform(0.5, 0.64)
        b.line([(x - 0.06, y), (x + 0.06, y)], 0.012, (160, 220, 240))
    b.hills(0.69, 0.015, (244, 218, 158))
    x = b.rng.choice((0.1, 0.9)) + b.rng.uniform(-0.04, 0.04)
    lean = 0.1 if x < 0.5 else -0.1
    b.line([(x, 0.8), (x + lean * 0.4, 0.5), (x + lean, 0.28)], 0.035, (150, 106, 66))
    for angle in (-160, -120, -60, -20, 20, 160):
        a = math.radians(angle)
        b.line(
            [
                (x + lean, 0.28),
                (x + lean + 0.1 * math.cos(a), 0.26 + 0.07 * math.sin(a)),
                (x + lean + 0.19 * math.cos(a), 0.32 + 0.08 * math.sin(a)),
            ],
            0.035,
            (60, 158, 84),
        )


def space(b: Backdrop) -> None:
    b.gradient((18, 16, 52), (40, 28, 84))
    for _ in range(34):
        r = b.rng.choice((0.004, 0.006, 0.01))
        b.ellipse(b.rng.random(), b.rng.uniform(0, 0.8), r, r, (240, 240, 255))
    x, y = b.rng.choice((0.16, 0.84)), b.rng.uniform(0.13, 0.26)
    tone = b.rng.choice(((234, 150, 90), (120, 190, 230), (220, 120, 170)))
    b.ellipse(x, y, 0.1, 0.1, tone)
    b.line([(x - 0.17, y + 0.05), (x, y + 0.02), (x + 0.17, y - 0.05)], 0.022, (240, 224, 180))
    b.ellipse(0.5, 1.28, 0.95, 0.5, (150, 150, 168))
    for _ in range(4):
        b.ellipse(b.rng.random(), b.rng.uniform(0.86, 0.98), 0.06, 0.025, (122, 122, 142))


def city(b: Backdrop) -> None:
    b.gradient((34, 30, 80), (92, 70, 132))
    b.ellipse(b.rng.uniform(0.1, 0.9), 0.13, 0.07, 0.07, (250, 244, 200))
    x = -b.rng.uniform(0, 0.08)
    while x < 1:
        w, top = b.rng.uniform(0.14, 0.2), b.rng.uniform(0.14, 0.44)
        b.box(x, top, x + w - 0.012, 0.86, b.rng.choice(((44, 48, 92), (56, 52, 104), (38, 40, 76))))
        for column in range(3):
            for row in range(7):
                wx, wy = x + 0.022 + column * (w - 0.03) / 3, top + 0.04 + row * 0.075
                if b.rng.random() < 0.62 and wy < 0.76:
                    b.box(wx, wy, wx + 0.026, wy + 0.034, (255, 220, 110))
        x += w
    b.box(0, 0.84, 1, 1, (66, 66, 82))
    for k in range(5):
        b.box(0.04 + k * 0.22, 0.93, 0.14 + k * 0.22, 0.945, (230, 220, 150))


def desert(b: Backdrop) -> None:
    b.gradient((252, 206, 134), (254, 232, 184))
    b.ellipse(b.rng.uniform(0.15, 0.85), 0.18, 0.11, 0.11, (255, 246, 210))
    b.hills(0.6, 0.06, (232, 176, 96), 0.8)
    b.hills(0.76, 0.05, (216, 150, 74), 0.6)
    for x in (b.rng.uniform(0.04, 0.16), b.rng.uniform(0.84, 0.96)):
        tall = b.rng.uniform(0.24, 0.36)
        b.line([(x, 0.82), (x, 0.82 - tall)], 0.06, (70, 140, 84))
        b.line([(x, 0.74), (x + 0.075, 0.72), (x + 0.075, 0.6)], 0.04, (70, 140, 84))
        b.line([(x, 0.68), (x - 0.07, 0.66), (x - 0.07, 0.56)], 0.04, (70, 140, 84))


def snow(b: Backdrop) -> None:
    b.gradient((164, 198, 232), (222, 236, 250))
    for k in range(4):
        x = k / 3 + b.rng.uniform(-0.09, 0.09)
        top = b.rng.uniform(0.18, 0.32)
        for part in range(3):
            y, w = top + part * 0.13, 0.07 + 0.035 * part
            b.polygon([(x, y), (x - w, y + 0.2), (x + w, y + 0.2)], (96, 142, 148))
            b.polygon([(x, y), (x - w * 0.5, y + 0.1), (x + w * 0.5, y + 0.1)], (250, 252, 255))
    b.hills(0.72, 0.03, (244, 248, 254))
    for _ in range(22):
        b.ellipse(b.rng.random(), b.rng.random() * 0.8, 0.011, 0.011, (255, 255, 255))


def meadow(b: Backdrop) -> None:
    b.gradient((134, 206, 250), (216, 240, 252))
    for _ in range(2):
        b.cloud(b.rng.uniform(0.1, 0.9), b.rng.uniform(0.1, 0.26), 0.07, (255, 255, 255))
    b.hills(0.56, 0.05, (140, 204, 96), 0.7)
    b.hills(0.74, 0.02, (112, 188, 78))
    for _ in range(16):
        x, y = b.rng.random(), b.rng.uniform(0.68, 0.97)
        tone = b.rng.choice(((250, 110, 130), (255, 230, 90), (250, 250, 250), (200, 130, 230)))
        for k in range(5):
            a = 6.283 * k / 5
            b.ellipse(x + 0.016 * math.cos(a), y + 0.016 * math.sin(a), 0.012, 0.012, tone)
        b.ellipse(x, y, 0.01, 0.01, (250, 190, 60))


def sea(b: Backdrop) -> None:
    b.gradient((64, 172, 214), (14, 66, 134))
    for k in range(3):
        x = 0.12 + k * 0.36 + b.rng.uniform(-0.08, 0.08)
        b.polygon([(x, 0), (x + 0.09, 0), (x - 0.02, 0.7), (x - 0.17, 0.7)], (92, 190, 224))
    b.hills(0.86, 0.02, (212, 196, 142))
    for _ in range(5):
        x, tone = b.rng.random(), b.rng.choice(((46, 152, 102), (242, 110, 120), (250, 160, 90)))
        tall = b.rng.uniform(0.16, 0.36)
        b.line([(x + 0.022 * math.sin(3 * k), 0.9 - tall * k / 5) for k in range(6)], 0.032, tone)
    for _ in range(10):
        x, y, r = b.rng.random(), b.rng.uniform(0.04, 0.75), b.rng.choice((0.012, 0.02, 0.028))
        b.ellipse(x, y, r, r, (190, 232, 248))
        b.ellipse(x, y, r * 0.65, r * 0.65, (96, 182, 220))


def volcano(b: Backdrop) -> None:
    b.gradient((84, 32, 48), (208, 92, 60))
    x = b.rng.choice((0.24, 0.76)) + b.rng.uniform(-0.08, 0.08)
    for k in range(3):
        b.cloud(x + 0.05 * k, 0.14 - 0.05 * k, 0.055 + 0.015 * k, (96, 70, 78))
    b.polygon([(x - 0.42, 0.8), (x - 0.1, 0.22), (x + 0.1, 0.22), (x + 0.42, 0.8)], (70, 52, 60))
    b.polygon(
        [(x - 0.1, 0.22), (x + 0.1, 0.22), (x + 0.07, 0.36), (x + 0.02, 0.3), (x - 0.02, 0.44), (x - 0.06, 0.3)],
        (255, 150, 40),
    )
    b.hills(0.76, 0.02, (58, 44, 52))
    for _ in range(3):
        y, x0 = b.rng.uniform(0.82, 0.98), b.rng.random()
        b.line([(x0 - 0.16, y), (x0, y + 0.015), (x0 + 0.16, y - 0.01)], 0.025, (255, 140, 40))


def kitchen(b: Backdrop) -> None:
    b.gradient((250, 236, 206), (246, 226, 190))
    for k in range(9):
        b.line([(k / 8, 0), (k / 8, 0.74)], 0.006, (226, 206, 170))
        b.line([(0, k * 0.0925), (1, k * 0.0925)], 0.006, (226, 206, 170))
    x = b.rng.choice((0.06, 0.62))
    b.box(x, 0.1, x + 0.32, 0.42, (150, 104, 70))
    b.box(x + 0.025, 0.125, x + 0.295, 0.395, (168, 218, 248))
    b.box(x + 0.15, 0.1, x + 0.17, 0.42, (150, 104, 70))
    x = 0.56 if x < 0.3 else 0.04
    b.box(x, 0.34, x + 0.4, 0.37, (168, 118, 78))
    for k in range(3):
        tone = b.rng.choice(((222, 92, 84), (92, 152, 210), (240, 196, 84), (120, 180, 110)))
        b.box(x + 0.04 + k * 0.12, 0.22, x + 0.12 + k * 0.12, 0.34, tone)
    for row in range(3):
        for column in range(8):
            tone = (214, 120, 96) if (row + column) % 2 else (248, 226, 206)
            b.box(column / 8, 0.74 + row * 0.09, (column + 1) / 8, 0.83 + row * 0.09, tone)


def sunset(b: Backdrop) -> None:
    b.gradient((104, 66, 148), (255, 158, 84))
    x = b.rng.uniform(0.2, 0.8)
    b.ellipse(x, 0.6, 0.24, 0.24, (255, 214, 96))
    b.ellipse(x, 0.6, 0.18, 0.18, (255, 236, 150))
    for _ in range(3):
        y, x0 = b.rng.uniform(0.08, 0.4), b.rng.random()
        b.line([(x0 - 0.18, y), (x0 + 0.18, y)], 0.028, (226, 112, 130))
    b.hills(0.64, 0.05, (120, 66, 110), 0.9)
    b.hills(0.78, 0.03, (76, 44, 88), 0.7)


def rain(b: Backdrop) -> None:
    b.gradient((112, 126, 146), (168, 180, 192))
    for k in range(4):
        b.cloud(k / 3 + b.rng.uniform(-0.06, 0.06), b.rng.uniform(0.03, 0.12), 0.1, (86, 96, 114))
    b.box(0, 0.78, 1, 1, (98, 120, 112))
    for _ in range(4):
        b.ellipse(b.rng.random(), b.rng.uniform(0.84, 0.97), 0.11, 0.022, (150, 178, 198))
    for _ in range(40):
        x, y = b.rng.random(), b.rng.uniform(0.16, 0.98)
        b.line([(x, y), (x - 0.018, y + 0.06)], 0.009, (206, 222, 240))


PAINTERS: dict[str, Callable[[Backdrop], None]] = {
    "in the forest": forest,
    "on the beach": beach,
    "in space": space,
    "in the city at night": city,
    "in the desert": desert,
    "in the snow": snow,
    "in the meadow": meadow,
    "under the sea": sea,
    "by the volcano": volcano,
    "in the kitchen": kitchen,
    "at sunset": sunset,
    "in the rain": rain,
}


def draw_scene(scene: str, rng: random.Random, side: int) -> Image.Image:
    """An RGB backdrop of ``side`` pixels squared."""
    backdrop = Backdrop(rng, side)
    PAINTERS[scene](backdrop)
    return backdrop.image
