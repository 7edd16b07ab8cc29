"""The committed result of the benchmark of hints is of the committed weights, and can be made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.control import HINTS, REPORTED
from consistory_ray.consistory import ConsiStoryPipeline, ControlHint
from consistory_ray.evaluation.control import score_scenes
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import MethodSettings
from training.led import led_scenes

REPORT = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "control.json").read_text())


@pytest.fixture(scope="module")
def pipeline() -> ConsiStoryPipeline:
    """The bundled model with its ControlNet."""
    return ConsiStoryPipeline.from_pretrained("miniature", controlnets=["miniature"], device="cpu")


def test_the_committed_result_is_of_the_committed_weights(pipeline: ConsiStoryPipeline) -> None:
    assert tuple(REPORT["control_fingerprints"]) == pipeline.control_fingerprints
    assert not REPORT["tuning"] and len(REPORT["subjects"]) == REPORT["numbers"]["subjects"] >= 24


def test_it_holds_what_it_promises() -> None:
    numbers = REPORT["numbers"]
    assert numbers["silhouette_iou"] >= 0.92 and numbers["silhouette_iou_without"] < 0.7
    assert numbers["led_gap_over_free"] <= 1.25 and numbers["flops_ratio"] <= 1.6


@pytest.mark.slow
def test_two_led_scenes_are_those_of_the_committed_result(pipeline: ConsiStoryPipeline) -> None:
    index = 1
    subject = consistency_subjects(index + 1, len(HINTS), seed=REPORTED)[index]
    scenes = led_scenes(subject, HINTS, f"{REPORTED}/{index}")
    settings = MethodSettings.from_dict(REPORT["settings"])
    made = pipeline.create_subject(subject.anchors, subject.kind, subject.anchor_seeds, settings=settings)
    rows = [0, 3]
    hints = [ControlHint(scenes[row].hint, scale=REPORT["scale"], end=REPORT["end"]) for row in rows]
    shown = pipeline.render(
        [subject.prompts[row] for row in rows], made, [subject.seeds[row] for row in rows], controls=hints
    )
    some = type(subject)(
        **{
            **vars(subject),
            **{name: tuple(getattr(subject, name)[row] for row in rows) for name in ("prompts", "seeds", "scenes")},
        }
    )
    images, anchors = (np.stack([np.asarray(image) for image in result.images]) for result in (shown, made))
    found = score_scenes(Judge.load(), images, anchors, [scenes[row].silhouette for row in rows], some)
    known = REPORT["subjects"][index]["led"]
    assert found.overlap == pytest.approx([known["overlap"][row] for row in rows], abs=0.01)
    assert found.similarity == pytest.approx([known["similarity"][row] for row in rows], abs=0.02)
