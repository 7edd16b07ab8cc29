"""A worker's part in the gate: pictures are scored while they are in memory, before they are written."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from consistory_ray.engine.outages import with_backoff
from consistory_ray.errors import AssetError
from consistory_ray.output.assets import Scored, picture_size, read_metadata, stored_mask

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.jobs.quality import Quality
    from consistory_ray.output.storage import OutputStore
    from consistory_ray.plan.plan import Asset, SubjectPlan
    from consistory_ray.quality.identity import Mask
    from consistory_ray.quality.scorer import Looked, Scorer


class Judging:
    """The job's metric in a worker.

    Args:
        quality: what the job demands.
        device: where the metric computes.
        store: the output, from which anchors are read once per subject.
    """

    def __init__(self, quality: Quality, device: str, store: OutputStore) -> None:
        self._quality = quality
        self._device = device
        self._store = store
        self._scorer: Scorer | None = None

    def load(self) -> Scorer:
        """The metric; loaded when it is first asked for.

        Raises:
            InputError, CheckpointError: it cannot be used.
        """
        from consistory_ray.quality.scorer import load_scorer  # may import torch

        if self._scorer is None:
            asked = self._quality
            self._scorer = load_scorer(asked.metric, asked.measure, asked.weights, self._device)
        return self._scorer

    def score(self, subject: SubjectPlan, asset: Asset, image: Image, mask: Mask | None) -> Scored:
        """What the metric finds in a scene's picture, of which the mask says where the subject is.

        Raises:
            AssetError: it has no number for it, or an anchor's picture is gone or damaged.
            StorageError: the output failed.
        """
        from consistory_ray.quality.scorer import Looked

        scorer = self.load()
        looked = Looked(image, mask, asset.asset_id, asset.prompt)
        value = scorer.score(looked, subject.subject_key, partial(self._anchors, subject))
        return Scored(value, scorer.scored_by)

    def look(self, subject: SubjectPlan, scene: Asset) -> Scored:
        """The same of a scene whose picture is on storage.

        Raises:
            AssetError: the same, and its own picture is gone or damaged.
            StorageError: the output failed.
        """
        return self.score(subject, scene, *self._stored(scene))

    def _anchors(self, subject: SubjectPlan) -> list[Looked]:
        from consistory_ray.quality.scorer import Looked

        return [Looked(*self._stored(anchor), anchor.asset_id, anchor.prompt) for anchor in subject.anchors]

    def _stored(self, asset: Asset) -> tuple[Image, Mask | None]:
        return stored_picture(asset.path, with_backoff(partial(self._store.read, asset.path)))


def stored_picture(path: str, data: bytes) -> tuple[Image, Mask | None]:
    """A picture file of the output, decoded, and the mask that it carries; None in files of versions that wrote none.

    Raises:
        AssetError: it is damaged.
    """
    from PIL import Image

    from consistory_ray.pictures import decode_mask

    if picture_size(data) is None:
        raise AssetError(f"{path} is damaged: run consistory-ray verify --repair on the output, then render again")
    with Image.open(BytesIO(data)) as image:
        return image.convert("RGB"), decode_mask(stored_mask(read_metadata(data) or {}))
