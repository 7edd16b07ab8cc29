"""Likeness to given pictures, measured on drawings of whom it is known who they show, and on made-up scores."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from PIL import Image

from consistory_ray.evaluation.consistency import SubjectScores
from consistory_ray.evaluation.likeness import LikenessScores, Model, Ways, ceiling, score_likeness
from consistory_ray.miniature.judge import Judge
from training.characters import Character, draw_characters
from training.individuals import Identity, random_placement
from training.world import PictureSpec, draw

SCENES = SubjectScores(0.4, 30.0, 0.5, 1.0, 0.9, 0.1)
PLAIN = LikenessScores(0.5, 0.4, 30.0, {"body": 0.2, "accessory": 0.0}, 0.9, SCENES)


def in_scenes(who: Identity, character: Character) -> list[Image.Image]:
    rng = random.Random(7)
    return [draw(PictureSpec((who,), (random_placement(rng),), scene, 3)).image for scene in character.scenes]


def test_the_individual_itself_is_as_like_as_the_given_pictures_are_and_another_one_is_not() -> None:
    judge, character = Judge.load(), draw_characters(3, scenes=3)[2]
    model = Model(character.pictures, character.pictures_of_stranger, character.truth)
    best, other = ceiling(judge, model)
    itself = score_likeness(judge, in_scenes(character.who, character), character.subject, model)
    stranger = score_likeness(judge, in_scenes(character.stranger, character), character.subject, model)
    assert best > 0.9 > 0.7 > other
    assert itself.likeness == pytest.approx(best, abs=0.05) and itself.stranger == pytest.approx(other, abs=0.1)
    assert stranger.likeness == pytest.approx(other, abs=0.1) and stranger.stranger > 0.9
    assert itself.colour_distance < 5 < stranger.colour_distance
    assert itself.right["body"] == 1 and sum(itself.right.values()) > len(itself.right) - 1
    assert sum(stranger.right.values()) < len(itself.right) - 1
    assert itself.scenes.scene_accuracy == itself.scenes.kind_accuracy == 1 and itself.scene_probability > 0.9
    wrong = replace(character.subject, scenes=character.scenes[::-1])
    elsewhere = score_likeness(judge, in_scenes(character.who, character), wrong, model)
    assert elsewhere.scene_probability < itself.scene_probability - 0.5
    assert elsewhere.likeness == itself.likeness


def test_numbers_are_ratios_of_means_to_the_ceiling() -> None:
    worn = replace(PLAIN, likeness=0.7, right={"body": 0.4, "accessory": 0.5, "accessory_colour": 0.0})
    fewer_scenes = replace(SCENES, scene_accuracy=0.9, spread=0.05)
    ours = [replace(PLAIN, likeness=0.8), replace(worn, likeness=0.9, scenes=fewer_scenes)]
    details = [replace(PLAIN, likeness=0.9), replace(worn, likeness=0.95, right={**worn.right, "accessory": 1.0})]
    vanilla, vanilla_details = [PLAIN, worn], [replace(PLAIN, likeness=0.7), replace(worn, likeness=0.8)]
    numbers = Ways([1.0, 0.9], [0.3, 0.3], vanilla, ours, vanilla_details, details, vanilla_details, ours).numbers
    assert numbers["gap_ratio_to_ceiling"] == pytest.approx((0.2 + 0.0) / (0.5 + 0.2))
    assert numbers["gap_ratio_with_details"] == pytest.approx((0.1 - 0.05) / (0.3 + 0.1))
    assert numbers["gap_ratio_with_details_to_plain_vanilla"] == pytest.approx((0.1 - 0.05) / 0.7)
    assert numbers["gap_ratio_with_everything_named"] == pytest.approx(0.2 / 0.4)
    assert numbers["gap_ratio_with_everything_named_to_plain_vanilla"] == pytest.approx(0.2 / 0.7)
    assert numbers["gap_ratio_of_details_alone"] == pytest.approx(0.4 / 0.7)
    low, high = numbers["gap_ratio_to_ceiling_interval"]
    assert low <= numbers["gap_ratio_to_ceiling"] <= high
    assert numbers["body_accuracy"] == pytest.approx(0.3)
    assert numbers["accessory_accuracy_with_details"] == 1, "those who wear one"
    assert numbers["accessory_accuracy_with_details_all"] == pytest.approx(0.5)
    assert numbers["scene_accuracy_drop"] == pytest.approx(5) and numbers["scene_accuracy_drop_with_details"] == 0
    assert numbers["layout_diversity_ratio"] == pytest.approx(0.75)
    assert (numbers["subjects"], numbers["subjects_better"]) == (2, 2)
    assert numbers["ours"]["likeness"] == pytest.approx(0.85)


def test_what_is_not_known_is_left_out() -> None:
    unknown = replace(PLAIN, scenes=replace(SCENES, spread=float("nan")))
    numbers = Ways([1.0], [0.3], *([unknown] for _ in range(6))).numbers
    assert "layout_diversity" not in numbers["ours"] and "accessory_accuracy_with_details" not in numbers
