"""Do subjects stay themselves, do pictures show their prompts, do layouts vary, and what of it does the method change?

The judge, and measures without learning, read each subject's scenes; the yardstick is the same without the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from consistory_ray.evaluation.bootstrap import difference_interval, mean_interval, ratio_interval
from consistory_ray.evaluation.measures import layout_spread, srgb_to_lab
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.evaluation.rendering import Rendered, Renderer, stacked
from consistory_ray.miniature.judge import Judge, Portrait, Reading

IDENTITY_ATTRIBUTES = ("body", "second", "pattern", "accessory", "variant")


@dataclass(frozen=True)
class SubjectScores:
    """One subject's scenes, measured.

    Attributes:
        similarity: mean pairwise cosine of the judge's identity embeddings.
        colour_distance: mean pairwise CIELAB distance of the mean colours inside the judge's masks; no learning in it.
        attribute_agreement: share of (pair, attribute) on which the judge reads the same value.
        scene_accuracy, kind_accuracy: share of pictures showing the prompt's scene and kind.
        spread: see :func:`~consistory_ray.evaluation.measures.layout_spread`.
    """

    similarity: float
    colour_distance: float
    attribute_agreement: float
    scene_accuracy: float
    kind_accuracy: float
    spread: float


def pairwise_mean(values: Sequence[float]) -> float:
    """Mean over pairs; NaN without any."""
    return float(np.mean(values)) if values else float("nan")


def score_subject(judge: Judge, images: np.ndarray, subject: SubjectPrompts) -> SubjectScores:
    """Measure one subject's scenes, uint8 ``[N, H, W, 3]`` in the order of its prompts."""
    readings = judge.read(images)
    return scores_of(readings, judge.portray(images, [reading.foreground for reading in readings]), images, subject)


def scene_probability(readings: Sequence[Reading], scenes: Sequence[str]) -> float:
    """Mean probability that the judge gives the prompts' scenes, 0 where it sees another one."""
    seen = [
        reading.scene_probability * (reading.scene == scene) for reading, scene in zip(readings, scenes, strict=True)
    ]
    return float(np.mean(seen))


def agreement(portraits: Sequence[Portrait], name: str) -> float:
    """Share of pairs of pictures in which the judge reads the same value of an attribute."""
    return pairwise_mean([float(a.attributes[name] == b.attributes[name]) for a, b in combinations(portraits, 2)])


def scores_of(
    readings: Sequence[Reading], portraits: Sequence[Portrait], images: np.ndarray, subject: SubjectPrompts
) -> SubjectScores:
    """The same, of what the judge sees."""
    masks = [reading.foreground for reading in readings]
    pairs = list(combinations(range(len(images)), 2))
    colours = [
        srgb_to_lab(image[mask]).mean(0) if mask.any() else None for image, mask in zip(images, masks, strict=True)
    ]
    distances = []
    for i, j in pairs:
        a, b = colours[i], colours[j]
        if a is not None and b is not None:
            distances.append(float(np.linalg.norm(a - b)))
    return SubjectScores(
        similarity=pairwise_mean([float(portraits[i].embedding @ portraits[j].embedding) for i, j in pairs]),
        colour_distance=pairwise_mean(distances),
        attribute_agreement=float(np.mean([agreement(portraits, name) for name in IDENTITY_ATTRIBUTES])),
        scene_accuracy=float(np.mean([r.scene == scene for r, scene in zip(readings, subject.scenes, strict=True)])),
        kind_accuracy=float(np.mean([r.kinds(1) == [subject.kind] for r in readings])),
        spread=layout_spread(masks),
    )


@dataclass(frozen=True)
class Comparison:
    """Subjects rendered with and without the method, and measured; all lists in the order of the subjects.

    Attributes:
        ours, vanilla: their scenes.
        our_scores, vanilla_scores: measures of these.
    """

    ours: list[list[Rendered]]
    vanilla: list[list[Rendered]]
    our_scores: list[SubjectScores]
    vanilla_scores: list[SubjectScores]

    @property
    def numbers(self) -> dict[str, Any]:
        """See :func:`compare`."""
        return compare(self.our_scores, self.vanilla_scores)


def compare_with_vanilla(renderer: Renderer, judge: Judge, subjects: Sequence[SubjectPrompts]) -> Comparison:
    """Render subjects' scenes with and without the method, and measure both; anchors are not measured."""

    def scores(rendered: list[list[Rendered]]) -> list[SubjectScores]:
        return [
            score_subject(judge, stacked(pictures), subject)
            for pictures, subject in zip(rendered, subjects, strict=True)
        ]

    vanilla = renderer.vanilla_subjects(subjects)
    ours = [scenes for _, scenes in renderer.subjects(subjects)]
    return Comparison(ours, vanilla, scores(ours), scores(vanilla))


def compare(ours: Sequence[SubjectScores], vanilla: Sequence[SubjectScores]) -> dict[str, Any]:
    """The benchmark's numbers, with 95 % bootstrap intervals over subjects.

    Args:
        ours: with the method.
        vanilla: without it, same subjects, prompts and seeds.
    """

    def columns(name: str) -> tuple[np.ndarray, np.ndarray]:
        return np.array([getattr(s, name) for s in ours]), np.array([getattr(s, name) for s in vanilla])

    gap = tuple(1 - column for column in columns("similarity"))
    scene, kind, agreeing = columns("scene_accuracy"), columns("kind_accuracy"), columns("attribute_agreement")
    colour, spread = _complete(*columns("colour_distance")), _complete(*columns("spread"))
    drop = [100 * bound for bound in difference_interval(scene[1], scene[0])]
    return {
        "identity_gap_ratio": float(gap[0].mean() / gap[1].mean()),
        "identity_gap_interval": list(ratio_interval(*gap)),
        "identity_gap": float(gap[0].mean()),
        "identity_gap_vanilla": float(gap[1].mean()),
        "identity_similarity": float(1 - gap[0].mean()),
        "identity_similarity_interval": list(mean_interval(1 - gap[0])),
        "identity_similarity_vanilla": float(1 - gap[1].mean()),
        "identity_similarity_vanilla_interval": list(mean_interval(1 - gap[1])),
        "subjects_better": int((gap[0] < gap[1]).sum()),
        "colour_distance": float(colour[0].mean()),
        "colour_distance_vanilla": float(colour[1].mean()),
        "colour_distance_ratio": float(colour[0].mean() / colour[1].mean()),
        "colour_distance_interval": list(ratio_interval(*colour)),
        "attribute_agreement": float(agreeing[0].mean()),
        "attribute_agreement_vanilla": float(agreeing[1].mean()),
        "scene_accuracy": float(scene[0].mean()),
        "scene_accuracy_interval": list(mean_interval(scene[0])),
        "scene_accuracy_vanilla": float(scene[1].mean()),
        "scene_accuracy_vanilla_interval": list(mean_interval(scene[1])),
        "scene_accuracy_drop": float(100 * (scene[1].mean() - scene[0].mean())),
        "scene_accuracy_drop_interval": drop,
        "subject_accuracy": float(kind[0].mean()),
        "subject_accuracy_vanilla": float(kind[1].mean()),
        "layout_diversity": float(spread[0].mean()),
        "layout_diversity_vanilla": float(spread[1].mean()),
        "layout_diversity_ratio": float(spread[0].mean() / spread[1].mean()),
        "layout_diversity_interval": list(ratio_interval(*spread)),
        "subjects": len(ours),
    }


def _complete(ours: np.ndarray, vanilla: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Only the subjects for which both are known."""
    known = np.isfinite(ours) & np.isfinite(vanilla)
    return ours[known], vanilla[known]
