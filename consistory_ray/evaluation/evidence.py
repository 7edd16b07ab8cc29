"""What do the pictures of several ways of rendering show? Every picture is judged once; numbers come from the rows.

A *way* is the method at some strength, vanilla, or a baseline. Its rows, one per subject, are JSON-ready and hold all
that the numbers need, so that these can be computed again without pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consistory_ray.evaluation.consistency import SubjectScores, scores_of
from consistory_ray.evaluation.hard_attributes import HARD_ATTRIBUTES, Look, disagreement, look
from consistory_ray.evaluation.picture_quality import chroma, discrepancies, outline_strength, sharpness
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.miniature.judge import Judge


@dataclass(frozen=True)
class SubjectEvidence:
    """One subject's scenes made in one way, measured.

    Attributes:
        subject: its number.
        kind: what it is.
        scores: what the consistency benchmark has always measured.
        disagreement: by attribute, see :func:`~consistory_ray.evaluation.hard_attributes.disagreement`.
        scene_probability, kind_probability: means of the probabilities that the judge gives to the prompt's scene and
            kind, where it sees another one too.
        outline, sharpness, chroma: means over its pictures, see :mod:`~consistory_ray.evaluation.picture_quality`.
        looks: what the judge reads in each picture.
    """

    subject: int
    kind: str
    scores: SubjectScores
    disagreement: Mapping[str, float]
    scene_probability: float
    kind_probability: float
    outline: float
    sharpness: float
    chroma: float
    looks: tuple[Look | None, ...]

    @property
    def hard_disagreement(self) -> float:
        """Mean of the attributes' disagreements."""
        return float(np.mean([self.disagreement[name] for name in HARD_ATTRIBUTES]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; looks as "red/blue/plain/hat/yellow/cat-1" in the order of the hard attributes."""
        row = dataclasses.asdict(self)
        row["looks"] = [
            None if seen is None else "/".join(seen[name] for name in HARD_ATTRIBUTES) for seen in self.looks
        ]
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> SubjectEvidence:
        """The inverse of :meth:`to_dict`; unknown and absent keys raise TypeError or KeyError."""
        looks = tuple(
            None if seen is None else dict(zip(HARD_ATTRIBUTES, seen.split("/"), strict=True)) for seen in row["looks"]
        )
        values = _known(row)
        return cls(**{**values, "scores": SubjectScores(**values["scores"]), "looks": looks})


def _known(values: Any) -> Any:
    """JSON has null for what is not a number."""
    if isinstance(values, Mapping):
        return {name: _known(value) for name, value in values.items()}
    return float("nan") if values is None else values


@dataclass(frozen=True)
class Way:
    """Subjects' scenes made in one way, measured.

    Attributes:
        rows: by subject, in the order of their numbers.
        discrepancies: of its pictures, see :func:`~consistory_ray.evaluation.picture_quality.discrepancies`.
    """

    rows: tuple[SubjectEvidence, ...]
    discrepancies: np.ndarray

    @classmethod
    def empty(cls) -> Way:
        """Of nobody."""
        return cls((), np.zeros((0, 0)))

    @property
    def subjects(self) -> tuple[int, ...]:
        """The subjects' numbers."""
        return tuple(row.subject for row in self.rows)

    def of(self, subjects: set[int]) -> Way:
        """Only some of the subjects."""
        kept = [index for index, row in enumerate(self.rows) if row.subject in subjects]
        return Way(tuple(self.rows[index] for index in kept), self.discrepancies[np.ix_(kept, kept)])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"rows": [row.to_dict() for row in self.rows], "discrepancies": self.discrepancies.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Way:
        """The inverse of :meth:`to_dict`."""
        rows = tuple(SubjectEvidence.from_dict(row) for row in values["rows"])
        return cls(rows, np.array(values["discrepancies"], dtype=float).reshape(len(rows), len(rows)))


@dataclass(frozen=True)
class Judged:
    """One subject's scenes as the judge saw them once: the row, and the features ``[N, D]`` of the pictures."""

    row: SubjectEvidence
    features: np.ndarray


def judged(judge: Judge, number: int, subject: SubjectPrompts, images: np.ndarray) -> Judged:
    """Measure one subject's scenes.

    Args:
        judge: who reads the pictures.
        number: the subject's.
        subject: what was asked for.
        images: uint8 ``[N, H, W, 3]`` in the order of its prompts.
    """
    readings = judge.read(images)
    masks = [reading.foreground for reading in readings]
    portraits = judge.portray(images, masks)
    looks = tuple(look(portrait) for portrait in portraits)
    outlines = [outline_strength(image, mask) for image, mask in zip(images, masks, strict=True)]
    chromas = [chroma(image, mask) for image, mask in zip(images, masks, strict=True)]
    asked = list(zip(readings, subject.scenes, strict=True))
    row = SubjectEvidence(
        subject=number,
        kind=subject.kind,
        scores=scores_of(readings, portraits, images, subject),
        disagreement=disagreement(looks),
        scene_probability=float(np.mean([reading.scenes[scene] for reading, scene in asked])),
        kind_probability=float(np.mean([reading.kind_probabilities[subject.kind] for reading in readings])),
        outline=_known_mean(outlines),
        sharpness=float(np.mean([sharpness(image) for image in images])),
        chroma=_known_mean(chromas),
        looks=looks,
    )
    return Judged(row, judge.features(images))


def _known_mean(values: Sequence[float]) -> float:
    """Mean of those that are numbers; NaN without any."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def way_of(found: Mapping[int, Judged], drawings: Mapping[int, np.ndarray]) -> Way:
    """What is known of one way.

    Args:
        found: by subject.
        drawings: of at least these subjects, the judge's features ``[M, D]`` of drawings of its kind in its scenes.
    """
    numbers = sorted(found)
    table = discrepancies([found[number].features for number in numbers], [drawings[number] for number in numbers])
    return Way(tuple(found[number].row for number in numbers), table)
