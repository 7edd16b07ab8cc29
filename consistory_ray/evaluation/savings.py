"""What do scenes lose that are made for less? Paired with exact and vanilla pictures of the same prompts and seeds.

The yardstick is the *gain*: how much of the distance between vanilla pictures and a perfect likeness the method closes.
A way that saves keeps a share of it. All intervals are of 95 %, by bootstrap over subjects drawn in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consistory_ray.evaluation.bootstrap import difference_interval, mean_interval, ratio_interval
from consistory_ray.evaluation.consistency import (
    IDENTITY_ATTRIBUTES,
    SubjectScores,
    agreement,
    scene_probability,
    scores_of,
)
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.evaluation.schedules import share_of_gain
from consistory_ray.miniature.judge import Judge

HIGHEST_PSNR = 99.0
"""What pictures get that do not differ at all, in dB."""


@dataclass(frozen=True)
class SavingScores:
    """One subject's scenes made one way, measured.

    Attributes:
        scores: what the consistency benchmark measures.
        scene_probability: mean probability that the judge gives the prompt's scene, 0 where it sees another one.
        agreement: attribute -> share of pairs of pictures in which the judge reads the same value of it.
        psnr: peak signal-to-noise ratio against the exact pictures in dB, all of the subject's together.
    """

    scores: SubjectScores
    scene_probability: float
    agreement: Mapping[str, float]
    psnr: float

    @property
    def gap(self) -> float:
        """Distance of the pictures' likeness from perfect."""
        return 1 - self.scores.similarity


def psnr(images: np.ndarray, reference: np.ndarray) -> float:
    """Of uint8 pictures against others, in dB; :data:`HIGHEST_PSNR` where they hardly differ."""
    error = float(np.square(images.astype(np.float64) - reference).mean())
    return min(HIGHEST_PSNR, 10 * np.log10(255**2 / error)) if error else HIGHEST_PSNR


def score_saving(judge: Judge, images: np.ndarray, exact: np.ndarray, subject: SubjectPrompts) -> SavingScores:
    """Measure a subject's scenes, uint8 ``[N, H, W, 3]`` in the order of its prompts.

    Args:
        judge: who reads them.
        images: made one way.
        exact: the same scenes made exactly.
        subject: what is asked for.
    """
    readings = judge.read(images)
    portraits = judge.portray(images, [reading.foreground for reading in readings])
    return SavingScores(
        scores=scores_of(readings, portraits, images, subject),
        scene_probability=scene_probability(readings, subject.scenes),
        agreement={name: agreement(portraits, name) for name in IDENTITY_ATTRIBUTES},
        psnr=psnr(images, exact),
    )


def gain_kept(
    vanilla: Sequence[float] | np.ndarray, exact: Sequence[float] | np.ndarray, saving: Sequence[float] | np.ndarray
) -> tuple[float, tuple[float, float]]:
    """The share of exact's gain that a way keeps, and its interval; all arguments are gaps by subject.

    1 is as good as exact, 0 as vanilla; above 1 is better than exact.
    """
    plain = np.asarray(vanilla)
    return share_of_gain(plain - np.asarray(saving), plain - np.asarray(exact))


def compare_saving(
    saving: Sequence[SavingScores], exact: Sequence[SavingScores], vanilla: Sequence[SavingScores]
) -> dict[str, Any]:
    """One way of making scenes against exact and vanilla ones; all arguments in the order of the same subjects.

    Returns:
        ``X`` and ``X_interval`` of each measure. Those that end in ``_ratio`` are over vanilla's, those in ``_drop``
        how much less than exact's (of the layout: of vanilla's spread), ``_rise`` how much more. ``gain_kept_low`` is
        the lower end of its interval.
    """

    def columns(value: Callable[[SavingScores], float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = np.array([[value(one) for one in scores] for scores in (saving, exact, vanilla)])
        known = found[:, np.isfinite(found).all(0)]
        return known[0], known[1], known[2]

    gaps = columns(lambda one: one.gap)
    colours = columns(lambda one: one.scores.colour_distance)
    spreads = columns(lambda one: one.scores.spread)
    disagreements = columns(lambda one: 1 - one.scores.attribute_agreement)
    scenes = columns(lambda one: one.scene_probability)
    kept, kept_interval = gain_kept(gaps[2], gaps[1], gaps[0])
    pictures = np.array([one.psnr for one in saving])
    numbers: dict[str, Any] = {
        "subjects": len(saving),
        "gap": float(gaps[0].mean()),
        **_with_interval("gap_ratio", gaps[0].mean() / gaps[2].mean(), ratio_interval(gaps[0], gaps[2])),
        **_with_interval("gain_kept", kept, kept_interval),
        "gain_kept_low": kept_interval[0],
        **_with_interval("colour_ratio", colours[0].mean() / colours[2].mean(), ratio_interval(colours[0], colours[2])),
        "disagreement": float(disagreements[0].mean()),
        **_difference("disagreement_rise", disagreements[0], disagreements[1]),
        "scene_probability": float(scenes[0].mean()),
        **_difference("scene_probability_drop", scenes[1], scenes[0]),
        "scene_accuracy": float(np.mean([one.scores.scene_accuracy for one in saving])),
        "kind_accuracy": float(np.mean([one.scores.kind_accuracy for one in saving])),
        **_with_interval("layout_ratio", spreads[0].mean() / spreads[2].mean(), ratio_interval(spreads[0], spreads[2])),
        **_with_interval(
            "layout_drop",
            (spreads[1].mean() - spreads[0].mean()) / spreads[2].mean(),
            ratio_interval(spreads[1] - spreads[0], spreads[2]),
        ),
        **_with_interval("psnr", pictures.mean(), mean_interval(pictures)),
    }
    attributes = {}
    for name in saving[0].agreement:
        ours, theirs, plain = columns(lambda one, name=name: 1 - one.agreement[name])  # type: ignore[misc]
        rise = _difference("disagreement_rise", ours, theirs)
        attributes[name] = {
            "disagreement": float(ours.mean()),
            "disagreement_exact": float(theirs.mean()),
            "disagreement_vanilla": float(plain.mean()),
        } | rise
    return numbers | {"attributes": attributes}


def _with_interval(name: str, value: float, bounds: tuple[float, float]) -> dict[str, Any]:
    return {name: float(value), f"{name}_interval": list(bounds)}


def _difference(name: str, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    return _with_interval(name, first.mean() - second.mean(), difference_interval(first, second))
