"""Is another seed for the anchors another individual? Distances within one and between several."""

from __future__ import annotations

import dataclasses
import random
from itertools import combinations
from typing import Any

import numpy as np

from benchmarks.consistency import rounded
from benchmarks.paper.bench import Bench
from consistory_ray.evaluation.bootstrap import mean_interval, ratio_interval
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.evaluation.rendering import Rendered, stacked
from consistory_ray.evaluation.sheets import blocks_sheet

SHOWN_SUBJECTS, SHOWN_SCENES = 4, 3


def reseeded(subject: SubjectPrompts, number: int) -> SubjectPrompts:
    """The same words and scenes with other seeds for the anchors; number 0 has its own."""
    if number == 0:
        return subject
    rng = random.Random(f"paper/seeds/{subject.anchor_seeds}/{number}")
    return dataclasses.replace(subject, anchor_seeds=tuple(rng.randrange(2**32) for _ in subject.anchor_seeds))


def seeds(bench: Bench) -> dict[str, Any]:
    """Every subject with several anchors' seeds: mean identity distance of its scenes, within a seed and between two.

    Between seeds only scenes of different prompts are compared, as within one.
    """
    renderer = bench.renderer()
    pictures: list[list[list[Rendered]]] = [  # [subjects][seeds][scenes]
        [renderer.subject(reseeded(subject, number))[1] for number in range(bench.options.seeds)]
        for subject in bench.subjects
    ]
    found = [_distances(bench, own) for own in pictures]
    within, between = (np.array(column) for column in zip(*found, strict=True))
    numbers: dict[str, Any] = {
        "distance_within": float(within.mean()),
        "distance_within_interval": list(mean_interval(within)),
        "distance_between": float(between.mean()),
        "distance_between_interval": list(mean_interval(between)),
        "between_by_within": float(between.mean() / within.mean()),
        "between_by_within_interval": list(ratio_interval(between, within)),
        "subjects_apart": int((between > within).sum()),
        "seeds": bench.options.seeds,
    }
    numbers = {key: rounded(value) for key, value in numbers.items()}
    rows = [[[one.image for one in scenes[:SHOWN_SCENES]] for scenes in own] for own in pictures[:SHOWN_SUBJECTS]]
    labels = [f"seed {number + 1}" for number in range(bench.options.seeds)]
    sheet = blocks_sheet(rows, labels, [one.kind for one in bench.subjects[: len(rows)]], side=128)
    each = [
        {"kind": subject.kind, "within": w, "between": b} for subject, (w, b) in zip(bench.subjects, found, strict=True)
    ]
    bench.write("seeds", {"numbers": numbers, "by_subject": each}, sheet)
    return numbers


def _distances(bench: Bench, seeds: list[list[Rendered]]) -> tuple[float, float]:
    """Mean of 1 - cosine within a seed and between two, over pairs of scenes with different prompts."""
    embeddings = []
    for scenes in seeds:
        images = stacked(scenes)
        masks = [reading.foreground for reading in bench.judge.read(images)]
        embeddings.append(np.stack([one.embedding for one in bench.judge.portray(images, masks)]))
    scenes = list(combinations(range(len(embeddings[0])), 2))
    within = [1 - own[i] @ own[j] for own in embeddings for i, j in scenes]
    between = [1 - (a[i] @ b[j] + a[j] @ b[i]) / 2 for a, b in combinations(embeddings, 2) for i, j in scenes]
    return float(np.mean(within)), float(np.mean(between))
