"""Casting: of several tries at a subject's anchors, the one whose anchors agree best.

Scenes take the subject from all of its anchors. Where these are not the same individual, scenes are torn between them,
and no further take of a scene helps. How much they agree is known before any scene is rendered, and says much of how
alike scenes will be (``benchmarks/consistency.py --cast``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from consistory_ray.quality.identity import likeness

if TYPE_CHECKING:
    from consistory_ray.quality.metrics import Embeddings


def to_the_others(embeddings: Embeddings) -> list[float]:
    """Each anchor's mean cosine with the other anchors; of one alone there is none.

    Args:
        embeddings: of the anchors, ``[A, D]``, see :func:`~consistory_ray.quality.identity.subject_embeddings`.
    """
    count = len(embeddings)
    places = range(count) if count > 1 else ()
    return [float(likeness(embeddings[n : n + 1], np.delete(embeddings, n, axis=0))[0]) for n in places]


def agreement(likenesses: Sequence[float]) -> float:
    """How much a subject's anchors agree: the likeness of the one that is least like the others.

    Args:
        likenesses: of each anchor to the others, 1 at most.

    Raises:
        ValueError: there is none.
    """
    if not likenesses:
        raise ValueError("agreement needs two anchors or more")
    return min(likenesses)


def best(agreements: Sequence[float]) -> int:
    """The place of the highest, the first one of equals.

    Raises:
        ValueError: there is none.
    """
    return max(range(len(agreements)), key=lambda place: (agreements[place], -place))
