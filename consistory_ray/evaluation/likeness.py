"""Are the individuals of given pictures themselves in scenes, and would they have been without these pictures?

The judge knows the individual from the given pictures only; what its attributes are is the truth of who drew them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image

from consistory_ray.evaluation.bootstrap import difference_interval, mean_interval, ratio_interval
from consistory_ray.evaluation.consistency import (
    IDENTITY_ATTRIBUTES,
    SubjectScores,
    pairwise_mean,
    scene_probability,
    score_subject,
)
from consistory_ray.evaluation.measures import srgb_to_lab
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.miniature.judge import Judge

Pictures = Sequence[Image.Image]


@dataclass(frozen=True)
class Model:
    """Whom scenes should show.

    Attributes:
        pictures: given ones.
        stranger: pictures of another individual of the same kind.
        truth: what the judge should read, by attribute; an attribute may be absent.
    """

    pictures: Pictures
    stranger: Pictures
    truth: Mapping[str, str]


@dataclass(frozen=True)
class LikenessScores:
    """One individual's scenes beside the pictures given of it.

    Attributes:
        likeness: mean cosine of the judge's identity embeddings, each scene with each given picture.
        stranger: the same with the pictures of another individual.
        colour_distance: CIELAB distance of the mean colours inside the judge's masks, scenes to given pictures.
        right: attribute -> share of scenes in which the judge reads what is true.
        scene_probability: mean probability that the judge gives the prompt's scene, 0 where it sees another one.
        scenes: what the scenes are by themselves.
    """

    likeness: float
    stranger: float
    colour_distance: float
    right: Mapping[str, float]
    scene_probability: float
    scenes: SubjectScores


@dataclass(frozen=True)
class _Seen:
    embeddings: np.ndarray
    attributes: list[dict[str, str]]
    colours: list[np.ndarray | None]


def _seen(judge: Judge, pictures: Pictures) -> _Seen:
    images = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    masks = [reading.foreground for reading in judge.read(images)]
    portraits = judge.portray(images, masks)
    colours = [
        srgb_to_lab(image[mask]).mean(0) if mask.any() else None for image, mask in zip(images, masks, strict=True)
    ]
    return _Seen(np.stack([p.embedding for p in portraits]), [p.attributes for p in portraits], colours)


def ceiling(judge: Judge, model: Model) -> tuple[float, float]:
    """Mean cosine of the given pictures with each other, and with those of the other individual."""
    given, stranger = _seen(judge, model.pictures).embeddings, _seen(judge, model.stranger).embeddings
    pairs = [float(given[i] @ given[j]) for i, j in combinations(range(len(given)), 2)]
    return pairwise_mean(pairs), float((given @ stranger.T).mean())


def score_likeness(judge: Judge, scenes: Pictures, subject: SubjectPrompts, model: Model) -> LikenessScores:
    """Measure one individual's scenes, in the order of the subject's prompts."""
    images = np.stack([np.asarray(picture.convert("RGB")) for picture in scenes])
    seen, given, stranger = _seen(judge, scenes), _seen(judge, model.pictures), _seen(judge, model.stranger)
    distances = [
        float(np.linalg.norm(a - b)) for a in seen.colours for b in given.colours if a is not None and b is not None
    ]
    return LikenessScores(
        likeness=float((seen.embeddings @ given.embeddings.T).mean()),
        stranger=float((seen.embeddings @ stranger.embeddings.T).mean()),
        colour_distance=pairwise_mean(distances),
        right={
            name: float(np.mean([read[name] == value for read in seen.attributes]))
            for name, value in model.truth.items()
        },
        scene_probability=scene_probability(judge.read(images), subject.scenes),
        scenes=score_subject(judge, images, subject),
    )


def describe_scores(scores: Sequence[LikenessScores]) -> dict[str, Any]:
    """One way of rendering over subjects: means with 95 % bootstrap intervals, and each attribute's accuracy.

    ``accessory`` counts every individual, ``accessory_worn`` those that wear one.
    """
    columns = {
        "likeness": [s.likeness for s in scores],
        "likeness_to_stranger": [s.stranger for s in scores],
        "similarity_among_scenes": [s.scenes.similarity for s in scores],
        "colour_distance": [s.colour_distance for s in scores],
        "scene_accuracy": [s.scenes.scene_accuracy for s in scores],
        "scene_probability": [s.scene_probability for s in scores],
        "kind_accuracy": [s.scenes.kind_accuracy for s in scores],
        "layout_diversity": [s.scenes.spread for s in scores],
    }
    for name in (*IDENTITY_ATTRIBUTES, "accessory_colour"):
        columns[f"{name}_accuracy"] = [s.right[name] for s in scores if name in s.right]
    columns["accessory_worn_accuracy"] = [s.right["accessory"] for s in scores if "accessory_colour" in s.right]
    found: dict[str, Any] = {}
    for name, values in columns.items():
        known = np.array([value for value in values if not np.isnan(value)])
        if len(known):
            found |= {name: float(known.mean()), f"{name}_interval": list(mean_interval(known))}
    return found


def gap_ratio(
    ceilings: Sequence[float], ours: Sequence[LikenessScores], vanilla: Sequence[LikenessScores]
) -> tuple[float, list[float]]:
    """Mean distance of likeness from the ceiling, as a share of vanilla's, with its 95 % interval over subjects."""
    best = np.array(ceilings)
    mine, plain = (best - np.array([s.likeness for s in scores]) for scores in (ours, vanilla))
    return float(mine.mean() / plain.mean()), list(ratio_interval(mine, plain))


