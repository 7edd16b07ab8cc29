"""How good are the miniature's pictures, and how far can the judge that says so be trusted?"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consistory_ray.evaluation.measures import best_token_overlap, overlap, token_overlap
from consistory_ray.miniature.judge import ATTRIBUTES, Judge, Reading
from consistory_ray.miniature.vocabulary import SCENES
from training.dataset import HELD_OUT_SEED
from training.held_out import EvaluationPrompt
from training.individuals import random_identity, random_placement
from training.judge import identity_targets, label_map, reconstruct
from training.world import PictureSpec, draw, random_spec

VISIBLE_ATTRIBUTES = ("body", "second", "pattern", "accessory", "accessory_colour", "variant")


@dataclass(frozen=True)
class Verdict:
    """The judge's view of one sampled picture.

    Attributes:
        scene: the prompt's scene is seen.
        kinds: for each subject of the prompt, whether its kind is seen.
        attributes: (name, wanted value, followed) of everything the prompt names.
        coarse, fine: IoU of the level's attention mask with the subject's pixels, and the best possible there.
    """

    scene: bool
    kinds: tuple[bool, ...]
    attributes: tuple[tuple[str, str, bool], ...]
    overlaps: Mapping[str, tuple[float, float]]


def subject_mask(reading: Reading, kind: str, alone: bool) -> np.ndarray:
    """Pixels of a prompt's subject: all of the foreground if it is alone, else what looks like its kind."""
    return reading.foreground if alone else reading.region(kind)


def judge_pictures(
    judge: Judge, images: np.ndarray, masks: Sequence[Mapping[str, np.ndarray]], prompts: Sequence[EvaluationPrompt]
) -> list[Verdict]:
    """Compare pictures with their prompts.

    Args:
        judge: reads them.
        images: uint8 ``[N, H, W, 3]``.
        masks: per picture, bool token masks by level.
        prompts: what they should show.
    """
    readings = judge.read(images)
    owners = [(row, subject) for row, prompt in enumerate(prompts) for subject in prompt.subjects]
    regions = [subject_mask(readings[row], subject.kind, len(prompts[row].subjects) == 1) for row, subject in owners]
    portraits = judge.portray(images[[row for row, _ in owners]], regions)
    named: list[list[tuple[str, str, bool]]] = [[] for _ in prompts]
    for (row, subject), portrait in zip(owners, portraits, strict=True):
        present = bool(portrait.embedding.any())
        named[row] += [
            (name, value, present and portrait.attributes[name] == value) for name, value in subject.attributes.items()
        ]
    verdicts = []
    for row, (prompt, reading) in enumerate(zip(prompts, readings, strict=True)):
        seen = reading.kinds(len(prompt.kinds))
        foreground = reading.foreground
        overlaps = {
            level: (token_overlap(mask, foreground), best_token_overlap(foreground, *mask.shape))
            for level, mask in masks[row].items()
        }
        kinds = tuple(kind in seen for kind in prompt.kinds)
        verdicts.append(Verdict(reading.scene == prompt.scene, kinds, tuple(named[row]), overlaps))
    return verdicts


