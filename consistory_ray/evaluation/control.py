"""Do pictures follow the hints that lead them, and do their subjects stay themselves?

Every scene is rendered twice, led and free, with the same anchors, prompt and seed; the judge reads both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from consistory_ray.evaluation.bootstrap import mean_interval, ratio_interval
from consistory_ray.evaluation.measures import overlap, srgb_to_lab
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.miniature.judge import Judge


@dataclass(frozen=True)
class SceneScores:
    """Pictures of one subject's scenes, measured; all lists in the order of the scenes.

    Attributes:
        overlap: IoU of the judge's foreground with the silhouette that is asked for.
        similarity: mean cosine of the judge's identity embedding with the anchors'.
        colour_distance: mean CIELAB distance to the anchors of the mean colours inside the judge's masks.
        roughness: lower quartile of the CIELAB distances, inside the judge's mask, to the mean of 3 x 3 pixels: how
            mottled is what should be of one colour.
        scene, kind: whether the picture shows them.
    """

    overlap: list[float]
    similarity: list[float]
    colour_distance: list[float]
    roughness: list[float]
    scene: list[bool]
    kind: list[bool]


def score_scenes(
    judge: Judge,
    images: np.ndarray,
    anchors: np.ndarray,
    silhouettes: Sequence[np.ndarray],
    subject: SubjectPrompts,
) -> SceneScores:
    """Measure a subject's scenes.

    Args:
        judge: who reads them.
        images: uint8 ``[scenes, H, W, 3]``.
        anchors: the subject's, uint8 ``[A, H, W, 3]``.
        silhouettes: bool ``[H, W]``, what each scene is to follow.
        subject: what is asked for.
    """

    def looked_at(pictures: np.ndarray) -> tuple[list[Any], np.ndarray, np.ndarray]:
        readings = judge.read(pictures)
        masks = [reading.foreground for reading in readings]
        embeddings = np.stack([np.asarray(portrait.embedding) for portrait in judge.portray(pictures, masks)])
        nothing = np.full(3, np.nan)
        colours = [srgb_to_lab(p[m]).mean(0) if m.any() else nothing for p, m in zip(pictures, masks, strict=True)]
        return readings, embeddings, np.stack(colours)

    readings, embeddings, colours = looked_at(images)
    _, anchor_embeddings, anchor_colours = looked_at(anchors)
    distances = np.linalg.norm(colours[:, None] - anchor_colours[None], axis=-1)
    return SceneScores(
        overlap=[overlap(r.foreground, wanted) for r, wanted in zip(readings, silhouettes, strict=True)],
        similarity=(embeddings @ anchor_embeddings.T).mean(1).tolist(),
        colour_distance=distances.mean(1).tolist(),
        roughness=[_roughness(image, reading.foreground) for image, reading in zip(images, readings, strict=True)],
        scene=[reading.scene == scene for reading, scene in zip(readings, subject.scenes, strict=True)],
        kind=[reading.kinds(1) == [subject.kind] for reading in readings],
    )


def _roughness(image: np.ndarray, mask: np.ndarray) -> float:
    smooth = np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(1)))
    distances = np.linalg.norm(srgb_to_lab(image[mask]) - srgb_to_lab(smooth[mask]), axis=-1)
    return float(np.quantile(distances, 0.25)) if mask.any() else float("nan")


@dataclass(frozen=True)
class ControlScores:
    """One subject's scenes by how they were rendered.

    Attributes:
        hints: what leads each scene: ``silhouette``, ``outline`` or ``pose``.
        led, free: with the method, with and without the hint.
        vanilla_led, vanilla: the same without the method.
        drawings: what the hints were made of: of their silhouettes what can be reached at most.
    """

    hints: list[str]
    led: SceneScores
    free: SceneScores
    vanilla_led: SceneScores
    vanilla: SceneScores
    drawings: SceneScores


def control_numbers(scores: Sequence[ControlScores]) -> dict[str, Any]:
    """The benchmark's numbers, with 95 % bootstrap intervals over subjects.

    Those without a hint's name are of the scenes led by silhouettes; the others follow by name.
    """
    numbers: dict[str, Any] = {"subjects": len(scores)}
    for name in dict.fromkeys(hint for score in scores for hint in score.hints):
        suffix = "" if name == "silhouette" else f"_{name}"
        found = _of_hint([score for score in scores if name in score.hints], name)
        numbers |= {f"{key}{suffix}": value for key, value in found.items()}
    return numbers


def _of_hint(scores: Sequence[ControlScores], name: str) -> dict[str, Any]:
    def per_subject(way: str, field: str) -> np.ndarray:
        means = []
        for score in scores:
            values = getattr(getattr(score, way), field)
            means.append(np.nanmean([value for value, hint in zip(values, score.hints, strict=True) if hint == name]))
        return np.array(means, dtype=float)

    found: dict[str, Any] = {}
    for key, way, field in (
        ("silhouette_iou", "led", "overlap"),
        ("silhouette_iou_without", "free", "overlap"),
        ("silhouette_iou_vanilla", "vanilla_led", "overlap"),
        ("silhouette_iou_vanilla_without", "vanilla", "overlap"),
        ("silhouette_iou_ceiling", "drawings", "overlap"),
    ):
        values = per_subject(way, field)
        found |= {key: float(values.mean()), f"{key}_interval": list(mean_interval(values))}
    led, free = 1 - per_subject("led", "similarity"), 1 - per_subject("free", "similarity")
    found |= {"led_gap_over_free": float(led.mean() / free.mean()), "led_gap_interval": list(ratio_interval(led, free))}
    for way in ("led", "free", "vanilla_led", "vanilla"):
        found[f"identity_gap_{way}"] = float(1 - per_subject(way, "similarity").mean())
        found[f"colour_distance_{way}"] = float(np.nanmean(per_subject(way, "colour_distance")))
        found[f"roughness_{way}"] = float(np.nanmean(per_subject(way, "roughness")))
        found[f"scene_accuracy_{way}"] = float(per_subject(way, "scene").mean())
        found[f"subject_accuracy_{way}"] = float(per_subject(way, "kind").mean())
    found["scenes"] = sum(score.hints.count(name) for score in scores)
    return found
