"""Hint pictures of what is drawn, for a ControlNet: silhouettes, outlines and poses, white or coloured on black.

A hint's kind shows in the picture itself, so that one net follows all of them. A pose is a skeleton of a subject in
its placement: body and head, legs, what moves (arms, wings, tail, tentacles). It tells nothing of the individual.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from consistory_ray.miniature.vocabulary import PICTURE_SIZE
from training.drawing.pen import Colour, Pen, Point
from training.individuals import Placement
from training.world import SUPERSAMPLING, Drawing, PictureSpec

HINTS = ("silhouette", "outline", "pose")
OUTLINE_PIXELS = 3
"""Width of an outline, in pixels of a picture of PICTURE_SIZE; inside the subject."""
BONE, JOINT = 0.09, 0.085
"""Width of a pose's lines and radius of its dots, in subject units."""
HEAD, BODY, LEFT, RIGHT, LEGS, TAIL = (
    (255, 70, 70),
    (255, 210, 60),
    (70, 150, 255),
    (70, 230, 110),
    (230, 230, 230),
    (220, 90, 255),
)
"""Colours of a pose: the spine is BODY with a larger dot of HEAD at its end; LEFT and RIGHT are the subject's own sides
as it is drawn unmirrored, in arms, wings, ears or tentacles that move."""


def draw_hint(name: str, spec: PictureSpec, drawing: Drawing) -> Image.Image:
    """A hint picture of a drawing, RGB, of the drawing's size.

    Args:
        name: of ``HINTS``.
        spec: what is drawn.
        drawing: it, drawn.
    """
    if name == "pose":
        return pose(spec, drawing.image.width)
    mask = drawing.masks.sum(0).clip(0, 1) if name == "silhouette" else _outlines(drawing.masks)
    return Image.fromarray((mask * 255).round().astype(np.uint8)).convert("RGB")


def _outlines(masks: np.ndarray) -> np.ndarray:
    """The inner edges of masks ``[subjects, H, W]``, ``[H, W]`` in [0, 1]."""
    reach = 2 * max(1, round(OUTLINE_PIXELS * masks.shape[-1] / PICTURE_SIZE)) + 1
    edges = Image.new("L", masks.shape[:0:-1])
    for mask in masks:
        filled = Image.fromarray((mask * 255).round().astype(np.uint8))
        # Beyond the frame nothing is drawn: a subject that is cut by it has an outline there too.
        framed = Image.new("L", (filled.width + 2 * reach, filled.height + 2 * reach))
        framed.paste(filled, (reach, reach))
        inner = framed.filter(ImageFilter.MinFilter(reach)).crop((reach, reach, *(reach + n for n in filled.size)))
        edges = ImageChops.lighter(edges, ImageChops.subtract(filled, inner))
    return np.asarray(edges, dtype=np.float32) / 255


def pose(spec: PictureSpec, size: int = PICTURE_SIZE) -> Image.Image:
    """The skeletons of a picture's subjects, coloured on black, RGB, ``size`` pixels squared."""
    side = size * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side))
    for identity, placement in zip(spec.subjects, spec.placements, strict=True):
        layer = _skeleton(identity.kind, placement, side)
        canvas.paste(layer, (0, 0), layer)
    return canvas.reduce(SUPERSAMPLING)


def _skeleton(kind: str, placement: Placement, side: int) -> Image.Image:
    pen = Pen(side, placement)
    head, body, limbs = SKELETONS[kind](placement.limbs)
    for colour, points in [*limbs, (BODY, [head, body])]:
        pen.stroke(points, BONE, colour)
        pen.ellipse(*points[-1], JOINT, JOINT, colour)
    pen.ellipse(*head, 2 * JOINT, 2 * JOINT, HEAD)
    return pen.layer


Limb = tuple[Colour, list[Point]]
Skeleton = tuple[Point, Point, list[Limb]]
"""Where the head is, where the body ends, and the limbs: a colour and the points of a line from the body outwards."""


