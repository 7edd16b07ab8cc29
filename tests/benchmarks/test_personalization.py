"""The committed result of the personalization benchmark: of the bundled weights, complete, and made again in part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import personalization
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.evaluation.likeness import Model, score_likeness
from consistory_ray.evaluation.rendering import PictureStore, Renderer
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import MethodSettings
from training.characters import Character, draw_characters

COMMITTED = Path(personalization.__file__).parent / "results" / "personalization.json"
SAME = 0.02
"""Likeness of the same scenes on another processor; the gap to vanilla is tens of times as large."""


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(COMMITTED.read_text())
    return found


def test_the_committed_result_is_of_everybody(committed: dict[str, Any]) -> None:
    characters = draw_characters(len(committed["subjects"]))
    assert len(characters) >= 32
    assert [row["who"]["body"] for row in committed["subjects"]] == [one.who.body for one in characters]
    gaps = [sum(row["ceiling"] - row[way]["likeness"] for row in committed["subjects"]) for way in ("ours", "vanilla")]
    assert committed["numbers"]["gap_ratio_to_ceiling"] == pytest.approx(gaps[0] / gaps[1], abs=1e-3)


def test_the_committed_result_reaches_what_it_should(committed: dict[str, Any]) -> None:
    numbers = committed["numbers"]
    assert numbers["gap_ratio_to_ceiling"] <= 0.45
    assert numbers["gap_ratio_with_details"] <= 0.30
    assert numbers["body_accuracy"] >= 0.9
    assert numbers["accessory_accuracy_with_details"] >= 0.8
    assert numbers["scene_accuracy_drop"] <= 2


@pytest.mark.slow
def test_a_subject_made_again_is_as_committed(committed: dict[str, Any]) -> None:
    pipeline, character, row = ConsiStoryPipeline.from_pretrained("miniature", device="cpu"), *someone(committed)
    settings = MethodSettings.from_dict(committed["settings"])
    renderer = Renderer(pipeline, settings, PictureStore(None, pipeline.fingerprint), batch_size=8)
    model = Model(character.pictures, character.pictures_of_stranger, character.truth)
    for way, scenes in personalization.render(renderer, character, ["details"]).items():
        scores = score_likeness(Judge.load(), [scene.image for scene in scenes], character.subject, model)
        assert scores.likeness == pytest.approx(row[way]["likeness"], abs=SAME), way
        assert scores.scenes.scene_accuracy == pytest.approx(row[way]["scenes"]["scene_accuracy"], abs=0.17), way


def someone(committed: dict[str, Any]) -> tuple[Character, dict[str, Any]]:
    return draw_characters(2)[1], committed["subjects"][1]
