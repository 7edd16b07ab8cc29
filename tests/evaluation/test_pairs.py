"""The measures of two subjects in one picture, on drawn pictures of which it is known who they show."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from consistory_ray.evaluation.pairs import (
    PairScores,
    compare_pairs,
    count_crossings,
    measure_pair,
    token_owners,
)
from consistory_ray.evaluation.prompts import PairPrompts, pair_prompts
from consistory_ray.evaluation.rendering import Rendered
from consistory_ray.miniature.judge import Judge
from consistory_ray.miniature.vocabulary import KINDS
from training.individuals import Identity, random_identity, random_placement
from training.world import PictureSpec, draw


def drawn(
    job: PairPrompts, who: tuple[Identity, Identity] | None, first: int, places: tuple[str, ...]
) -> list[Rendered]:
    """A job's pictures, of always the same two or of anybody."""
    pictures = []
    for number, place in enumerate(places):
        rng = random.Random(f"{job.kinds}/{first + number}")
        pair = who or (random_identity(rng, job.kinds[0]), random_identity(rng, job.kinds[1]))
        placements = (random_placement(rng, 0, 2), random_placement(rng, 1, 2))
        pictures.append(Rendered(draw(PictureSpec(pair, placements, place, number)).image, {}))
    return pictures


def scored(job: PairPrompts, who: tuple[Identity, Identity] | None) -> PairScores:
    anchors, scenes = drawn(job, who, 0, job.scenes[:2]), drawn(job, who, 2, job.scenes)
    return measure_pair(Judge.load(), job.kinds, job.scenes, anchors, scenes)


def test_the_same_two_are_told_from_anybody() -> None:
    jobs = pair_prompts(4)
    pairs = [tuple(random_identity(random.Random(f"{job.kinds}/{kind}"), kind) for kind in job.kinds) for job in jobs]
    ours = [scored(job, (pair[0], pair[1])) for job, pair in zip(jobs, pairs, strict=True)]
    numbers = compare_pairs(ours, [scored(job, None) for job in jobs])
    assert numbers["jobs"] == 4 and numbers["gap_ratio"] < 0.3 and numbers["anchor_gap_ratio"] < 0.3, numbers
    low, high = numbers["gap_ratio_interval"]
    assert low <= numbers["gap_ratio"] <= high
    assert numbers["colour_to_anchors"] < 6 < 15 < numbers["colour_to_anchors_vanilla"]
    assert numbers["similarity"] > 0.85 > 0.7 > numbers["similarity_vanilla"]
    assert abs(numbers["to_other"] - numbers["to_other_vanilla"]) < 0.25, "the others are strangers either way"
    assert numbers["both_present"] == 1 and numbers["scene_accuracy"] > 0.9
    assert "crossing_share" not in numbers, "nothing was injected"


def test_who_is_not_there_resembles_nothing() -> None:
    (job,) = pair_prompts(1)
    anybody = drawn(job, None, 0, job.scenes)
    alone = [Rendered(Image.new("RGB", (128, 128), (90, 160, 220)), {}), *anybody[1:]]
    found = measure_pair(Judge.load(), job.kinds, job.scenes, anybody[:2], alone)
    assert found.both_present == pytest.approx(2 / 3)
    whole = measure_pair(Judge.load(), job.kinds, job.scenes, anybody[:2], anybody)
    assert found.to_anchors < whole.to_anchors and found.similarity < whole.similarity
    assert np.isfinite(found.colour_to_anchors)


def test_crossings_are_tokens_of_one_that_come_from_the_other() -> None:
    left, right = np.zeros((1, 8, 8), bool), np.zeros((1, 8, 8), bool)
    left[:, :, :4], right[:, :, 4:] = True, True
    assert token_owners([left, right], 4).reshape(4, 4).tolist() == [[1, 1, 2, 2]] * 4
    injected = np.ones(16, bool)
    injected[-1] = False
    sources = {"anchor": np.zeros(16, int), "token": np.arange(16), "injected": injected}
    picture = Image.new("RGB", (8, 8))
    assert count_crossings([Rendered(picture, {}, sources)], [left, right], [left, right]) == (0, 15)
    assert count_crossings([Rendered(picture, {}, sources)], [left, right], [right, left]) == (15, 15)
    nobody = np.zeros_like(left)
    assert count_crossings([Rendered(picture, {}, sources)], [left, right], [left, nobody]) == (0, 8)


def test_jobs_are_all_pairs_of_kinds_once() -> None:
    jobs = pair_prompts(28)
    assert {frozenset(job.kinds) for job in jobs} == {frozenset(pair) for pair in combinations(KINDS, 2)}
    assert jobs[:5] == pair_prompts(5), "more jobs leave the first ones alone"
    for job in jobs:
        assert len(set(job.seeds + job.anchor_seeds)) == 5 and len(job.prompts) == 3
        assert all(f"a {job.kinds[0]} and a" in text.replace("an ", "a ") for text in job.prompts + job.anchors)