def summarise(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Accuracies and mask measures over pictures; kinds and attributes count once per subject and per mention."""
    kinds = [right for verdict in verdicts for right in verdict.kinds]
    single = [verdict.kinds[0] for verdict in verdicts if len(verdict.kinds) == 1]
    pairs = [all(verdict.kinds) for verdict in verdicts if len(verdict.kinds) > 1]
    mentions = [mention for verdict in verdicts for mention in verdict.attributes]
    summary = {
        "kind_accuracy": _share(kinds),
        "kind_accuracy_single": _share(single),
        "kind_accuracy_both_of_pair": _share(pairs),
        "scene_accuracy": _share([verdict.scene for verdict in verdicts]),
        "attribute_accuracy": _share([right for _, _, right in mentions]),
        "attribute_mentions": len(mentions),
    }
    for name in ("body", "pattern", "accessory"):
        summary[f"{name}_accuracy"] = _share([right for found, _, right in mentions if found == name])
    for level, suffix in (("coarse", ""), ("fine", "_fine")):
        pairs_of = [verdict.overlaps[level] for verdict in verdicts if level in verdict.overlaps]
        if pairs_of:
            reached, possible = np.mean(pairs_of, axis=0)
            summary |= {
                f"mask_iou{suffix}": reached,
                f"mask_bound{suffix}": possible,
                f"mask_iou{suffix}_of_bound": reached / possible,
            }
    return {key: float(value) for key, value in summary.items()}


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def calibrate(judge: Judge, vae: Any, count: int = 600) -> dict[str, float]:
    """The judge on held-out drawings after the autoencoder, where the truth is known.

    Args:
        judge: to be measured.
        vae: the miniature's autoencoder.
        count: drawings; as many again are drawn to compare two pictures of the same individual.

    Returns:
        Accuracies of kind, scene and every attribute (subjects with their own, not the true, segmentation), IoU of the
        segmentation, and the mean cosine of two pictures of one individual and of two individuals of one kind.
    """
    specs = [random_spec(random.Random(f"{HELD_OUT_SEED}/{index}")) for index in range(count)]
    drawings = [draw(spec) for spec in specs]
    images = reconstruct(vae, np.stack([np.asarray(drawing.image) for drawing in drawings]))
    truths = [label_map(d.masks, [who.kind for who in spec.subjects]) for d, spec in zip(drawings, specs, strict=True)]
    readings = judge.read(images)
    kinds = [
        who.kind in r.kinds(len(spec.subjects))
        for r, spec in zip(readings, specs, strict=True)
        for who in spec.subjects
    ]
    result = {
        "judge_kind_accuracy": _share(kinds),
        "judge_scene_accuracy": _share([r.scene == spec.scene for r, spec in zip(readings, specs, strict=True)]),
        "judge_mask_iou": float(
            np.mean([overlap(r.foreground, truth > 0) for r, truth in zip(readings, truths, strict=True)])
        ),
    }
    rows = [row for row, spec in enumerate(specs) if len(spec.subjects) == 1]
    portraits = judge.portray(images[rows], [readings[row].foreground for row in rows])
    targets = identity_targets([specs[row].subjects[0] for row in rows])
    read = identity_targets_of([portrait.attributes for portrait in portraits])
    for name in VISIBLE_ATTRIBUTES:
        wanted = targets[name].numpy()
        shown = wanted >= 0
        result[f"judge_{name}_accuracy"] = _share((read[name] == wanted)[shown])
    return result | _similarities(judge, vae, count // 2) | {"judge_n": float(count)}


def identity_targets_of(attributes: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
    """Attribute values as indices, ``[N]`` per attribute."""
    return {name: np.array([known.index(row[name]) for row in attributes]) for name, known in ATTRIBUTES.items()}


def _similarities(judge: Judge, vae: Any, count: int) -> dict[str, float]:
    """Cosines of the same individual in two scenes, and of another individual of its kind."""
    rng = random.Random(f"{HELD_OUT_SEED}/similarity")
    specs = []
    for _ in range(count):
        one = random_identity(rng)
        for who in (one, one, random_identity(rng, one.kind)):
            specs.append(PictureSpec((who,), (random_placement(rng),), rng.choice(SCENES), rng.randrange(2**31)))
    images = reconstruct(vae, np.stack([np.asarray(draw(spec).image) for spec in specs]))
    portraits = judge.portray(images, [reading.foreground for reading in judge.read(images)])
    first, again, other = (
        np.stack([portrait.embedding for portrait in portraits]).reshape(count, 3, -1).transpose(1, 0, 2)
    )
    return {
        "judge_same_identity_similarity": float((first * again).sum(1).mean()),
        "judge_other_identity_similarity": float((first * other).sum(1).mean()),
    }
