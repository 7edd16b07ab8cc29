"""Prompts that ask the model for what it has not been shown: of its world, but no training picture's caption."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from consistory_ray.miniature.vocabulary import STYLES, NamedAttributes, caption
from training.dataset import TRAIN_SEED, imagine
from training.world import TWO_SUBJECTS, random_mentions, random_spec

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


@cache
def training_captions(pictures: int = CAPTIONED_PICTURES) -> frozenset[str]:
    """Every caption of the first drawn training pictures; nothing is drawn."""
    return frozenset(text for index in range(pictures) for text in imagine(TRAIN_SEED, index)[1])


def held_out_prompts(count: int, seed: int = 2026) -> list[EvaluationPrompt]:
    """Distinct prompts that no training picture was captioned with.

    They are made as training captions are, with the same share of two-subject ones. Short captions have all been seen,
    so that these prompts name more attributes, and rarer combinations, than captions do.

    Args:
        count: how many; the first n of a longer list are the shorter list.
        seed: of the list.
    """
    taken = set(training_captions())
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
