"""Held-out hints for the scenes of the consistency benchmark's subjects, with the silhouettes that they ask for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from consistory_ray.evaluation.prompts import SubjectPrompts
from training.hints import draw_hint
from training.individuals import random_identity, random_placement
from training.world import PictureSpec, draw


@dataclass(frozen=True)
class LedScene:
    """What leads one scene.

    Attributes:
        name: of :data:`training.hints.HINTS`.
        hint: the picture that is shown to the ControlNet.
        drawing: the drawn picture whose hint it is: of another individual of the kind, in the scene's place.
        silhouette: bool ``[H, W]``, where its subject is.
    """

    name: str
    hint: Image.Image
    drawing: Image.Image
    silhouette: np.ndarray


def led_scenes(subject: SubjectPrompts, names: Sequence[str], seed: str) -> list[LedScene]:
    """A hint for each scene of a subject, drawn at random and apart from all training pictures.

    The individuals that are drawn wear nothing, as the prompts name nothing to wear; their build is chance.

    Args:
        subject: with its kind and scenes.
        names: of the hints, one per scene.
        seed: of the draws.
    """
    scenes = []
    for position, (name, place) in enumerate(zip(names, subject.scenes, strict=True)):
        rng = random.Random(f"led/{seed}/{position}")
        someone = replace(random_identity(rng, subject.kind), accessory="none")
        spec = PictureSpec((someone,), (random_placement(rng),), place, rng.randrange(2**31))
        drawing = draw(spec)
        scenes.append(LedScene(name, draw_hint(name, spec, drawing), drawing.image, drawing.masks[0] > 0.5))
    return scenes
