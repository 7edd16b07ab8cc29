"""How much of its effect does the method keep on other schedules? Each is compared with vanilla under the same one.

The yardstick is the gain that the method brings at the reference schedule: how much nearer to perfect likeness its
pictures are than vanilla ones. All intervals are of 95 %, by bootstrap over subjects drawn together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consistory_ray.evaluation.bootstrap import interval
from consistory_ray.evaluation.consistency import SubjectScores, compare


@dataclass(frozen=True)
class Pair:
    """One subject's scenes under one schedule, measured.

    Attributes:
        ours: with the method.
        vanilla: without it, under the same schedule.
    """

    ours: SubjectScores
    vanilla: SubjectScores

    @property
    def gain(self) -> float:
        """How much nearer to perfect likeness the pictures are than vanilla ones."""
        return self.ours.similarity - self.vanilla.similarity


def share_of_gain(
    gains: Sequence[float] | np.ndarray, reference: Sequence[float] | np.ndarray
) -> tuple[float, tuple[float, float]]:
    """Mean gain over mean gain of the reference, and its interval; both by subject, in the same order."""
    pairs = np.stack([np.asarray(gains, dtype=float), np.asarray(reference, dtype=float)])

    def share(means: np.ndarray) -> np.ndarray:
        return np.asarray(means[0] / means[1])

    return float(share(pairs.mean(-1))), interval(lambda rows: share(pairs[:, rows].mean(-1)), pairs.shape[1])


def compare_schedules(schedules: Mapping[str, Mapping[int, Pair]], reference: str) -> dict[str, dict[str, Any]]:
    """Each schedule's numbers: those of :func:`~consistory_ray.evaluation.consistency.compare`, and ``gain_kept``.

    Args:
        schedules: by name, of each subject by its number. A schedule is told of the subjects that it and the reference
            have; one without any is left out.
        reference: the name of the one whose gain is the yardstick.
    """
    yardstick, found = schedules[reference], {}
    for name, own in schedules.items():
        pairs = [(pair, yardstick[subject]) for subject, pair in sorted(own.items()) if subject in yardstick]
        if not pairs:
            continue
        gains, there = ([pair.gain for pair in column] for column in zip(*pairs, strict=True))
        kept, bounds = share_of_gain(gains, there)
        found[name] = {
            "gain_kept": kept,
            "gain_kept_interval": list(bounds),
            "gain": float(np.mean(gains)),
            **compare([pair.ours for pair, _ in pairs], [pair.vanilla for pair, _ in pairs]),
        }
    return found
