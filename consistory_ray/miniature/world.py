"""The miniature's world: who lives in it, where, how a picture is described, and how one is drawn at random.

A picture shows one or two cartoon *subjects* in a *scene*. What makes a subject an individual (colours, pattern,
accessory, variant) is its :class:`Identity`; a caption names only some of it, so a prompt such as "a drawing of a
dragon in the forest" leaves the look open, as prompts do in real life. Pure Python and Pillow, seeded, no downloads.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from consistory_ray.miniature.individuals import (
    ACCESSORIES,
    COLOURS,
    KINDS,
    PATTERNS,
    Identity,
    Placement,
    random_identity,
    random_placement,
)
from consistory_ray.miniature.subjects import draw_subject

SCENES = (
    "in the forest",
    "on the beach",
    "in space",
    "in the city at night",
    "in the desert",
    "in the snow",
    "in the meadow",
    "under the sea",
    "by the volcano",
    "in the kitchen",
    "at sunset",
    "in the rain",
)
STYLES = ("a drawing of", "a cartoon of", "a picture of")

PICTURE_SIZE = 128
"""Side of a picture in pixels."""
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


def random_spec(rng: random.Random, two_subjects: float = 0.12) -> PictureSpec:
    """A picture drawn at random; ``two_subjects`` is the probability of a pair, always of two kinds."""
    if rng.random() < two_subjects:
        kinds = rng.sample(KINDS, 2)
        subjects = tuple(random_identity(rng, kind) for kind in kinds)
    else:
        subjects = (random_identity(rng),)
    placements = tuple(random_placement(rng, slot, len(subjects)) for slot in range(len(subjects)))
    return PictureSpec(subjects, placements, rng.choice(SCENES), rng.randrange(2**31))


@dataclass(frozen=True)
class NamedAttributes:
    """The attributes of one subject that its caption mentions."""

    body: str | None = None
    pattern: str | None = None
    accessory: str | None = None


def random_mentions(rng: random.Random, identity: Identity) -> NamedAttributes:
    """Which of an individual's attributes a caption happens to name: usually none or one."""
    return NamedAttributes(
        body=identity.body if rng.random() < 0.35 else None,
        pattern=identity.pattern if rng.random() < (0.3 if identity.pattern != "plain" else 0.08) else None,
        accessory=identity.accessory if identity.accessory != "none" and rng.random() < 0.5 else None,
    )


def generous_mentions(rng: random.Random, identity: Identity) -> NamedAttributes:
    """Like :func:`random_mentions`, but naming most attributes: how the words for them are learned."""
    return NamedAttributes(
        body=identity.body if rng.random() < 0.6 else None,
        pattern=identity.pattern if rng.random() < (0.6 if identity.pattern != "plain" else 0.25) else None,
        accessory=identity.accessory if identity.accessory != "none" and rng.random() < 0.75 else None,
    )


def describe(kind: str, named: NamedAttributes) -> str:
    """A subject in words, such as "a red striped dragon with a hat"."""
    accessory = {None: "", "glasses": "with glasses"}.get(named.accessory, f"with a {named.accessory}")
    words = " ".join(filter(None, (named.body, named.pattern, kind, accessory)))
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(style: str, kinds: Iterable[str], mentions: Iterable[NamedAttributes], scene: str) -> str:
    """A whole prompt: style, subjects joined by "and", scene."""
    subjects = " and ".join(describe(kind, named) for kind, named in zip(kinds, mentions, strict=True))
    return " ".join(filter(None, (style, subjects, scene)))


def random_caption(rng: random.Random, spec: PictureSpec) -> str:
    """A caption of a picture as the training set has it."""
    style = rng.choice((*STYLES, STYLES[0], ""))
    mentions = [random_mentions(rng, identity) for identity in spec.subjects]
    return caption(style, [identity.kind for identity in spec.subjects], mentions, spec.scene)


def training_captions(seed: int, index: int, spec: PictureSpec, generous: int = 4) -> list[str]:
    """Further captions of a training picture, naming more of its attributes than :func:`random_caption` does.

    Args:
        seed, index: which picture of which set.
        spec: what it shows.
        generous: how many.
    """
    rng = random.Random(f"{seed}/captions/{index}")
    kinds = [identity.kind for identity in spec.subjects]
    return [
        caption(
            rng.choice((*STYLES, STYLES[0], "")),
            kinds,
            [generous_mentions(rng, identity) for identity in spec.subjects],
            spec.scene,
        )
        for _ in range(generous)
    ]


def words() -> list[str]:
    """Every word a caption can contain, in a fixed order."""
    phrases = [*STYLES, *KINDS, *SCENES, *COLOURS, *PATTERNS, *ACCESSORIES, "with a an and"]
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


def draw(spec: PictureSpec, size: int = PICTURE_SIZE) -> Drawing:
    """Draw a picture.

    Args:
        spec: what to draw.
        size: side in pixels.
    """
    from consistory_ray.miniature.scenery import draw_scene

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
