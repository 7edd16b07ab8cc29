"""One picture's score, as a worker finds it while the picture is in memory.

A score depends on the picture, on its own prompt and on its subject's anchors, and on nothing that is rendered beside
it: every picture is looked at alone.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consistory_ray.errors import AssetError, ConsistoryError, InputError, Problem
from consistory_ray.quality.identity import likeness, subject_embeddings
from consistory_ray.quality.metrics import Metric, MetricOptions, TextMetric, load_metric

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.guards.choices import Measure
    from consistory_ray.quality.identity import Mask
    from consistory_ray.quality.metrics import Embeddings

KEPT_SUBJECTS = 8


@dataclass(frozen=True, slots=True)
class Looked:
    """A picture as a scorer takes it.

    Attributes:
        image: any mode and size.
        mask: where the subject is; None where nobody knows.
        key: its asset's id.
        prompt: what it was made of.
    """

    image: Image
    mask: Mask | None
    key: str
    prompt: str = ""


class Scorer:
    """A metric, and what it has seen of the last few subjects' anchors. May be called from several threads.

    Args:
        metric: what looks at the pictures.
        measure: what counts.
        name: what the job calls the metric.

    Attributes:
        scored_by: metric, measure and the metric's version, as rows of the index have it.

    Raises:
        InputError: the metric cannot say what is asked for.
    """

    def __init__(self, metric: Metric | TextMetric, measure: Measure, name: str) -> None:
        wanted = Metric if measure == "identity" else TextMetric
        if not isinstance(metric, wanted):
            method = "embed" if measure == "identity" else "align"
            problem = Problem("quality.measure", measure, f"take another metric: {name} has no {method}")
            raise InputError("the metric cannot measure that", [problem])
        self._metric = metric
        self._measure = measure
        self.scored_by = f"{name} {measure} {metric.version}"
        self._anchors: OrderedDict[str, Embeddings] = OrderedDict()
        self._lock = threading.Lock()

    def score(self, looked: Looked, subject_key: str, anchors: Callable[[], Sequence[Looked]]) -> float:
        """A picture's score, more is better; rounded to six digits, so that it is the same wherever it is stored.

        Args:
            looked: the picture.
            subject_key: of its subject.
            anchors: fetches that one's anchors, where they are not known any more.

        Raises:
            AssetError: the metric has no number for it.
        """
        with self._lock:
            if isinstance(self._metric, TextMetric) and self._measure == "alignment":
                value = float(self._metric.align([looked.image.convert("RGB")], [looked.prompt])[0])
            else:
                value = float(likeness(self._embedded([looked]), self._references(subject_key, anchors))[0])
        if not math.isfinite(value):
            raise AssetError(f"the metric {self.scored_by} has no number for it, but {value}")
        return round(value, 6)

    def _references(self, subject_key: str, anchors: Callable[[], Sequence[Looked]]) -> Embeddings:
        if subject_key not in self._anchors:
            self._anchors[subject_key] = self._embedded(anchors())
            while len(self._anchors) > KEPT_SUBJECTS:
                self._anchors.popitem(last=False)
        self._anchors.move_to_end(subject_key)
        return self._anchors[subject_key]

    def _embedded(self, pictures: Sequence[Looked]) -> Embeddings:
        assert isinstance(self._metric, Metric)
        images, masks = [one.image for one in pictures], [one.mask for one in pictures]
        return subject_embeddings(self._metric, images, masks, [one.key for one in pictures])


def load_scorer(metric: str, measure: Measure, weights: str | None, device: str) -> Scorer:
    """A scorer that is ready.

    Args:
        metric: as :func:`~consistory_ray.quality.metrics.load_metric` takes it.
        measure: what counts.
        weights: of the metric, where it needs some.
        device: where it computes.

    Raises:
        InputError: the metric is not known, is none, cannot be loaded, or cannot measure that.
        CheckpointError: its weights are absent or cannot be used.
    """
    options = MetricOptions({} if weights is None else {metric: weights}, device)
    try:
        found = load_metric(metric, options, field_name="quality.metric")
    except ConsistoryError:
        raise
    except Exception as error:  # a metric of somebody's own may raise anything
        problem = Problem(
            "quality.metric", f"{metric} ({type(error).__name__}: {error})", "mend it, or take another one"
        )
        raise InputError("this metric cannot be loaded", [problem]) from error
    return Scorer(found, measure, metric)
