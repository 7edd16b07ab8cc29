"""The judge as a metric: an individual resembles itself, prompts are read, and no picture knows its neighbours."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from consistory_ray.errors import InputError
from consistory_ray.quality.identity import likeness, subject_embeddings
from consistory_ray.quality.judged import JudgeMetric
from consistory_ray.quality.metrics import Metric, MetricOptions, TextMetric, load_metric
from training.individuals import random_identity, random_placement
from training.world import PictureSpec, draw

SCENES = ("in the forest", "on the beach", "in the snow")


@pytest.fixture(scope="module", params=["judge", "judge-2"])
def judge(request: pytest.FixtureRequest) -> JudgeMetric:
    metric = load_metric(request.param)
    assert metric.name == request.param
    assert isinstance(metric, JudgeMetric) and isinstance(metric, Metric) and isinstance(metric, TextMetric)
    return metric


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    """Two dragons, each in three scenes."""
    rng = random.Random("judged")
    dragons = [random_identity(rng, "dragon") for _ in range(2)]
    return [draw(PictureSpec((who,), (random_placement(rng),), scene, 7)).image for who in dragons for scene in SCENES]


def test_an_individual_resembles_itself_more_than_another(judge: JudgeMetric, drawings: list[Image.Image]) -> None:
    found = subject_embeddings(judge, drawings, [None] * 6, list("abcdef"))
    assert found.dtype == np.float32 and np.linalg.norm(found, axis=1) == pytest.approx(np.ones(6), abs=1e-4)
    own, other = likeness(found[:3], found[:3]), likeness(found[:3], found[3:])
    assert own.min() > 0.8 > other.max()
    alone = np.concatenate([judge.embed(drawings[n : n + 1]) for n in range(6)])
    assert np.abs(alone - found).max() < 1e-5


def test_a_prompt_is_shown_or_not(judge: JudgeMetric, drawings: list[Image.Image]) -> None:
    right = judge.align(drawings[:3], [f"a drawing of a dragon {scene}" for scene in SCENES])
    assert right.min() > 0.8
    assert judge.align(drawings[:3], ["a dragon in the kitchen"] * 3).max() < 0.1
    assert judge.align(drawings[:3], [f"a snail {scene}" for scene in SCENES]).max() < 0.1
    assert judge.align([], []).shape == (0,) and judge.embed([]).shape == (0, 64)


def test_it_has_no_opinion_on_other_worlds_and_takes_no_weights(
    judge: JudgeMetric, drawings: list[Image.Image]
) -> None:
    assert np.isnan(judge.align(drawings[:1], ["an elephant at the dentist"])).all()
    with pytest.raises(InputError, match="takes no weights"):
        load_metric(judge.name, MetricOptions(weights={judge.name: "folder"}))


def test_the_second_judge_is_another_one(drawings: list[Image.Image]) -> None:
    first, second = load_metric("judge"), load_metric("judge-2")
    assert isinstance(first, Metric) and isinstance(second, Metric) and first.version != second.version
    assert np.abs(first.embed(drawings) - second.embed(drawings)).max() > 0.1
