"""The comparison with vanilla pictures, on drawn ones of which it is known who they show."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.evaluation.consistency import compare_with_vanilla
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.evaluation.rendering import PictureStore, Renderer
from consistory_ray.miniature.judge import Judge
from consistory_ray.miniature.vocabulary import KINDS, SCENES
from consistory_ray.settings import MethodSettings
from training.individuals import Identity, random_identity, random_placement
from training.world import PictureSpec, draw


class DrawingPipeline:
    """Draws what prompts ask for: anybody without the method, one individual per subject with it."""

    def __init__(self) -> None:
        self.pipe = SimpleNamespace(unet=SimpleNamespace(dtype=torch.float32))

    def drawn(self, prompts: Sequence[str], seeds: Sequence[int], who: Identity | None = None) -> SimpleNamespace:
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            rng = random.Random(seed)
            (kind,) = set(KINDS) & set(prompt.split())
            (scene,) = (scene for scene in SCENES if prompt.endswith(scene))
            individual = who or random_identity(rng, kind)
            images.append(draw(PictureSpec((individual,), (random_placement(rng),), scene, seed)).image)
        return SimpleNamespace(images=images, masks={})

    def render_vanilla(self, prompts: Sequence[str], seeds: Sequence[int], **_: Any) -> SimpleNamespace:
        return self.drawn(prompts, seeds)

    def create_subject(self, prompts: Sequence[str], concept: str, seeds: Sequence[int], **_: Any) -> SimpleNamespace:
        who = random_identity(random.Random(seeds[0]), concept)
        return SimpleNamespace(who=who, **vars(self.drawn(prompts, seeds, who)))

    def render(self, prompts: Sequence[str], subject: Any, seeds: Sequence[int], **_: Any) -> SimpleNamespace:
        return self.drawn(prompts, seeds, subject.who)


def test_the_measure_sees_who_stays_the_same() -> None:
    pipeline, subjects = cast(ConsiStoryPipeline, DrawingPipeline()), consistency_subjects(2, scenes=4)
    renderer = Renderer(pipeline, MethodSettings(), PictureStore(None, "f" * 64), batch_size=5)
    found = compare_with_vanilla(renderer, Judge.load(), subjects)
    assert [len(pictures) for pictures in found.ours] == [len(pictures) for pictures in found.vanilla] == [4] * 2
    numbers = found.numbers
    assert numbers["identity_gap_ratio"] < 0.3 and numbers["subjects_better"] == 2, numbers
    assert numbers["attribute_agreement"] > 0.9 > 0.6 > numbers["attribute_agreement_vanilla"]
    assert numbers["scene_accuracy"] >= 0.9 <= numbers["scene_accuracy_vanilla"]
    assert numbers["subject_accuracy"] >= 0.9 <= numbers["subject_accuracy_vanilla"]
