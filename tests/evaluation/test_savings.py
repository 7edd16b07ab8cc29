"""What is kept and lost, on numbers of which the answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from consistory_ray.evaluation.consistency import SubjectScores, score_subject
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.evaluation.savings import (
    HIGHEST_PSNR,
    SavingScores,
    compare_saving,
    gain_kept,
    psnr,
    score_saving,
)
from consistory_ray.miniature.judge import Judge


def scores(gaps: list[float], spreads: list[float], body: float = 0.5, scene: float = 0.9) -> list[SavingScores]:
    """Subjects with these gaps and layouts."""
    return [
        SavingScores(SubjectScores(1 - gap, 10 * gap, 1 - gap, 1.0, 1.0, spread), scene, {"body": body}, 30.0)
        for gap, spread in zip(gaps, spreads, strict=True)
    ]


def test_gain_is_kept_between_vanilla_and_exact() -> None:
    vanilla, exact = [0.5, 0.7, 0.6], [0.1, 0.3, 0.2]
    assert gain_kept(vanilla, exact, exact) == (1.0, (1.0, 1.0))
    assert gain_kept(vanilla, exact, vanilla) == (0.0, (0.0, 0.0))
    assert gain_kept(vanilla, exact, [0.2, 0.4, 0.3])[0] == pytest.approx(0.75)
    assert gain_kept(vanilla, exact, [0.0, 0.2, 0.1])[0] == pytest.approx(1.25), "better than exact"


def test_its_interval_draws_subjects_in_pairs() -> None:
    generator = np.random.default_rng(5)
    hard = generator.uniform(0, 0.4, 24)  # subjects differ far more than ways do
    vanilla, exact = 0.5 + hard, hard
    kept, (low, high) = gain_kept(vanilla, exact, hard + generator.normal(0.01, 0.02, 24))
    assert low < kept < high < low + 0.05
    same = gain_kept(vanilla, exact, hard + 0.025)
    assert same[1] == pytest.approx((0.95, 0.95))


def test_a_way_is_compared_with_exact_and_vanilla() -> None:
    vanilla = scores([0.4, 0.6], [0.04, 0.06], body=0.2, scene=0.95)
    exact = scores([0.1, 0.2], [0.04, 0.05], body=0.8, scene=0.94)
    saving = scores([0.1, 0.3], [0.03, 0.05], body=0.7, scene=0.92)
    numbers = compare_saving(saving, exact, vanilla)

    assert numbers["subjects"] == 2
    assert numbers["gap_ratio"] == pytest.approx(0.4)
    assert numbers["gain_kept"] == pytest.approx(0.3 / 0.35)
    assert numbers["gain_kept_low"] == numbers["gain_kept_interval"][0] < numbers["gain_kept"]
    assert numbers["layout_ratio"] == pytest.approx(0.8)
    assert numbers["layout_drop"] == pytest.approx(0.9 - 0.8)
    assert numbers["layout_drop_interval"] == pytest.approx([0.0, 0.25])
    assert numbers["colour_ratio"] == pytest.approx(0.4)
    assert numbers["disagreement_rise"] == pytest.approx(0.05)
    assert numbers["scene_probability_drop"] == pytest.approx(0.02)
    assert numbers["attributes"]["body"]["disagreement"] == pytest.approx(0.3)
    assert numbers["attributes"]["body"]["disagreement_rise"] == pytest.approx(0.1)
    assert numbers["attributes"]["body"]["disagreement_vanilla"] == pytest.approx(0.8)
    assert numbers["psnr"] == 30


def test_subjects_whose_layout_nobody_knows_count_elsewhere() -> None:
    vanilla, exact = scores([0.4, 0.6], [0.04, 0.06]), scores([0.1, 0.2], [0.04, float("nan")])
    numbers = compare_saving(scores([0.1, 0.2], [0.03, 0.01]), exact, vanilla)
    assert numbers["layout_drop"] == pytest.approx(0.25)
    assert numbers["gain_kept"] == pytest.approx(1)


def test_pictures_are_measured_as_elsewhere_and_against_exact_ones() -> None:
    (subject,) = consistency_subjects(1, scenes=3)
    images = np.random.default_rng(0).integers(0, 250, (3, 128, 128, 3), dtype=np.uint8)
    judge = Judge.load()
    found = score_saving(judge, images, images + 5, subject)

    assert dataclasses.asdict(found.scores) == pytest.approx(
        dataclasses.asdict(score_subject(judge, images, subject)), nan_ok=True
    )
    assert np.mean([*found.agreement.values()]) == pytest.approx(found.scores.attribute_agreement)
    assert 0 <= found.scene_probability <= 1
    assert found.psnr == pytest.approx(20 * np.log10(255 / 5))


def test_pictures_that_do_not_differ_have_a_psnr_too() -> None:
    images = np.zeros((1, 8, 8, 3), np.uint8)
    assert psnr(images, images) == HIGHEST_PSNR
    assert psnr(images, images + 255) == pytest.approx(0)
