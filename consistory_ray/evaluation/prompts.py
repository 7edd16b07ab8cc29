"""Which prompts and seeds show whether subjects stay themselves? Fixed ones, silent about what makes an individual."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations

from consistory_ray.miniature.vocabulary import KINDS, SCENES, NamedAttributes, caption

CONTRASTS = (("red", "blue"), ("green", "purple"), ("yellow", "blue"), ("orange", "teal"), ("pink", "green"))
"""Colours of the world that are far apart."""


@dataclass(frozen=True)
class SubjectPrompts:
    """One subject of the consistency benchmark. Its prompts name the kind and the scene, nothing of the identity.

    Attributes:
        kind: also its only concept.
        anchors, anchor_seeds: the anchors' prompts and seeds.
        prompts, seeds, scenes: those of the scenes that are measured.
    """

    kind: str
    anchors: tuple[str, ...]
    anchor_seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    scenes: tuple[str, ...]

    @property
    def concepts(self) -> tuple[str, ...]:
        """What names it in the prompts."""
        return (self.kind,)


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


@dataclass(frozen=True)
class PairPrompts:
    """Two subjects that share their pictures.

    Attributes:
        kinds: of the first and of the second.
        concepts: what names them in the prompts.
        anchors, anchor_seeds: the anchors' prompts and seeds.
        prompts, seeds, scenes: those of the scenes that are measured.
    """

    kinds: tuple[str, str]
    concepts: tuple[str, ...]
    anchors: tuple[str, ...]
    anchor_seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    scenes: tuple[str, ...]


def alone(job: PairPrompts) -> tuple[SubjectPrompts, SubjectPrompts]:
    """Each subject of a pair with anchors of its own, in places that the pair's scenes do not show, and no scenes."""

    def one(kind: str) -> SubjectPrompts:
        rng = random.Random(f"alone/{job.kinds}/{kind}/{job.seeds}")
        places = rng.sample([place for place in SCENES if place not in job.scenes], len(job.anchors))
        texts = tuple(caption("a drawing of", [kind], [NamedAttributes()], place) for place in places)
        return SubjectPrompts(kind, texts, tuple(rng.randrange(2**32) for _ in places), (), (), ())

    return one(job.kinds[0]), one(job.kinds[1])


def alike_prompts(count: int, scenes: int = 3, anchors: int = 2, seed: int = 2026) -> list[PairPrompts]:
    """Pairs of one kind that differ by the colour in their concepts: "a red cat and a blue cat in the forest"."""
    found = []
    for index in range(count):
        rng = random.Random(f"alike/{seed}/{index}")
        kind = KINDS[index % len(KINDS)]
        colours = rng.sample(CONTRASTS[index % len(CONTRASTS)], 2)
        named = [NamedAttributes(body=colour) for colour in colours]
        places = rng.sample(SCENES, anchors + scenes)
        texts = tuple(caption("a drawing of", [kind, kind], named, place) for place in places)
        seeds = tuple(rng.randrange(2**32) for _ in places)
        first, second = (f"{colour} {kind}" for colour in colours)
        found.append(
            PairPrompts(
                (kind, kind),
                (first, second),
                texts[:anchors],
                seeds[:anchors],
                texts[anchors:],
                seeds[anchors:],
                tuple(places[anchors:]),
            )
        )
    return found


def pair_prompts(count: int, scenes: int = 3, anchors: int = 2, seed: int = 2026) -> list[PairPrompts]:
    """Pairs of different kinds, in an order in which any first few are mixed; the first 28 are all that there are.

    As in :func:`consistency_subjects`, prompts name the kinds and the scene ("a drawing of a cat and a robot in the
    forest") and leave the individuals open.
    """
    every = list(combinations(KINDS, 2))
    random.Random(f"pairs/{seed}").shuffle(every)
    found = []
    for index in range(count):
        rng = random.Random(f"pairs/{seed}/{index}")
        first, second = rng.sample(every[index % len(every)], 2)
        places = rng.sample(SCENES, anchors + scenes)
        texts = tuple(caption("a drawing of", [first, second], [NamedAttributes()] * 2, place) for place in places)
        seeds = tuple(rng.randrange(2**32) for _ in places)
        found.append(
            PairPrompts(
                (first, second),
                (first, second),
                texts[:anchors],
                seeds[:anchors],
                texts[anchors:],
                seeds[anchors:],
                tuple(places[anchors:]),
            )
        )
    return found
