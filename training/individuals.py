"""What makes one of the miniature's subjects an individual, and where it stands in a picture."""

from __future__ import annotations

import random
from dataclasses import dataclass

from consistory_ray.miniature.vocabulary import ACCESSORIES, ACCESSORY_COLOURS, COLOURS, KINDS, PATTERNS


@dataclass(frozen=True)
class Identity:
    """What stays the same about one individual from scene to scene.

    ``second`` colours the belly, wings, ears and pattern; ``variant`` picks between two builds of a kind (horns or
    spikes, pointed or folded ears, ...).
    """

    kind: str
    body: str
    second: str
    pattern: str
    accessory: str
    accessory_colour: str
    variant: int


@dataclass(frozen=True)
class Placement:
    """Where and how one subject stands: centre and half-height as fractions of the frame, mirrored or not."""

    x: float
    y: float
    half_size: float
    flip: bool
    tilt: float
    stretch: float
    limbs: float


def random_identity(rng: random.Random, kind: str | None = None) -> Identity:
    """An individual drawn at random; its second colour always differs from its body colour."""
    body = rng.choice(tuple(COLOURS))
    return Identity(
        kind=kind or rng.choice(KINDS),
        body=body,
        second=rng.choice([colour for colour in COLOURS if colour != body]),
        pattern=rng.choices(PATTERNS, (2, 1, 1))[0],
        accessory=rng.choices(ACCESSORIES, (3, 1, 1, 1, 1, 1))[0],
        accessory_colour=rng.choice(ACCESSORY_COLOURS),
        variant=rng.randrange(2),
    )


def random_placement(rng: random.Random, slot: int = 0, slots: int = 1) -> Placement:
    """A placement drawn at random; with two slots, the left or the right half of the frame."""
    if slots == 1:
        half = rng.uniform(0.31, 0.385)
        x = rng.uniform(half + 0.02, 0.98 - half)
    else:
        half = rng.uniform(0.215, 0.25)
        x = (0.27, 0.73)[slot] + rng.uniform(-0.03, 0.03)
    return Placement(
        x=x,
        y=rng.uniform(0.94, 0.985) - half - rng.choice((0.0, 0.0, rng.uniform(0.0, 0.1))),
        half_size=half,
        flip=rng.random() < 0.5,
        tilt=rng.uniform(-7, 7),
        stretch=rng.uniform(0.94, 1.06),
        limbs=rng.random(),
    )
