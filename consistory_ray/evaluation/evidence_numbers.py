"""What do the rows of two ways say? Ratios and differences, with bootstrap intervals over subjects drawn in pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from consistory_ray.evaluation.bootstrap import difference_interval, ratio_interval
from consistory_ray.evaluation.consistency import compare
from consistory_ray.evaluation.evidence import SubjectEvidence, Way
from consistory_ray.evaluation.hard_attributes import HARD_ATTRIBUTES, difference
from consistory_ray.evaluation.picture_quality import distance, distance_interval

Value = Callable[[SubjectEvidence], float]


def numbers(way: Way, vanilla: Way) -> dict[str, Any]:
    """One way against vanilla, over the subjects that both have.

    Returns:
        What :func:`~consistory_ray.evaluation.consistency.compare` tells, and: ``hard_attribute_ratio``, the mean over
        :data:`~consistory_ray.evaluation.hard_attributes.HARD_ATTRIBUTES` of the disagreement among a subject's scenes
        over vanilla's, and the same of each under ``attributes``; ``scene_probability_drop`` and
        ``kind_probability_drop`` in percentage points; ``outline_ratio`` and ``sharpness_ratio``;
        ``drawing_distance_rise``, how much farther from drawings than vanilla's pictures; ``chroma_ratio``, how
        colourful subjects are, and ``distinctness_ratio``, how much subjects of one kind differ from each other by hard
        attributes: whoever makes everybody pale and alike agrees with himself; each with ``..._interval``.

    Raises:
        ValueError: they have no subject in common.
    """
    common = set(way.subjects) & set(vanilla.subjects)
    if not common:
        raise ValueError("no subject was rendered in both ways")
    ours, plain = way.of(common), vanilla.of(common)
    found = compare([row.scores for row in ours.rows], [row.scores for row in plain.rows])
    found |= ratio("hard_attribute", "disagreement", ours, plain, lambda row: row.hard_disagreement)
    found["attributes"] = {
        name: ratio("", "disagreement", ours, plain, lambda row, name=name: row.disagreement[name])  # type: ignore[misc]
        for name in HARD_ATTRIBUTES
    }
    found |= drop("scene_probability", ours, plain, lambda row: row.scene_probability)
    found |= drop("kind_probability", ours, plain, lambda row: row.kind_probability)
    found |= ratio("outline", "strength", ours, plain, lambda row: row.outline)
    found |= ratio("sharpness", "", ours, plain, lambda row: row.sharpness)
    found |= ratio("chroma", "", ours, plain, lambda row: row.chroma)
    found |= ratio_of("distinctness", "", *known(np.stack([distinctness(ours), distinctness(plain)], axis=1)))
    rise = ours.discrepancies - plain.discrepancies
    return found | {
        "drawing_distance": distance(ours.discrepancies),
        "drawing_distance_vanilla": distance(plain.discrepancies),
        "drawing_distance_rise": distance(rise),
        "drawing_distance_rise_interval": list(distance_interval(rise)),
    }


def by_kind(way: Way, vanilla: Way) -> dict[str, dict[str, Any]]:
    """The same for each kind of subject by itself: a mean over kinds hides the one that does not follow."""
    common = set(way.subjects) & set(vanilla.subjects)
    found = {}
    for kind in dict.fromkeys(row.kind for row in way.rows if row.subject in common):
        own = {row.subject for row in way.rows if row.kind == kind} & common
        found[kind] = numbers(way.of(own), vanilla.of(own))
    return found


def columns(ours: Way, plain: Way, value: Value) -> tuple[np.ndarray, np.ndarray]:
    """A value of both ways' subjects, of those for which both are known."""
    return known(np.array([[value(a), value(b)] for a, b in zip(ours.rows, plain.rows, strict=True)]))


def known(both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns of ``[subjects, 2]`` without rows in which a number is not known."""
    rows = both[np.isfinite(both).all(1)]
    return rows[:, 0], rows[:, 1]


def distinctness(way: Way) -> np.ndarray:
    """How much each subject differs from the others of its kind, ``[subjects]``; NaN where there are none."""
    found = []
    for row in way.rows:
        others = [one for one in way.rows if one.kind == row.kind and one is not row]
        found.append(np.mean([difference(row.looks, one.looks) for one in others]) if others else np.nan)
    return np.array(found)


def ratio(name: str, of: str, ours: Way, plain: Way, value: Value) -> dict[str, Any]:
    """``NAME_ratio`` and ``NAME_interval`` of means, and the means under ``NAME_OF``; NaN where vanilla's is 0."""
    return ratio_of(name, of, *columns(ours, plain, value))


def ratio_of(name: str, of: str, mine: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """The same of columns."""
    mean = "_".join(filter(None, (name, of))) or "mean"
    prefix = f"{name}_" if name else ""
    found: dict[str, Any] = {mean: _mean(mine), f"{mean}_vanilla": _mean(theirs)}
    if not len(mine) or theirs.mean() == 0:
        return found | {f"{prefix}ratio": float("nan"), f"{prefix}interval": [float("nan")] * 2}
    with np.errstate(divide="ignore", invalid="ignore"):  # resamples in which vanilla is 0 throughout
        bounds = list(ratio_interval(mine, theirs))
    return found | {f"{prefix}ratio": float(mine.mean() / theirs.mean()), f"{prefix}interval": bounds}


def drop(name: str, ours: Way, plain: Way, value: Value) -> dict[str, Any]:
    """``NAME``, ``NAME_vanilla``, and in percentage points ``NAME_drop`` and ``NAME_drop_interval``."""
    mine, theirs = columns(ours, plain, value)
    return {
        name: _mean(mine),
        f"{name}_vanilla": _mean(theirs),
        f"{name}_drop": 100 * (_mean(theirs) - _mean(mine)),
        f"{name}_drop_interval": [100 * bound for bound in difference_interval(theirs, mine)],
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
