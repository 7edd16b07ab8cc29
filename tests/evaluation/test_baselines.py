"""The simplest means change what they say and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from consistory_ray.evaluation.baselines import colours_transferred, naming_colours, naming_details, one_seed
from consistory_ray.evaluation.measures import lab_to_srgb, srgb_to_lab
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.miniature.vocabulary import words

LOOK = {"body": "orange", "second": "teal", "pattern": "plain", "accessory": "none", "accessory_colour": "none"}


def test_one_seed_is_the_first_scenes() -> None:
    (subject,) = consistency_subjects(1, scenes=3)
    changed = one_seed(subject)
    assert changed.seeds == (subject.seeds[0],) * 3 and changed.prompts == subject.prompts


def test_two_colours_are_named_in_words_the_model_knows() -> None:
    for subject in consistency_subjects(8, scenes=2):
        named = naming_colours(subject, LOOK)
        assert named.seeds == subject.seeds and naming_colours(subject, None) == subject
        for was, prompt in zip(subject.prompts, named.prompts, strict=True):
            assert f" an orange and teal {subject.kind} " in prompt and set(prompt.split()) <= set(words())
            assert prompt.replace(" an orange and teal ", " a ") == was.replace(" an ", " a ")


def test_details_are_named_in_anchors_and_scenes_alike() -> None:
    striped = LOOK | {"pattern": "striped", "accessory": "glasses"}
    for subject in consistency_subjects(8, scenes=2):
        named = naming_details(subject, striped)
        assert named.seeds == subject.seeds and naming_details(subject, None) == subject
        for prompt in (*named.anchors, *named.prompts):
            assert f" an orange striped {subject.kind} with glasses " in prompt and set(prompt.split()) <= set(words())
        for prompt in naming_details(subject, LOOK).prompts:
            assert f" an orange {subject.kind} {prompt.split(subject.kind + ' ')[1]}" in prompt
            assert "plain" not in prompt and "none" not in prompt


def test_colours_go_over_and_nothing_else_does() -> None:
    rng = np.random.default_rng(0)
    images, masks = rng.integers(60, 190, (3, 16, 16, 3), np.uint8), np.zeros((3, 16, 16), bool)
    images[1] = images[1] // 2 + 100
    masks[:2, 4:12, 4:12] = True
    done = colours_transferred(images, masks)
    assert np.array_equal(done[[0, 2]], images[[0, 2]]) and np.array_equal(done[1][~masks[1]], images[1][~masks[1]])
    model, after = srgb_to_lab(images[0][masks[0]]), srgb_to_lab(done[1][masks[1]])
    assert after.mean(0) == pytest.approx(model.mean(0), abs=0.5)
    assert after.std(0) == pytest.approx(model.std(0), rel=0.1)
    assert np.array_equal(colours_transferred(images, masks[::-1]), images), "nobody in the first picture"


def test_lab_and_back() -> None:
    colours = np.random.default_rng(1).integers(0, 256, (200, 3))
    assert lab_to_srgb(srgb_to_lab(colours)) == pytest.approx(colours, abs=1e-6)
