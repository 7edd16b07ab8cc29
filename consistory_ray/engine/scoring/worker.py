"""What runs in a scoring worker's process: metrics on one device, and pictures read from the output."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consistory_ray.engine.faults import Failure
from consistory_ray.engine.outages import with_backoff
from consistory_ray.errors import InputError
from consistory_ray.quality.copies import CopyFinder
from consistory_ray.quality.metrics import MetricOptions, load_metric
from consistory_ray.quality.scoring import MetricFacts, Scored, facts_of, fixed_facts, score_subject

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.output.storage import OutputStore
    from consistory_ray.quality.scoring import Picture, SubjectPictures


@dataclass(frozen=True, slots=True)
class ScoringHello:
    """A worker that has loaded its metrics.

    Attributes:
        facts: which scores it gives, in the order of the metrics.
        notices: what somebody should know.
    """

    facts: tuple[MetricFacts, ...]
    notices: tuple[str, ...] = ()


class ScoreWorker:
    """The actor's class; plain Python, so that it can be tested without Ray.

    Errors come back as :class:`~consistory_ray.engine.faults.Failure` values: an exception that reaches Ray means that
    the process or the machine is gone.
    """

    def __init__(self, store: OutputStore, metrics: Sequence[str], options: MetricOptions, threads: int = 1) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before torch reads it
        self._store = store
        self._names = tuple(metrics)
        self._options = options

    def hello(self) -> ScoringHello | Failure:
        """Load the metrics."""
        try:
            self._metrics = [load_metric(name, self._options) for name in self._names]
            notices = []
            try:
                self._copies: CopyFinder | None = CopyFinder()
            except InputError as error:
                self._copies = None
                notices.append(f"{error.message}: {error.problems[0].fix}")
            facts = (*map(facts_of, self._metrics), *fixed_facts(self._copies))
            return ScoringHello(facts, tuple(notices))
        except Exception as error:
            return Failure.of(error)

    def score(self, subject: SubjectPictures) -> Scored | Failure:
        """Score a subject's pictures, after :meth:`hello`."""
        try:
            return score_subject(subject, self._metrics, self._load, self._copies)
        except Exception as error:
            return Failure.of(error)

    def _load(self, picture: Picture) -> Image:
        """A picture of the output, decoded.

        Raises:
            StorageError: it cannot be read.
            ValueError: it is not the one that the index speaks of, or none at all.
        """
        import hashlib

        from consistory_ray.output.assets import open_picture

        data = with_backoff(lambda: self._store.read(picture.path), tries=3)
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            raise ValueError(f"{picture.path} is not the picture that the index speaks of (verify --repair)")
        with open_picture(data) as image:
            return image.convert("RGB")
