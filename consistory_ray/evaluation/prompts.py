"""Which prompts and seeds show whether subjects stay themselves? Fixed ones, silent about what makes an individual."""

from __future__ import annotations

import random
from dataclasses import dataclass

from consistory_ray.miniature.vocabulary import KINDS, SCENES, NamedAttributes, caption


@dataclass(frozen=True)
class SubjectPrompts:
    """One subject of the consistency benchmark. Its prompts name the kind and the scene, nothing of the identity.

    Attributes:
        kind: also the concept.
        anchors, anchor_seeds: the anchors' prompts and seeds.
        prompts, seeds, scenes: those of the scenes that are measured.
    """

    kind: str
    anchors: tuple[str, ...]
    anchor_seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    scenes: tuple[str, ...]


def consistency_subjects(count: int, scenes: int = 6, anchors: int = 2, seed: int = 2026) -> list[SubjectPrompts]:
    """Subjects of all kinds in turn, each with anchors and scenes in different places of the world."""
    subjects = []
    for index in range(count):
        rng = random.Random(f"consistency/{seed}/{index}")
        kind = KINDS[index % len(KINDS)]
        places = rng.sample(SCENES, anchors + scenes)
        texts = tuple(caption("a drawing of", [kind], [NamedAttributes()], place) for place in places)
        seeds = tuple(rng.randrange(2**32) for _ in places)
        subjects.append(
            SubjectPrompts(
                kind, texts[:anchors], seeds[:anchors], texts[anchors:], seeds[anchors:], tuple(places[anchors:])
            )
        )
    return subjects
