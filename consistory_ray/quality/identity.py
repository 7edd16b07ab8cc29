"""Is it the same individual? The subject alone before noise, and how near it is to its anchors and to its other scenes.

Backgrounds are taken away by subject masks and replaced by random noise, so that two pictures are not alike because
both are in a forest (as in 1Prompt1Story, arXiv 2501.13554, section 4.1, which removes backgrounds by another network).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consistory_ray.evaluation.measures import enlarged
from consistory_ray.quality.metrics import Embeddings

if TYPE_CHECKING:
    from consistory_ray.quality.metrics import Metric

Mask = NDArray[np.bool_]
"""Where the subject is, ``[rows, columns]`` on any grid that is not finer than its picture's pixels."""


def noise(width: int, height: int, key: str) -> NDArray[np.uint8]:
    """Uniform noise, ``[height, width, 3]``: the same for the same size and key, whatever the picture shows."""
    seed = int.from_bytes(hashlib.sha256(f"background {key}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def subject_alone(image: Image.Image, mask: Mask | None, key: str) -> Image.Image:
    """The picture with noise in place of its background; as it is without a mask, or with an empty one.

    Args:
        image: any mode.
        mask: see :data:`Mask`.
        key: of the noise, such as the asset's id.
    """
    image = image.convert("RGB")
    if mask is None or not mask.any():
        return image
    where = enlarged(mask, image.height, image.width)
    return Image.fromarray(np.where(where[..., None], np.asarray(image), noise(image.width, image.height, key)))


def background_alone(image: Image.Image, mask: Mask | None, key: str) -> Image.Image:
    """The same with noise in place of the subject."""
    return subject_alone(image, None if mask is None else ~np.asarray(mask, bool), key)


def subject_embeddings(
    metric: Metric, images: Sequence[Image.Image], masks: Sequence[Mask | None], keys: Sequence[str]
) -> Embeddings:
    """How a metric sees the subjects of pictures: ``[N, D]``, see :data:`Embeddings`.

    Args:
        metric: one that finds subjects by itself is given whole pictures.
        images: any mode and size.
        masks: of each picture, None where nobody knows.
        keys: of each picture's noise, its asset's id.
    """
    shown = [
        image.convert("RGB") if metric.finds_subject else subject_alone(image, mask, key)
        for image, mask, key in zip(images, masks, keys, strict=True)
    ]
    return metric.embed(shown)


def likeness(embeddings: Embeddings, references: Embeddings) -> NDArray[np.float32]:
    """Each picture's mean cosine with all references, ``[N]``; NaN without any.

    Args:
        embeddings: of pictures, ``[N, D]``.
        references: of the subject's anchors, ``[M, D]``.
    """
    if not len(references):
        return np.full(len(embeddings), np.nan, np.float32)
    cosines = embeddings.astype(np.float64) @ references.astype(np.float64).T
    return np.asarray(cosines.mean(1), np.float32)


def likeness_among(embeddings: Embeddings) -> NDArray[np.float32]:
    """Each picture's mean cosine with the others, ``[N]``; NaN where it is alone."""
    count = len(embeddings)
    if count < 2:
        return np.full(count, np.nan, np.float32)
    cosines = embeddings.astype(np.float64) @ embeddings.astype(np.float64).T
    return np.asarray((cosines.sum(1) - cosines.diagonal()) / (count - 1), np.float32)
