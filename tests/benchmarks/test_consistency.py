"""The committed evidence is made of its rows, holds what is said of it, and can be made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.consistency import rounded
from benchmarks.consistency_ways import DETAILS, NAMED_DETAILS, VANILLA
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.evaluation.consistency import score_subject
from consistory_ray.evaluation.evidence import Way
from consistory_ray.evaluation.evidence_numbers import numbers
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.evaluation.rendering import PictureStore, Renderer, stacked
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import MethodSettings

REPORT = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "consistency.json").read_text())
WAYS = REPORT["ways"]


def told(way: str) -> dict[str, Any]:
    found: dict[str, Any] = WAYS[way]["numbers"]
    return found


def test_everybody_is_in_it_in_every_way() -> None:
    counts = {way: len(report["way"]["rows"]) for way, report in WAYS.items()}
    assert set(counts.values()) == {REPORT["numbers"]["subjects"]} and REPORT["numbers"]["subjects"] >= 32, counts
    for way in (VANILLA, "paper", "strong", "paper" + DETAILS, NAMED_DETAILS, "one_seed", "same_individual"):
        assert way in counts


@pytest.mark.parametrize("way", ["paper", "strong", "paper" + DETAILS])
def test_numbers_are_those_of_the_rows(way: str) -> None:
    again = rounded(numbers(Way.from_dict(WAYS[way]["way"]), Way.from_dict(WAYS[VANILLA]["way"])))
    assert isinstance(again, dict)
    for name in ("identity_gap_ratio", "hard_attribute_ratio", "layout_diversity_ratio", "distinctness_ratio"):
        assert told(way)[name] == pytest.approx(again[name], abs=2e-3), name


def test_it_holds_what_is_said_of_it() -> None:
    paper, details = told("paper"), told("paper" + DETAILS)
    assert paper["hard_attribute_interval"][1] < told("one_seed")["hard_attribute_ratio"]
    assert details["hard_attribute_ratio"] <= 0.40 and details["identity_gap_ratio"] <= 0.25
    assert details["scene_probability_drop"] <= 2 and details["layout_diversity_ratio"] >= 0.85
    assert details["hard_attribute_ratio"] < told(NAMED_DETAILS)["hard_attribute_interval"][0], "words alone reach less"


@pytest.mark.slow
def test_a_subject_made_again_is_as_committed() -> None:
    pipeline = ConsiStoryPipeline.from_pretrained("miniature", device="cpu")
    settings = MethodSettings.from_dict(WAYS["paper"]["settings"])
    row = WAYS["paper"]["way"]["rows"][0]
    subject = consistency_subjects(1, len(row["looks"]))[0]
    _, scenes = Renderer(pipeline, settings, PictureStore(None, pipeline.fingerprint), 8).subject(subject)
    scores = score_subject(Judge.load(), stacked(scenes), subject)
    assert scores.similarity == pytest.approx(row["scores"]["similarity"], abs=0.03)
    assert scores.colour_distance == pytest.approx(row["scores"]["colour_distance"], abs=3)
