"""Measures of quality see losses: blur, faded outlines, and pictures that are unlike drawings."""

from __future__ import annotations

import random

import numpy as np
import pytest

from benchmarks.drawn_subjects import drawings_of
from consistory_ray.evaluation.picture_quality import (
    blurred,
    chroma,
    discrepancies,
    distance,
    distance_interval,
    outline_strength,
    sharpness,
)
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.miniature.judge import Judge
from training.world import Drawing, draw, random_spec


def drawings(count: int, name: str) -> list[Drawing]:
    return [draw(random_spec(random.Random(f"{name}/{index}"), two_subjects=0)) for index in range(count)]


def test_blur_is_seen() -> None:
    image = np.asarray(drawings(1, "blur")[0].image)
    values = [sharpness(blurred(image, radius)) for radius in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values, reverse=True) and values[-1] < values[0] / 20


def test_outlines_that_fade_are_seen() -> None:
    image, mask = np.full((64, 64, 3), 230, np.uint8), np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    inside = np.zeros_like(mask)
    inside[18:46, 18:46] = True
    strengths = []
    for ink in (40, 120, 200):
        image[mask], image[inside] = ink, 200
        strengths.append(outline_strength(image, mask))
    assert strengths[0] > strengths[1] > 20 > strengths[2] == pytest.approx(0, abs=1)
    assert np.isnan(outline_strength(image, np.zeros_like(mask)))


def test_blurred_drawings_are_farther_from_drawings() -> None:
    judge, subjects = Judge.load(), consistency_subjects(8, scenes=2)
    drawn = [drawings_of(subject, number) for number, subject in enumerate(subjects)]
    others = [judge.features(images[1::2]) for images in drawn]
    good, bad = (
        discrepancies(
            [judge.features(np.stack([blurred(image, radius) for image in images[::4]])) for images in drawn], others
        )
        for radius in (0.0, 1.0)
    )
    assert good == pytest.approx(good.T) and good.shape == (len(subjects), len(subjects))
    low, high = distance_interval(bad - good)
    assert 0 < low < distance(bad) - distance(good) < high, "beyond doubt"


def test_the_distance_has_no_bias_with_few_pictures() -> None:
    rng = np.random.default_rng(0)
    drawn = list(rng.normal(size=(24, 10, 5)))  # many: they set the scale
    found = [distance(discrepancies(list(rng.normal(size=(24, 1, 5))), drawn)) for _ in range(100)]
    shifted = [distance(discrepancies(list(0.5 + rng.normal(size=(24, 1, 5))), drawn)) for _ in range(10)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 10 < np.mean(shifted)


def test_too_few_subjects_have_no_distance() -> None:
    assert np.isnan([distance(np.zeros((1, 1))), *distance_interval(np.zeros((1, 1)))]).all()


def test_chroma_is_of_the_subject_and_less_where_colours_meet_in_the_middle() -> None:
    picture, mask = np.full((8, 8, 3), 128, np.uint8), np.zeros((8, 8), bool)
    assert np.isnan(chroma(picture, mask))
    mask[2:6, 2:6] = True
    assert chroma(picture, mask) == pytest.approx(0, abs=0.1)
    red, green = np.array([222, 62, 58]), np.array([96, 180, 76])
    picture[mask] = red
    vivid = chroma(picture, mask)
    picture[mask] = (red + green) // 2
    assert vivid > 60 > chroma(picture, mask) > 10
