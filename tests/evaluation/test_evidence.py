"""Rows hold all that numbers need, and numbers tell an individual from strangers, kind by kind."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from consistory_ray.evaluation.evidence import SubjectEvidence, Way, judged, way_of
from consistory_ray.evaluation.evidence_numbers import by_kind, distinctness, numbers
from consistory_ray.evaluation.hard_attributes import HARD_ATTRIBUTES
from consistory_ray.evaluation.prompts import SubjectPrompts, consistency_subjects
from consistory_ray.miniature.judge import Judge
from training.individuals import random_identity, random_placement
from training.world import PictureSpec, draw

SUBJECTS = consistency_subjects(4, scenes=3)


def drawn(subject: SubjectPrompts, number: int, individuals: int) -> np.ndarray:
    rng = random.Random(f"evidence/{number}")
    who = [random_identity(rng, subject.kind) for _ in range(individuals)]
    specs = [
        PictureSpec((who[index % individuals],), (random_placement(rng),), scene, number)
        for index, scene in enumerate(subject.scenes)
    ]
    return np.stack([np.asarray(draw(spec).image) for spec in specs])


@pytest.fixture(scope="module")
def ways() -> tuple[Way, Way]:
    """The same individual in every scene, and another one in each."""
    judge = Judge.load()
    found = []
    for individuals in (1, 3):
        images = {number: drawn(subject, number, individuals) for number, subject in enumerate(SUBJECTS)}
        rows = {number: judged(judge, number, SUBJECTS[number], own) for number, own in images.items()}
        found.append(way_of(rows, {number: judge.features(own) for number, own in images.items()}))
    return found[0], found[1]


def test_numbers_tell_an_individual_from_strangers(ways: tuple[Way, Way]) -> None:
    same, others = ways
    found = numbers(same, others)
    assert found["hard_attribute_ratio"] < 0.2 and found["hard_attribute_interval"][1] < 0.4, found
    assert found["hard_attribute_disagreement_vanilla"] > 0.5 and found["identity_gap_ratio"] < 0.2
    assert set(found["attributes"]) == set(HARD_ATTRIBUTES)
    mean = np.mean([one["disagreement"] for one in found["attributes"].values()])
    assert found["hard_attribute_disagreement"] == pytest.approx(mean)
    assert found["scene_probability"] > 0.9 < found["kind_probability"] and abs(found["scene_probability_drop"]) < 10
    nothing = numbers(others, others)
    assert nothing["hard_attribute_ratio"] == 1 == nothing["outline_ratio"] == nothing["sharpness_ratio"]
    assert nothing["chroma_ratio"] == 1 and found["chroma_ratio"] == pytest.approx(1, abs=0.5)
    assert nothing["scene_probability_drop"] == 0 == nothing["drawing_distance_rise"]


def test_subjects_of_a_kind_that_are_all_alike_are_told(ways: tuple[Way, Way]) -> None:
    same, others = ways
    first = same.rows[0]
    twin, stranger = replace(first, subject=7), replace(others.rows[1], subject=8, kind=first.kind)

    def way(*rows: SubjectEvidence) -> Way:
        return Way(rows, np.zeros((len(rows), len(rows))))

    alike, apart = distinctness(way(first, twin)), distinctness(way(first, stranger))
    assert alike == pytest.approx([first.hard_disagreement * 2 / 3] * 2), "a picture and its own twin are equal"
    assert apart[0] == apart[1] > 0.5 and np.isnan(distinctness(way(first))).all()
    found = numbers(way(first, twin), way(first, replace(stranger, subject=7)))
    assert found["distinctness_ratio"] == pytest.approx(alike[0] / apart[0])
    assert np.isnan(numbers(way(first), way(first))["distinctness_ratio"]), "nobody else is of this kind"


def test_numbers_come_again_from_the_rows_alone(ways: tuple[Way, Way]) -> None:
    stored = [Way.from_dict(json.loads(json.dumps(way.to_dict()))) for way in ways]
    assert json.dumps(numbers(*stored)) == json.dumps(numbers(*ways)), "texts, as NaN is not equal to itself"
    assert stored[0].rows == ways[0].rows


def test_only_common_subjects_are_compared_each_kind_by_itself(ways: tuple[Way, Way]) -> None:
    same, others = ways
    assert numbers(same.of({0, 1}), others.of({1, 2}))["subjects"] == 1
    with pytest.raises(ValueError, match="no subject"):
        numbers(same.of({0}), others.of({1}))
    kinds = by_kind(same.of({0, 1, 3}), others)
    assert list(kinds) == [SUBJECTS[number].kind for number in (0, 1, 3)]
    assert kinds["cat"]["identity_gap"] == pytest.approx(1 - same.rows[1].scores.similarity)


def test_the_judge_tells_probabilities_also_where_it_sees_another_scene() -> None:
    judge, subject = Judge.load(), SUBJECTS[0]
    images = drawn(subject, 0, 1)
    readings = judge.read(images)
    for reading in readings:
        assert sum(reading.scenes.values()) == pytest.approx(1, abs=1e-4)
        assert reading.scene_probability == max(reading.scenes.values()) == reading.scenes[reading.scene]
        assert sum(reading.kind_probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert max(reading.kind_probabilities, key=reading.kind_probabilities.__getitem__) == subject.kind
    (nothing,) = judge.read(np.full((1, 128, 128, 3), 128, np.uint8))
    assert sum(nothing.kind_probabilities.values()) == 0
    elsewhere = SubjectPrompts(
        subject.kind, (), (), subject.prompts, subject.seeds, subject.scenes[1:] + subject.scenes[:1]
    )
    row = judged(judge, 0, elsewhere, images).row
    assert 0 < row.scene_probability < 0.5
