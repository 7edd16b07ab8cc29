"""The bundled model's judge as one metric among others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consistory_ray.errors import InputError, Problem
from consistory_ray.quality.metrics import Embeddings, MetricOptions
from consistory_ray.quality.weights import files_digest

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.miniature.judge import Judge

_CODE = 1
"""Counted up with every change of what is computed here."""


class JudgeMetric:
    """Reads pictures of the bundled model's world, and only those; on a CPU, whatever the options say.

    ``embed`` cuts the subject out along the judge's own mask and gives its identity embedding. ``align`` is the
    probability that the judge gives the scene that the text names, times that of seeing the kind that it names; a part
    that the text does not name counts as 1.
    """

    name = "judge"
    finds_subject = True

    def __init__(self, options: MetricOptions | None = None) -> None:
        from consistory_ray.miniature.judge import Judge

        if options is not None and self.name in options.weights:
            fix = "leave it out: the judge is bundled"
            raise InputError("the judge takes no weights", [Problem("--weights", options.weights[self.name], fix)])
        weights = self._weights()
        self._judge: Judge = Judge.load(weights)
        self.version = f"{_CODE}-{files_digest([weights])}"

    @staticmethod
    def _weights() -> Path:
        from consistory_ray.miniature.judge import WEIGHTS

        return WEIGHTS

    def embed(self, images: Sequence[Image]) -> Embeddings:
        """Identity embeddings, ``[N, 64]``; zeros where the judge finds no subject."""
        from consistory_ray.miniature.judge import EMBEDDING_SIZE
        from consistory_ray.miniature.vocabulary import PICTURE_SIZE

        if not images:
            return np.zeros((0, EMBEDDING_SIZE), np.float32)
        pixels = _pixels(images, PICTURE_SIZE)
        masks = [reading.foreground for reading in self._judge.read(pixels)]
        return np.stack([portrait.embedding for portrait in self._judge.portray(pixels, masks)])

    def align(self, images: Sequence[Image], texts: Sequence[str]) -> NDArray[np.float32]:
        """See the class; NaN where a text names neither a scene nor a kind of the bundled model's world."""
        from consistory_ray.miniature.judge import SMALLEST_SUBJECT
        from consistory_ray.miniature.vocabulary import KINDS, PICTURE_SIZE, SCENES

        if not images:
            return np.zeros(0, np.float32)
        pixels = _pixels(images, PICTURE_SIZE)
        scenes, readings = self._scenes(pixels), self._judge.read(pixels)
        values = []
        for text, probabilities, reading in zip(texts, scenes, readings, strict=True):
            named_scenes = [number for number, scene in enumerate(SCENES) if scene in text.lower()]
            named_kinds = [kind for kind in KINDS if re.search(rf"\b{kind}", text.lower())]
            if not named_scenes and not named_kinds:
                values.append(float("nan"))
                continue
            scene = float(probabilities[named_scenes].max()) if named_scenes else 1.0
            shown = [reading.areas[kind] >= SMALLEST_SUBJECT for kind in named_kinds]
            values.append(scene * (float(np.mean(shown)) if shown else 1.0))
        return np.array(values, np.float32)

    def _scenes(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How probable each scene is: ``[N, scenes]``."""
        import torch

        from consistory_ray.miniature.judge import to_tensor

        with torch.no_grad():
            found: NDArray[np.float32] = self._judge.segmenter(to_tensor(pixels))[0].softmax(1).numpy()
        return found


class SecondJudgeMetric(JudgeMetric):
    """The same of a judge that was trained on other individuals, from other seeds.

    What chooses among pictures should not be what measures the ones that were chosen: this one gates, so that the first
    one can measure.
    """

    name = "judge-2"

    @staticmethod
    def _weights() -> Path:
        from consistory_ray.miniature.judge import SECOND_WEIGHTS

        return SECOND_WEIGHTS


def _pixels(images: Sequence[Image], side: int) -> NDArray[np.uint8]:
    """uint8 ``[N, side, side, 3]``."""
    return np.stack([np.asarray(image.convert("RGB").resize((side, side))) for image in images])
