"""Fixed prompts and seeds for the benchmarks of the miniature."""

from __future__ import annotations

import random
from dataclasses import dataclass

from consistory_ray.miniature.dataset import TRAIN_SEED
from consistory_ray.miniature.individuals import KINDS
from consistory_ray.miniature.world import (
    SCENES,
    STYLES,
    NamedAttributes,
    caption,
    random_caption,
    random_mentions,
    random_spec,
)
from consistory_ray.miniature.world import training_captions as generous_captions

TWO_SUBJECTS = 0.12
"""Share of two-subject pictures in training, and in the evaluation prompts."""


CAPTIONED_PICTURES = 48_000
"""Drawn pictures whose captions are avoided: no fewer than the model is trained on."""


@dataclass(frozen=True)
class NamedSubject:
    """A subject as a prompt names it."""

    kind: str
    named: NamedAttributes

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes that the prompt names: of body, pattern and accessory those that are not left open."""
        found = {"body": self.named.body, "pattern": self.named.pattern, "accessory": self.named.accessory}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt with what its picture should show, and the seed to sample it with."""

    text: str
    subjects: tuple[NamedSubject, ...]
    scene: str
    seed: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of subject it names."""
        return tuple(subject.kind for subject in self.subjects)


def training_captions(pictures: int = CAPTIONED_PICTURES) -> set[str]:
    """Every caption of the first drawn training pictures; nothing is drawn."""
    captions: set[str] = set()
    for index in range(pictures):
        rng = random.Random(f"{TRAIN_SEED}/{index}")
        spec = random_spec(rng, TWO_SUBJECTS)
        captions.update(random_caption(rng, spec) for _ in range(2))
        captions.update(generous_captions(TRAIN_SEED, index, spec))
    return captions


def held_out_prompts(count: int, seed: int = 2026) -> list[EvaluationPrompt]:
    """Distinct prompts that no training picture was captioned with.

    They are made as training captions are, with the same share of two-subject ones. Short captions have all been seen,
    so that these prompts name more attributes, and rarer combinations, than captions do.

    Args:
        count: how many; the first n of a longer list are the shorter list.
        seed: of the list.
    """
    taken = training_captions()
    rng = random.Random(f"evaluation/{seed}")
    prompts: list[EvaluationPrompt] = []
    while len(prompts) < count:
        pair = random.Random(f"pair/{seed}/{len(prompts)}").random() < TWO_SUBJECTS
        spec = random_spec(rng, float(pair))
        mentions = [random_mentions(rng, identity) for identity in spec.subjects]
        kinds = [identity.kind for identity in spec.subjects]
        text = caption(rng.choice((*STYLES, "")), kinds, mentions, spec.scene)
        sampling_seed = rng.randrange(2**32)
        if text in taken:
            continue
        taken.add(text)
        subjects = tuple(NamedSubject(kind, named) for kind, named in zip(kinds, mentions, strict=True))
        prompts.append(EvaluationPrompt(text, subjects, spec.scene, sampling_seed))
    return prompts


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
