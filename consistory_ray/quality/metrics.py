"""What measures pictures: two small protocols, and the metrics that are known by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.named_code import is_named_code, load_named

if TYPE_CHECKING:
    from PIL.Image import Image

Embeddings: TypeAlias = NDArray[np.float32]
"""``[N, D]``, rows of length 1; a row of zeros, which resembles nothing, where there was nothing to look at."""


@runtime_checkable
class Metric(Protocol):
    """Something that places pictures so that the cosine of two says how alike they are.

    What it says of a picture depends on that picture alone, not on those beside it.

    Attributes:
        name: a word, such as ``clip``.
        version: changes with whatever changes its numbers: code, weights, preparation of pictures.
        finds_subject: whether it looks for the subject by itself; others are given pictures whose background is noise.
    """

    name: str
    version: str
    finds_subject: bool

    def embed(self, images: Sequence[Image]) -> Embeddings:
        """RGB pictures of any size to ``[N, D]`` float32."""


@runtime_checkable
class TextMetric(Protocol):
    """Something that says how well pictures show their prompts; ``name`` and ``version`` as of :class:`Metric`."""

    name: str
    version: str

    def align(self, images: Sequence[Image], texts: Sequence[str]) -> NDArray[np.float32]:
        """Each RGB picture with its own text: ``[N]`` float32, more is better, 0 is nothing of it, NaN no opinion."""


@runtime_checkable
class PatchMetric(Protocol):
    """Something that sees what is where in pictures; ``name`` and ``version`` as of :class:`Metric`."""

    name: str
    version: str

    def patches(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """RGB pictures of any size to ``[N, rows, columns, D]``, each patch of length 1."""


@dataclass(frozen=True, slots=True)
class MetricOptions:
    """How metrics are loaded.

    Attributes:
        weights: metric's name -> folder or Hugging Face id of its weights.
        device: where it computes, ``"cpu"`` or ``"cuda"``.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"


MetricFactory: TypeAlias = Callable[[MetricOptions], "Metric | TextMetric"]

METRICS: Mapping[str, str] = {
    "judge": "consistory_ray.quality.judged:JudgeMetric",
    "judge-2": "consistory_ray.quality.judged:SecondJudgeMetric",
    "colours": "consistory_ray.quality.colours:ColourMetric",
    "clip": "consistory_ray.quality.backbones:ClipMetric",
    "dinov2": "consistory_ray.quality.backbones:DinoMetric",
    "dreamsim": "consistory_ray.quality.dreams:DreamSimMetric",
}
"""Metrics by name, and where each is."""

WEIGHED = ("clip", "dinov2", "dreamsim")
"""Those that need weights."""


def check_metric(field_name: str, spec: str) -> None:
    """Refuse what names no metric; nothing is imported.

    Raises:
        InputError: it is none of :data:`METRICS` and not written as ``package.module:Class``.
    """
    if spec not in METRICS and not is_named_code(spec):
        raise InputError("this metric is not known", [Problem(field_name, ascii(spec), _FIX)])


def load_metric(
    spec: str, options: MetricOptions | None = None, *, field_name: str = "--metrics"
) -> Metric | TextMetric:
    """A metric that is ready to look at pictures.

    Args:
        spec: one of :data:`METRICS`, or ``package.module:Class``, which is called with the
            options. Names that jobs give have to pass
            :func:`~consistory_ray.guards.named_code.check_allowed_code` before.
        options: see the class.
        field_name: what it was given as, for messages.

    Raises:
        InputError: it is not known, cannot be loaded, or is no metric.
        CheckpointError: its weights are absent or cannot be used.
    """
    check_metric(field_name, spec)
    factory: MetricFactory = load_named(field_name, METRICS.get(spec, spec), _FIX)
    metric = factory(options or MetricOptions())
    if not isinstance(metric, (Metric, TextMetric)):
        raise InputError("this is no metric", [Problem(field_name, spec, "give it name, version, and embed or align")])
    return metric


_FIX = f"use {', '.join(METRICS)}, or package.module:Class of a metric of your own"
