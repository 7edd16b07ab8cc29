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
class ScheduleScores:
    """Subjects' scenes made under one schedule, measured; both lists in the order of the same subjects.

    Attributes:
        ours: with the method.
        vanilla: without it, under the same schedule.
    """

    ours: Sequence[SubjectScores]
    vanilla: Sequence[SubjectScores]

    @property
    def gains(self) -> np.ndarray:
        """How much nearer to perfect likeness each subject's pictures are than vanilla ones, ``[subjects]``."""
        gaps = np.array([[1 - one.similarity for one in scores] for scores in (self.vanilla, self.ours)])
        return np.asarray(gaps[0] - gaps[1])


def share_of_gain(
    gains: Sequence[float] | np.ndarray, reference: Sequence[float] | np.ndarray
) -> tuple[float, tuple[float, float]]:
    """Mean gain over mean gain of the reference, and its interval; both by subject, in the same order."""
    pairs = np.stack([np.asarray(gains, dtype=float), np.asarray(reference, dtype=float)])

    def share(means: np.ndarray) -> np.ndarray:
        return np.asarray(means[0] / means[1])

    return float(share(pairs.mean(-1))), interval(lambda rows: share(pairs[:, rows].mean(-1)), pairs.shape[1])


def compare_schedules(schedules: Mapping[str, ScheduleScores], reference: str) -> dict[str, dict[str, Any]]:
    """Each schedule's numbers: those of :func:`~consistory_ray.evaluation.consistency.compare`, and ``gain_kept``.

    Args:
        schedules: of the same subjects, prompts and seeds.
        reference: the name of the one whose gain is the yardstick.
    """
    yardstick, found = schedules[reference].gains, {}
    for name, scores in schedules.items():
        kept, bounds = share_of_gain(scores.gains, yardstick)
        found[name] = {
            "gain_kept": kept,
            "gain_kept_interval": list(bounds),
            "gain": float(scores.gains.mean()),
            **compare(scores.ours, scores.vanilla),
        }
    return found
