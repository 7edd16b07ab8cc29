"""The committed result of two subjects in one picture is of the committed weights, and can be made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.multi_subject import measure_job
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.evaluation.prompts import pair_prompts
from consistory_ray.evaluation.rendering import PictureStore, Renderer
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import MethodSettings

REPORT = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "multi_subject.json").read_text())


@pytest.fixture(scope="module")
def pipeline() -> ConsiStoryPipeline:
    """The bundled model."""
    return ConsiStoryPipeline.from_pretrained("miniature", device="cpu")


def test_the_committed_result_is_of_everybody() -> None:
    assert len(REPORT["jobs"]) == REPORT["numbers"]["jobs"] >= 24


def test_it_holds_what_is_said_of_it() -> None:
    numbers = REPORT["numbers"]
    assert numbers["crossing_share"] <= 0.01 and numbers["gap_ratio_interval"][1] < 0.5
    assert numbers["both_present"] >= numbers["both_present_vanilla"] and numbers["scene_accuracy"] == 1


@pytest.mark.slow
def test_a_job_is_that_of_the_committed_result(pipeline: ConsiStoryPipeline) -> None:
    settings = MethodSettings.from_dict(REPORT["settings"])
    renderer = Renderer(pipeline, settings, PictureStore(None, pipeline.fingerprint), 8)
    known = REPORT["jobs"][0]
    ours, vanilla, *_ = measure_job(renderer, Judge.load(), pair_prompts(len(REPORT["jobs"]))[0])
    for found, before in ((ours, known["consistory"]), (vanilla, known["vanilla"])):
        assert found.to_anchors == pytest.approx(before["to_anchors"], abs=0.05)
        assert found.colour_to_anchors == pytest.approx(before["colour_to_anchors"], abs=3)
