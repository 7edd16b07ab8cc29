"""Benchmarks render only what their store lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.evaluation.rendering import PictureStore, Renderer, stacked
from consistory_ray.settings import MethodSettings


class CountingPipeline:
    """Renders each seed as a flat colour and remembers which."""

    def __init__(self) -> None:
        self.pipe = SimpleNamespace(unet=SimpleNamespace(dtype=torch.float32))
        self.rendered: list[int] = []
        self.batches: list[int] = []

    def render_vanilla(self, prompts: Sequence[str], seeds: Sequence[int], **_: Any) -> SimpleNamespace:
        self.rendered += seeds
        self.batches.append(len(seeds))
        images = [
            Image.new("RGB", (8, 8), (seed % 256, len(prompt), 0)) for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return SimpleNamespace(images=images, masks={"coarse": torch.ones(len(seeds), 2, 2, dtype=torch.bool)})

    def create_subject(self, prompts: Sequence[str], concept: str, seeds: Sequence[int], **_: Any) -> SimpleNamespace:
        return self.render_vanilla(prompts, seeds)

    def render(self, prompts: Sequence[str], subject: object, seeds: Sequence[int], **_: Any) -> SimpleNamespace:
        return self.render_vanilla(prompts, seeds)


def renderer(pipeline: CountingPipeline, folder: Path, **changes: Any) -> Renderer:
    """A renderer of batches of two."""
    settings = MethodSettings().replace(**changes)
    return Renderer(cast(ConsiStoryPipeline, pipeline), settings, PictureStore(folder, "f" * 64), batch_size=2)


def test_vanilla_pictures_come_in_order_and_only_once(tmp_path: Path) -> None:
    pipeline = CountingPipeline()
    prompts, seeds = ["a cat", "a big cat", "one cat"], [7, 5, 6]
    first = renderer(pipeline, tmp_path).vanilla(prompts[:1], seeds[:1], ["cat"])
    everything = renderer(pipeline, tmp_path).vanilla(prompts, seeds, ["cat"])
    assert pipeline.rendered == [7, 5, 6] and pipeline.batches == [1, 2]
    assert stacked(everything)[:, 0, 0, 0].tolist() == seeds
    assert np.array_equal(stacked(first), stacked(everything[:1]))
    assert everything[0].masks["coarse"].all()


def test_what_changes_a_picture_renders_it_again_and_nothing_else_does(tmp_path: Path) -> None:
    pipeline = CountingPipeline()
    renderer(pipeline, tmp_path).vanilla(["a cat"], [1], ["cat"])
    renderer(pipeline, tmp_path, mask_dropout=0.1, injection=False).vanilla(["a cat"], [1], ["cat"])
    assert pipeline.rendered == [1], "the method's settings do not matter without the method"
    for change in ({"guidance_scale": 3.0}, {"freeu": None}, {"num_inference_steps": 9}):
        renderer(pipeline, tmp_path, **change).vanilla(["a cat"], [1], ["cat"])
    assert pipeline.rendered == [1] * 4


def test_scenes_of_given_pictures_share_a_subject_and_are_rendered_once(tmp_path: Path) -> None:
    class Given(CountingPipeline):
        subjects = 0

        def create_subject(self, *_: Any, images: Any, **more: Any) -> SimpleNamespace:  # type: ignore[override]
            self.subjects += 1
            return SimpleNamespace()

    pipeline, (subject,) = Given(), consistency_subjects(1, scenes=2)
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    other = dataclasses.replace(subject, prompts=("one", "another"))
    first = renderer(pipeline, tmp_path).given([red, blue], [subject, other])
    assert pipeline.rendered == 2 * list(subject.seeds) and pipeline.subjects == 1
    again = renderer(pipeline, tmp_path).given([red, blue], [subject, other])
    assert [stacked(a).tobytes() for a in first] == [stacked(b).tobytes() for b in again]
    assert len(pipeline.rendered) == 4
    renderer(pipeline, tmp_path).given([blue, red], [subject])
    renderer(pipeline, tmp_path).given([red, blue], [subject], [np.ones((8, 8), bool)] * 2)
    assert len(pipeline.rendered) == 8 and pipeline.subjects == 3


def test_subjects_are_rendered_once_per_settings(tmp_path: Path) -> None:
    pipeline, (subject,) = CountingPipeline(), consistency_subjects(1)
    anchors, scenes = renderer(pipeline, tmp_path).subject(subject)
    assert (len(anchors), len(scenes)) == (2, 6)
    assert pipeline.rendered == [*subject.anchor_seeds, *subject.seeds]
    again = renderer(pipeline, tmp_path).subjects([subject])[0][1]
    assert np.array_equal(stacked(scenes), stacked(again)) and len(pipeline.rendered) == 8
    renderer(pipeline, tmp_path, mask_dropout=0.1).subject(subject)
    assert len(pipeline.rendered) == 16
