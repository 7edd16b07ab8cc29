"""Casting for benchmarks: subjects with other anchors' seeds, and those whose anchors agree best."""

from __future__ import annotations

from dataclasses import dataclass, replace

from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.evaluation.rendering import Rendered, Renderer
from consistory_ray.plan.takes import take_seed
from consistory_ray.quality.casting import agreement, best, to_the_others
from consistory_ray.quality.identity import subject_embeddings
from consistory_ray.quality.metrics import Metric

METRIC = "judge-2"
"""What casts; what measures is the judge."""


@dataclass(frozen=True)
class Cast:
    """A subject that was chosen among candidates.

    Attributes:
        subject: with the chosen anchors' seeds.
        agreements: of the anchors of every candidate, the first one is the subject as it was.
    """

    subject: SubjectPrompts
    agreements: tuple[float, ...]


def candidate(subject: SubjectPrompts, number: int) -> SubjectPrompts:
    """The subject with its anchors' seeds of candidate ``number``, from 1, as ``consistory-ray cast`` has them."""
    return replace(subject, anchor_seeds=tuple(take_seed(seed, number) for seed in subject.anchor_seeds))


def cast(renderer: Renderer, metric: Metric, subject: SubjectPrompts, candidates: int) -> Cast:
    """Render the anchors of so many candidates and choose the subject of which they agree best."""
    tried = [candidate(subject, number) for number in range(1, candidates + 1)]
    agreements = [anchors_agree(metric, renderer.anchors(one)) for one in tried]
    return Cast(tried[best(agreements)], tuple(agreements))


def anchors_agree(metric: Metric, anchors: list[Rendered]) -> float:
    """How much anchors agree by a metric that finds subjects by itself, or by the method's finest masks."""
    masks = [max(one.masks.values(), key=lambda mask: mask.shape[-1]) for one in anchors]
    keys = [f"anchor-{number}" for number in range(len(anchors))]
    return agreement(to_the_others(subject_embeddings(metric, [one.image for one in anchors], masks, keys)))
