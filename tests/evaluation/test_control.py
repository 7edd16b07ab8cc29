"""Who follows a silhouette and who stays the same, on drawn pictures of which it is known."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from consistory_ray.evaluation.control import ControlScores, SceneScores, control_numbers, score_scenes
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.miniature.judge import Judge
from training.individuals import random_identity, random_placement
from training.world import PictureSpec, draw


def test_the_measure_sees_who_follows_and_who_stays_the_same() -> None:
    subject, rng = consistency_subjects(1, scenes=4)[0], random.Random("follows")
    who = replace(random_identity(rng, subject.kind), body="red", second="white", accessory="none")
    stranger = replace(who, body="blue", second="green", variant=1 - who.variant)

    def drawn(identity: object) -> list[object]:
        return [
            draw(PictureSpec((identity,), (random_placement(rng),), scene, 1))  # type: ignore[arg-type]
            for scene in subject.scenes
        ]

    led, free, anchors = drawn(who), drawn(stranger), drawn(who)
    wanted = [drawing.masks[0] > 0.5 for drawing in led]  # type: ignore[attr-defined]
    ours, other, own = (
        np.stack([np.asarray(drawing.image) for drawing in drawings])  # type: ignore[attr-defined]
        for drawings in (led, free, anchors)
    )
    judge = Judge.load()
    following = score_scenes(judge, ours, own, wanted, subject)
    strange = score_scenes(judge, other, own, wanted, subject)
    assert min(following.overlap) > 0.9 > max(strange.overlap)
    assert min(following.similarity) > 0.8 > 0.6 > max(strange.similarity)
    assert max(following.colour_distance) < 20 < min(strange.colour_distance)
    mottled = score_scenes(
        judge, (ours + np.indices(ours.shape).sum(0) % 2 * 12).clip(0, 255).astype(np.uint8), own, wanted, subject
    )
    assert min(mottled.roughness) > 1.5 > max(following.roughness)
    assert np.mean(following.scene) >= 0.75 and np.mean(following.kind) >= 0.75


def test_hints_are_told_apart_and_silhouettes_come_first() -> None:
    def scenes(overlap: list[float], similarity: list[float]) -> SceneScores:
        return SceneScores(overlap, similarity, [1.0, float("nan"), 3.0], [2.0] * 3, [True] * 3, [True, True, False])

    one = ControlScores(
        ["silhouette", "silhouette", "pose"],
        led=scenes([0.9, 0.8, 0.5], [0.8, 0.9, 0.6]),
        free=scenes([0.6, 0.6, 0.4], [0.9, 0.9, 0.8]),
        vanilla_led=scenes([0.9, 0.9, 0.5], [0.5, 0.5, 0.5]),
        vanilla=scenes([0.6, 0.4, 0.3], [0.5, 0.5, 0.5]),
        drawings=scenes([0.96, 0.98, 0.9], [0.5, 0.5, 0.5]),
    )
    numbers = control_numbers([one, one])
    assert numbers["subjects"] == 2 and (numbers["scenes"], numbers["scenes_pose"]) == (4, 2)
    assert numbers["silhouette_iou"] == pytest.approx(0.85) and numbers["silhouette_iou_pose"] == pytest.approx(0.5)
    assert numbers["silhouette_iou_without"] == pytest.approx(0.6)
    assert numbers["silhouette_iou_ceiling"] == pytest.approx(0.97)
    assert numbers["led_gap_over_free"] == pytest.approx(1.5) and numbers["led_gap_interval"] == pytest.approx(
        [1.5] * 2
    )
    assert numbers["led_gap_over_free_pose"] == pytest.approx(2.0)
    assert numbers["colour_distance_led"] == pytest.approx(1.0), "pictures in which no subject is seen have no colour"
    assert (numbers["subject_accuracy_led"], numbers["subject_accuracy_led_pose"]) == (1, 0)
