"""Do two subjects in one picture stay themselves and apart? Each is measured alone, in its own region of the picture.

The judge's segmentation says which pixels show which kind. Everything else is made gray, and what is left is embedded,
as for one subject. *Leakage* is what one subject has of the other: a small colour distance or a large similarity to the
other's anchors, and *crossings*, tokens into which features of the other subject were injected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from consistory_ray.evaluation.bootstrap import mean_interval, ratio_interval
from consistory_ray.evaluation.measures import srgb_to_lab
from consistory_ray.evaluation.prompts import PairPrompts
from consistory_ray.evaluation.rendering import Rendered, stacked
from consistory_ray.miniature.judge import SMALLEST_SUBJECT, Judge, Reading
from consistory_ray.miniature.vocabulary import COLOURS


@dataclass(frozen=True)
class Sighting:
    """One subject in several pictures.

    Attributes:
        regions: its pixels, bool ``[N, H, W]``.
        embeddings: float32 ``[N, 64]``; zeros, which resemble nothing, where it is not seen.
        colours: mean CIELAB colour of its pixels, ``[N, 3]``; NaN where it is not seen.
    """

    regions: np.ndarray
    embeddings: np.ndarray
    colours: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """In which pictures it covers more than :data:`~consistory_ray.miniature.judge.SMALLEST_SUBJECT`."""
        return np.asarray(self.regions.mean((1, 2)) >= SMALLEST_SUBJECT)


def sight(judge: Judge, images: np.ndarray, regions: Sequence[np.ndarray]) -> Sighting:
    """Look at one subject in pictures, uint8 ``[N, H, W, 3]``, in its region of each."""
    portraits = judge.portray(images, regions)
    colours = [
        srgb_to_lab(image[region]).mean(0) if region.mean() >= SMALLEST_SUBJECT else np.full(3, np.nan)
        for image, region in zip(images, regions, strict=True)
    ]
    return Sighting(np.stack(regions), np.stack([one.embedding for one in portraits]), np.stack(colours))


def by_kind(judge: Judge, images: np.ndarray, kinds: Sequence[str]) -> tuple[list[Sighting], list[Reading]]:
    """Subjects of different kinds in the same pictures, and what the judge read there."""
    readings = judge.read(images)
    return [sight(judge, images, [reading.region(kind) for reading in readings]) for kind in kinds], readings


@dataclass(frozen=True)
class PairScores:
    """One job's scenes, measured; of what is told of a subject, the mean over both.

    Attributes:
        similarity: of a subject with itself in other scenes: mean pairwise cosine of the judge's identity embeddings.
        to_anchors, to_other: of a subject with itself, and with the other one, in the anchors.
        colour_to_anchors, colour_to_other: the same as CIELAB distances of mean colours; no learning in it.
        apart: CIELAB distance of both in the same scene.
        both_present: share of scenes that show both.
        scene_accuracy: share of scenes that show the prompt's scene.
        crossings, injected: tokens of a subject into which features of the other one were injected, and of either.
    """

    similarity: float
    to_anchors: float
    to_other: float
    colour_to_anchors: float
    colour_to_other: float
    apart: float
    both_present: float
    scene_accuracy: float
    crossings: int = 0
    injected: int = 0


def score_pair(
    anchors: Sequence[Sighting], scenes: Sequence[Sighting], scene_accuracy: float, crossings: tuple[int, int] = (0, 0)
) -> PairScores:
    """Measure two subjects, each in its own anchors and both in the same scenes.

    Args:
        anchors, scenes: of the first and of the second.
        scene_accuracy, crossings: handed on; see :func:`count_crossings`.
    """
    both = (0, 1)
    similarity = [_pairwise(scenes[j].embeddings) for j in both]
    own = [float((scenes[j].embeddings @ anchors[j].embeddings.T).mean()) for j in both]
    other = [float((scenes[j].embeddings @ anchors[1 - j].embeddings.T).mean()) for j in both]
    colour_own = [_distance(scenes[j].colours, anchors[j].colours) for j in both]
    colour_other = [_distance(scenes[j].colours, anchors[1 - j].colours) for j in both]
    apart = np.linalg.norm(scenes[0].colours - scenes[1].colours, axis=1)
    return PairScores(
        float(np.mean(similarity)),
        float(np.mean(own)),
        float(np.mean(other)),
        float(np.nanmean(colour_own)),
        float(np.nanmean(colour_other)),
        float(np.nanmean(apart)) if (scenes[0].seen & scenes[1].seen).any() else float("nan"),
        float((scenes[0].seen & scenes[1].seen).mean()),
        scene_accuracy,
        *crossings,
    )


def _pairwise(embeddings: np.ndarray) -> float:
    pairs = combinations(range(len(embeddings)), 2)
    return float(np.mean([float(embeddings[i] @ embeddings[j]) for i, j in pairs]))


def _distance(some: np.ndarray, others: np.ndarray) -> float:
    """Mean distance of the colours ``[N, 3]`` and ``[M, 3]``, of those that there are; NaN without any."""
    distances = np.linalg.norm(some[:, None] - others[None], axis=-1)
    return float(np.nanmean(distances)) if np.isfinite(distances).any() else float("nan")


def token_owners(regions: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Whose each token is, of ``side`` rows and columns: that one's number from 1 who has more than half of its pixels.

    Args:
        regions: of each subject, bool ``[N, H, W]``.

    Returns:
        int ``[N, side * side]``, 0 for nobody's.
    """
    owners = np.zeros((len(regions[0]), side * side), dtype=int)
    for number, region in enumerate(regions, start=1):
        count, height, width = region.shape
        shares = region.reshape(count, side, height // side, side, width // side).mean((2, 4))
        owners[shares.reshape(count, -1) > 0.5] = number
    return owners


def count_crossings(
    scenes: Sequence[Rendered], regions: Sequence[np.ndarray], anchor_regions: Sequence[np.ndarray]
) -> tuple[int, int]:
    """Tokens of one subject that were drawn towards the other, and tokens drawn towards either.

    Counted are tokens of a scene that belong to a subject, are injected into, and whose source in an anchor belongs to
    a subject.

    Args:
        scenes: with their sources.
        regions, anchor_regions: of both subjects in the scenes and in the anchors, bool ``[N, H, W]``.
    """
    side = round(len(scenes[0].sources["token"]) ** 0.5)
    owners, anchor_owners = token_owners(regions, side), token_owners(anchor_regions, side)
    crossings = total = 0
    for scene, own in zip(scenes, owners, strict=True):
        source = anchor_owners[scene.sources["anchor"], scene.sources["token"]]
        counted = scene.sources["injected"] & (own > 0) & (source > 0)
        total += int(counted.sum())
        crossings += int((counted & (own != source)).sum())
    return crossings, total


def measure_pair(
    judge: Judge,
    kinds: tuple[str, str],
    places: Sequence[str],
    anchors: Sequence[Rendered],
    scenes: Sequence[Rendered],
) -> PairScores:
    """Measure two subjects of different kinds that share their anchors and scenes, the latter showing ``places``."""
    made, _ = by_kind(judge, stacked(anchors), kinds)
    seen, readings = by_kind(judge, stacked(scenes), kinds)
    accuracy = float(np.mean([reading.scene == place for reading, place in zip(readings, places, strict=True)]))
    crossings = (0, 0)
    if scenes[0].sources:
        crossings = count_crossings(scenes, [one.regions for one in seen], [one.regions for one in made])
    return score_pair(made, seen, accuracy, crossings)


def measure_meeting(
    judge: Judge, job: PairPrompts, anchors: Sequence[Sequence[Rendered]], scenes: Sequence[Rendered]
) -> PairScores:
    """Measure two subjects of different kinds that have anchors of their own and meet in scenes."""
    made = [by_kind(judge, stacked(own), [kind])[0][0] for kind, own in zip(job.kinds, anchors, strict=True)]
    seen, readings = by_kind(judge, stacked(scenes), job.kinds)
    accuracy = float(np.mean([reading.scene == place for reading, place in zip(readings, job.scenes, strict=True)]))
    crossings = (0, 0)
    if scenes[0].sources:
        first, second = (one.regions for one in made)
        regions = [np.concatenate([first, np.zeros_like(second)]), np.concatenate([np.zeros_like(first), second])]
        crossings = count_crossings(scenes, [one.regions for one in seen], regions)
    return score_pair(made, seen, accuracy, crossings)


def halves(region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A kind's pixels, bool ``[H, W]``, left and right of the emptiest column of its middle half."""
    columns = np.flatnonzero(region.any(0))
    left, right = region.copy(), region.copy()
    if len(columns):
        first, last = columns[0], columns[-1]
        width = last - first
        filled = np.convolve(region.sum(0), np.ones(5) / 5, "same")
        middle = np.arange(first + width // 4, last - width // 4 + 1)
        cut = middle[filled[middle].argmin()]
        left[:, cut:], right[:, :cut] = False, False
    return left, right


def by_colour(
    judge: Judge, images: np.ndarray, kind: str, colours: Sequence[str]
) -> tuple[list[Sighting], np.ndarray, list[Reading]]:
    """Two of one kind that are called by their colours, as far as colours tell them apart.

    One stands left and one right; which is which, the nearness of their mean colours to those named decides.

    Returns:
        Both, whether each has the body colour that is its own by the judge's reading (bool ``[2, N]``), and what the
        judge read.
    """
    readings = judge.read(images)
    wanted = [srgb_to_lab(np.array(COLOURS[colour])) for colour in colours]
    regions: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for image, reading in zip(images, readings, strict=True):
        sides = halves(reading.region(kind))
        if all(side.any() for side in sides):
            found = [srgb_to_lab(image[side]).mean(0) for side in sides]
            far = [[float(np.linalg.norm(colour - want)) for want in wanted] for colour in found]
            if far[0][1] + far[1][0] < far[0][0] + far[1][1]:
                sides = (sides[1], sides[0])
        for one, side in zip(regions, sides, strict=True):
            one.append(side)
    bodies = [[portrait.attributes["body"] for portrait in judge.portray(images, one)] for one in regions]
    right = np.array([[body == colour for body in one] for one, colour in zip(bodies, colours, strict=True)])
    return [sight(judge, images, one) for one in regions], right, readings


def measure_alike(
    judge: Judge, job: PairPrompts, anchors: Sequence[Rendered], scenes: Sequence[Rendered]
) -> tuple[PairScores, float, float]:
    """Measure two of one kind, and the shares of anchors and of scenes in which both have the colour that they should.

    Args:
        judge: the judge.
        job: its concepts are a colour and a kind each.
        anchors, scenes: its pictures.
    """
    colours = [concept.split()[0] for concept in job.concepts]
    made, made_right, _ = by_colour(judge, stacked(anchors), job.kinds[0], colours)
    seen, right, readings = by_colour(judge, stacked(scenes), job.kinds[0], colours)
    accuracy = float(np.mean([reading.scene == place for reading, place in zip(readings, job.scenes, strict=True)]))
    crossings = (0, 0)
    if scenes[0].sources:
        crossings = count_crossings(scenes, [one.regions for one in seen], [one.regions for one in made])
    scores = score_pair(made, seen, accuracy, crossings)
    return scores, float(made_right.all(0).mean()), float(right.all(0).mean())


def compare_pairs(ours: Sequence[PairScores], vanilla: Sequence[PairScores]) -> dict[str, Any]:
    """The benchmark's numbers, with 95 % bootstrap intervals over jobs."""

    def columns(name: str) -> tuple[np.ndarray, np.ndarray]:
        return np.array([getattr(s, name) for s in ours]), np.array([getattr(s, name) for s in vanilla])

    numbers: dict[str, Any] = {"jobs": len(ours)}
    for name, measure in (("gap_ratio", "similarity"), ("anchor_gap_ratio", "to_anchors")):
        mine, plain = (1 - column for column in columns(measure))
        numbers[name] = float(mine.mean() / plain.mean())
        numbers[f"{name}_interval"] = list(ratio_interval(mine, plain))
        numbers[f"{name}_better"] = int((mine < plain).sum())
    crossed, injected = columns("crossings")[0], columns("injected")[0]
    if injected.sum():
        numbers["crossing_share"] = float(crossed.sum() / injected.sum())
        numbers["crossing_share_interval"] = list(ratio_interval(crossed, injected))
        numbers["injected_tokens"] = int(injected.sum())
    for name in _MEANS:
        for suffix, column in zip(("", "_vanilla"), columns(name), strict=True):
            there = column[np.isfinite(column)]
            numbers[f"{name}{suffix}"] = float(there.mean())
            numbers[f"{name}{suffix}_interval"] = list(mean_interval(there))
    return numbers


_MEANS = (
    "similarity",
    "to_anchors",
    "to_other",
    "colour_to_anchors",
    "colour_to_other",
    "apart",
    "both_present",
    "scene_accuracy",
)
