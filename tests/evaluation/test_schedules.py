"""How much of a gain is left, on numbers of which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from consistory_ray.evaluation.consistency import SubjectScores
from consistory_ray.evaluation.schedules import Pair, compare_schedules, share_of_gain


def scores(ours: list[float], vanilla: list[float], first: int = 0) -> dict[int, Pair]:
    """Subjects with these gaps, with the method and without."""

    def measured(gap: float, spread: float) -> SubjectScores:
        return SubjectScores(1 - gap, 10 * gap, 1 - gap, 1 - gap / 10, 1.0, spread)

    pairs = zip(ours, vanilla, strict=True)
    return {first + row: Pair(measured(our, 0.09), measured(plain, 0.1)) for row, (our, plain) in enumerate(pairs)}


def test_a_gain_is_measured_by_the_one_of_the_reference() -> None:
    reference = scores([0.1, 0.3], [0.5, 0.7])
    few = scores([0.3, 0.5], [0.6, 0.8])
    numbers = compare_schedules({"many": reference, "few": few}, "many")
    assert numbers["many"]["gain_kept"] == 1 and numbers["many"]["gain_kept_interval"] == [1, 1]
    assert numbers["few"]["gain"] == pytest.approx(0.3)
    assert numbers["few"]["gain_kept"] == pytest.approx(0.75), "each against vanilla under its own schedule"
    assert numbers["few"]["identity_gap_ratio"] == pytest.approx(0.4 / 0.7)
    assert numbers["few"]["layout_diversity_ratio"] == pytest.approx(0.9)


def test_where_the_method_does_nothing_no_gain_is_kept_and_where_it_harms_less_than_none() -> None:
    reference = scores([0.1, 0.3], [0.5, 0.7])
    numbers = compare_schedules(
        {"many": reference, "none": scores([0.5, 0.7], [0.5, 0.7]), "worse": scores([0.6, 0.8], [0.5, 0.7])}, "many"
    )
    assert numbers["none"]["gain_kept"] == 0 > numbers["worse"]["gain_kept"]


def test_subjects_are_drawn_together() -> None:
    generator = np.random.default_rng(3)
    reference = generator.uniform(0.1, 0.6, 24)  # subjects differ far more than schedules do
    kept, (low, high) = share_of_gain(0.9 * reference + generator.normal(0, 0.01, 24), reference)
    assert low < kept < high < low + 0.05 and abs(kept - 0.9) < 0.02
    assert share_of_gain(0.8 * reference, reference)[1] == pytest.approx((0.8, 0.8))


def test_a_schedule_that_was_not_rendered_for_all_is_measured_by_the_same_subjects() -> None:
    reference = scores([0.1, 0.3, 0.0], [0.5, 0.7, 0.9])
    numbers = compare_schedules({"many": reference, "few": scores([0.3], [0.5], first=1), "none": {}}, "many")
    assert numbers["few"]["gain_kept"] == pytest.approx(0.2 / 0.4) and numbers["few"]["subjects"] == 1
    assert numbers["many"]["subjects"] == 3 and "none" not in numbers
