"""What all figures share: the model, the judge, subjects, pictures that are made once, and where results go."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.consistency import rounded
from benchmarks.model_options import changed, renderer_of, say
from benchmarks.result_stamp import stamped
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.evaluation.evidence import Way, judged
from consistory_ray.evaluation.evidence_numbers import numbers
from consistory_ray.evaluation.prompts import SubjectPrompts, consistency_subjects
from consistory_ray.evaluation.rendering import Rendered, Renderer, stacked
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import MethodSettings

DRAWN_SCENES = 6
"""Scenes that every subject is drawn with; figures take the first ones, so that fewer are the same ones."""
COLUMNS = (
    "identity_gap_ratio",
    "identity_gap_interval",
    "identity_similarity",
    "identity_similarity_interval",
    "hard_attribute_ratio",
    "hard_attribute_interval",
    "colour_distance_ratio",
    "layout_diversity_ratio",
    "layout_diversity_interval",
    "scene_accuracy",
    "scene_probability_drop",
    "subject_accuracy",
)


@dataclass
class Bench:
    """A loaded model, and what the command line wants of it.

    Attributes:
        pipeline: the model.
        judge: who measures.
        options: of the command line.
    """

    pipeline: ConsiStoryPipeline
    judge: Judge
    options: argparse.Namespace

    @property
    def settings(self) -> MethodSettings:
        """The model's own, with the steps that are wanted."""
        return changed(self.pipeline.default_settings, num_inference_steps=self.options.steps)

    @cached_property
    def subjects(self) -> list[SubjectPrompts]:
        """Those that are wanted."""
        first, scenes = self.options.first, self.options.scenes
        drawn = consistency_subjects(first + self.options.subjects, max(DRAWN_SCENES, scenes))[first:]
        return [
            dataclasses.replace(one, **{key: getattr(one, key)[:scenes] for key in ("prompts", "seeds", "scenes")})
            for one in drawn
        ]

    def renderer(self, pipeline: ConsiStoryPipeline | None = None, **changes: Any) -> Renderer:
        """Renders with other settings, or with another model."""
        return renderer_of(pipeline or self.pipeline, self.settings.replace(**changes), self.options)

    def measured(self, pictures: Sequence[Sequence[Rendered]]) -> Way:
        """Each subject's scenes, judged; distances to drawings are left out."""
        rows = tuple(
            judged(self.judge, self.options.first + number, subject, stacked(scenes)).row
            for number, (scenes, subject) in enumerate(zip(pictures, self.subjects, strict=True))
        )
        return Way(rows, np.zeros((len(rows), len(rows))))

    @cached_property
    def vanilla(self) -> list[list[Rendered]]:
        """The subjects' scenes without the method."""
        return self.renderer().vanilla_subjects(self.subjects)

    @cached_property
    def vanilla_measured(self) -> Way:
        """Of these."""
        return self.measured(self.vanilla)

    def numbers(self, way: Way) -> dict[str, Any]:
        """Scenes against vanilla's: :data:`COLUMNS`."""
        found = numbers(way, self.vanilla_measured)
        return {key: rounded(found[key]) for key in COLUMNS}

    @staticmethod
    def rows(ways: Mapping[str, Way]) -> dict[str, Any]:
        """What the numbers are made of, by way, for a report."""
        return {name: rounded([row.to_dict() for row in way.rows]) for name, way in ways.items()}

    def write(self, name: str, report: Mapping[str, Any], picture: Image.Image | None = None) -> None:
        """A figure's numbers and picture."""
        out: Path = self.options.out
        out.mkdir(parents=True, exist_ok=True)
        about = {"subjects": len(self.subjects), "first": self.options.first, "scenes": self.options.scenes}
        full = stamped({"figure": name, **about, "settings": self.settings.to_dict(), **report}, self.pipeline)
        (out / f"{name}.json").write_text(json.dumps(full, indent=1) + "\n")
        if picture is not None:
            picture.save(out / f"{name}.webp", quality=85, method=6)
        say(f"{name}: {out / name}.json")
