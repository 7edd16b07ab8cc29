"""The miniature's world, drawn: pictures at random, their pixels and masks, and captions that say what they show.

A picture shows one or two cartoon *subjects* in a *scene*. What makes a subject an individual (colours, pattern,
accessory, variant) is its :class:`~training.individuals.Identity`; a caption names only some of it. The words are those
of :mod:`consistory_ray.miniature.vocabulary`. Pure Python and Pillow, seeded, no downloads.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from consistory_ray.miniature.vocabulary import KINDS, PICTURE_SIZE, SCENES, STYLES, NamedAttributes, caption
from training.drawing.scenery import draw_scene
from training.drawing.subjects import draw_subject
from training.individuals import Identity, Placement, random_identity, random_placement

TWO_SUBJECTS = 0.12
"""Share of pictures that show two subjects."""
SUPERSAMPLING = 3
"""Pictures are drawn this many times larger and reduced, which is what smooths their edges."""


@dataclass(frozen=True)
class PictureSpec:
    """Everything that decides a picture: its subjects, their placement, the scene and the scene's own draw."""

    subjects: tuple[Identity, ...]
    placements: tuple[Placement, ...]
    scene: str
    scene_seed: int


@dataclass(frozen=True)
class Drawing:
    """A drawn picture.

    Attributes:
        image: RGB picture, PICTURE_SIZE squared.
        masks: float32 ``[subjects, H, W]`` in [0, 1], the part of each pixel that a subject covers (visible part only).
    """

    image: Image.Image
    masks: np.ndarray


def random_spec(rng: random.Random, two_subjects: float = TWO_SUBJECTS) -> PictureSpec:
    """A picture drawn at random; ``two_subjects`` is the probability of a pair, always of two kinds."""
    if rng.random() < two_subjects:
        kinds = rng.sample(KINDS, 2)
        subjects = tuple(random_identity(rng, kind) for kind in kinds)
    else:
        subjects = (random_identity(rng),)
    placements = tuple(random_placement(rng, slot, len(subjects)) for slot in range(len(subjects)))
    return PictureSpec(subjects, placements, rng.choice(SCENES), rng.randrange(2**31))


@dataclass(frozen=True)
class Habit:
    """How often captions name an attribute of a subject: its body colour, a pattern, that it is plain, an accessory."""

    body: float
    pattern: float
    plain: float
    accessory: float


USUAL = Habit(body=0.35, pattern=0.3, plain=0.08, accessory=0.5)
"""Most captions name nothing of an individual, or one thing, as people's prompts do."""
GENEROUS = Habit(body=0.6, pattern=0.6, plain=0.25, accessory=0.75)
"""Naming most attributes: how the words for them are learned."""


def random_mentions(rng: random.Random, identity: Identity, habit: Habit = USUAL) -> NamedAttributes:
    """Which of an individual's attributes a caption happens to name."""
    pattern = habit.plain if identity.pattern == "plain" else habit.pattern
    return NamedAttributes(
        body=identity.body if rng.random() < habit.body else None,
        pattern=identity.pattern if rng.random() < pattern else None,
        accessory=identity.accessory if identity.accessory != "none" and rng.random() < habit.accessory else None,
    )


def random_caption(rng: random.Random, spec: PictureSpec, habit: Habit = USUAL) -> str:
    """A caption of a picture as the training set has it."""
    style = rng.choice((*STYLES, STYLES[0], ""))
    mentions = [random_mentions(rng, identity, habit) for identity in spec.subjects]
    return caption(style, [identity.kind for identity in spec.subjects], mentions, spec.scene)


def draw(spec: PictureSpec, size: int = PICTURE_SIZE) -> Drawing:
    """Draw a picture.

    Args:
        spec: what to draw.
        size: side in pixels.
    """
    side = size * SUPERSAMPLING
    canvas = draw_scene(spec.scene, random.Random(spec.scene_seed), side)
    masks: list[np.ndarray] = []
    for identity, placement in zip(spec.subjects, spec.placements, strict=True):
        layer = draw_subject(identity, placement, side)
        canvas.paste(layer, (0, 0), layer)
        alpha = layer.getchannel("A").reduce(SUPERSAMPLING)
        mask = np.asarray(alpha, dtype=np.float32) / 255
        masks = [earlier * (1 - mask) for earlier in masks] + [mask]
    return Drawing(canvas.reduce(SUPERSAMPLING), np.stack(masks))