def scene_accuracy_drop(ours: Sequence[LikenessScores], vanilla: Sequence[LikenessScores]) -> tuple[float, list[float]]:
    """Percentage points of scenes that are no longer seen, with the 95 % interval over subjects."""
    plain, mine = (np.array([s.scenes.scene_accuracy for s in scores]) for scores in (vanilla, ours))
    return 100 * float((plain - mine).mean()), [100 * bound for bound in difference_interval(plain, mine)]


def layout_ratio(ours: Sequence[LikenessScores], vanilla: Sequence[LikenessScores]) -> tuple[float, list[float]]:
    """Spread of a subject's layouts as a share of vanilla's, where both are known, with its 95 % interval."""
    spreads = np.array([[a.scenes.spread, b.scenes.spread] for a, b in zip(ours, vanilla, strict=True)])
    mine, plain = spreads[~np.isnan(spreads).any(1)].T
    return (float(mine.mean() / plain.mean()), list(ratio_interval(mine, plain))) if len(mine) else (float("nan"), [])


@dataclass(frozen=True)
class Ways:
    """Subjects' scenes rendered in several ways, measured; every list in the order of the subjects.

    Attributes:
        ceilings: likeness of the given pictures to each other.
        strangers: of the given pictures to those of another individual.
        vanilla, ours: prompts name nothing of the individual; without and with its pictures.
        vanilla_details, details: prompts name what pictures do not bring.
        vanilla_everything, everything: prompts name all that has words.
    """

    ceilings: Sequence[float]
    strangers: Sequence[float]
    vanilla: Sequence[LikenessScores]
    ours: Sequence[LikenessScores]
    vanilla_details: Sequence[LikenessScores]
    details: Sequence[LikenessScores]
    vanilla_everything: Sequence[LikenessScores]
    everything: Sequence[LikenessScores]

    @property
    def numbers(self) -> dict[str, Any]:
        """The benchmark's numbers, each with its 95 % interval over subjects under ``..._interval``."""
        ours, details = describe_scores(self.ours), describe_scores(self.details)
        found: dict[str, Any] = {
            "subjects": len(self.ceilings),
            "ceiling": float(np.mean(self.ceilings)),
            "stranger": float(np.mean(self.strangers)),
            "subjects_better": sum(a.likeness > b.likeness for a, b in zip(self.ours, self.vanilla, strict=True)),
            "body_accuracy": ours["body_accuracy"],
            "body_accuracy_interval": ours["body_accuracy_interval"],
        }
        for name, key in (("accessory_worn", ""), ("accessory", "_all")):
            if f"{name}_accuracy" in details:
                found[f"accessory_accuracy_with_details{key}"] = details[f"{name}_accuracy"]
                found[f"accessory_accuracy_with_details{key}_interval"] = details[f"{name}_accuracy_interval"]
        pairs = {
            "gap_ratio_to_ceiling": gap_ratio(self.ceilings, self.ours, self.vanilla),
            "gap_ratio_with_details": gap_ratio(self.ceilings, self.details, self.vanilla_details),
            "gap_ratio_with_details_to_plain_vanilla": gap_ratio(self.ceilings, self.details, self.vanilla),
            "gap_ratio_of_details_alone": gap_ratio(self.ceilings, self.vanilla_details, self.vanilla),
            "gap_ratio_with_everything_named": gap_ratio(self.ceilings, self.everything, self.vanilla_everything),
            "gap_ratio_with_everything_named_to_plain_vanilla": gap_ratio(self.ceilings, self.everything, self.vanilla),
            "scene_accuracy_drop": scene_accuracy_drop(self.ours, self.vanilla),
            "scene_accuracy_drop_with_details": scene_accuracy_drop(self.details, self.vanilla_details),
            "layout_diversity_ratio": layout_ratio(self.ours, self.vanilla),
        }
        for name, (value, bounds) in pairs.items():
            found |= {name: value, f"{name}_interval": bounds}
        ways = {
            "vanilla": self.vanilla,
            "vanilla_with_details": self.vanilla_details,
            "with_everything_named": self.everything,
            "vanilla_with_everything_named": self.vanilla_everything,
        }
        by_way = {name: describe_scores(scores) for name, scores in ways.items()}
        return found | {"ours": ours, "with_details": details} | by_way