def _pair(*points: Point) -> list[Limb]:
    return [(LEFT, [(-x, y) for x, y in points]), (RIGHT, list(points))]


def _legs(hip: Point, spread: float, foot: float) -> list[Limb]:
    return [(LEGS, [hip, (hip[0] + side * spread, foot)]) for side in (-1, 1)]


def _cat(limbs: float) -> Skeleton:
    tail = [(0.0, 0.6), (0.3, 0.75), (0.66, 0.62), (0.8, 0.3), (0.7 + 0.14 * limbs, 0.05)]
    return (0, -0.22), (0, 0.6), [(TAIL, tail), *_legs((0, 0.6), 0.25, 0.88)]


def _dragon(limbs: float) -> Skeleton:
    wings = _pair((0.0, 0.3), (0.25, 0.3), (1.0, -0.25 - 0.25 * limbs))
    tail = [(0.0, 0.6), (0.2, 0.8), (0.78, 0.84), (0.98, 0.55)]
    return (0, -0.3), (0, 0.6), [*wings, (TAIL, tail), *_legs((0, 0.6), 0.28, 0.88)]


def _rabbit(limbs: float) -> Skeleton:
    lean = 0.12 * (limbs - 0.5)
    ears = [
        (colour, [(0.0, 0.02), (s * 0.18, -0.3), (s * 0.26 + lean, -0.9)]) for s, colour in ((-1, LEFT), (1, RIGHT))
    ]
    return (0, 0.02), (0, 0.64), [*ears, (TAIL, [(0, 0.64), (0.44, 0.66)]), *_legs((0, 0.64), 0.28, 0.9)]


def _robot(limbs: float) -> Skeleton:
    arms = _pair((0.0, 0.3), (0.45, 0.3), (0.84, 0.34 + 0.6 * (0.5 - 0.65 * limbs)))
    return (0, -0.32), (0, 0.64), [*arms, *_legs((0, 0.64), 0.22, 0.92)]


def _ghost(limbs: float) -> Skeleton:
    return (0, -0.3), (0, 0.72), _pair((0.0, 0.24), (0.55, 0.2), (0.86, 0.12 - 0.3 * limbs))


def _penguin(limbs: float) -> Skeleton:
    turn = math.radians(20 + 40 * limbs)
    tip = (0.6 + 0.4 * math.sin(turn), 0.2 - 0.12 * limbs + 0.4 * math.cos(turn))
    return (0, -0.36), (0, 0.66), [*_pair((0.0, 0.0), (0.46, 0.0), tip), *_legs((0, 0.66), 0.26, 0.92)]


def _octopus(limbs: float) -> Skeleton:
    tentacles: list[Limb] = []
    for k in range(6):
        x, curl = -0.5 + 0.2 * k, (0.16 if k % 2 else -0.16) * (0.6 + limbs)
        points = [(0.0, 0.1), (x * 0.8, 0.2), (x * 1.35, 0.56), (x * 1.6 + curl * 0.3, 0.8), (x * 1.75 + curl, 0.9)]
        tentacles.append((RIGHT if k % 2 else LEFT, points))
    return (0, -0.28), (0, 0.1), tentacles


def _snail(limbs: float) -> Skeleton:
    bob = 0.06 * limbs
    stalks = [(colour, [(-0.62, 0.28 - bob), (x, -0.32 - bob)]) for x, colour in ((-0.82, LEFT), (-0.44, RIGHT))]
    foot = [(0.24, 0.02), (-0.5, 0.8), (0.95, 0.9)]
    return (-0.62, 0.28 - bob), (0.24, 0.02), [(TAIL, foot), *stalks]


SKELETONS: dict[str, Callable[[float], Skeleton]] = {
    "cat": _cat,
    "dragon": _dragon,
    "rabbit": _rabbit,
    "robot": _robot,
    "ghost": _ghost,
    "penguin": _penguin,
    "octopus": _octopus,
    "snail": _snail,
}
"""Of each kind in subject coordinates, for how its limbs are held (in [0, 1]), as the kinds' painters draw them."""
