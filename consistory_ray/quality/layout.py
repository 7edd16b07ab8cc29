"""How differently a subject stands in its pictures: how far its corresponding points are moved from one to the other.

After the layout diversity of section 5 of the ConsiStory paper: correspondences between pairs of a subject's pictures,
and the mean length of their displacements. Here as a share of the frame's diagonal; with a metric that sees patches the
points are those of the subject's mask, each with the patch of the other picture that resembles it most, without one the
centre of the mask alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consistory_ray.evaluation.measures import enlarged

if TYPE_CHECKING:
    from consistory_ray.quality.identity import Mask

LAYOUT = "layout_displacement"
LAYOUT_VERSION = "1"
MOST_PAIRS = 8
"""Pictures that each one's patches are compared with: more say little that is new."""


def displacements(masks: Sequence[Mask | None], scenes: Sequence[int]) -> list[float | None]:
    """Each scene's mean distance of its mask's centre from those of the other scenes, in frame diagonals.

    None for anchors, without a mask, and where no other scene has one.
    """
    centres = {place: centre for place in scenes if (centre := _centre(masks[place])) is not None}
    values: list[float | None] = [None] * len(masks)
    if len(centres) > 1:
        points = np.array(list(centres.values()))
        total = points.sum(0)
        for place, own in zip(centres, points, strict=True):
            if len(points) <= 512:
                distances = np.linalg.norm(points - own, axis=1)
                values[place] = float(distances.sum() / (len(points) - 1) / np.sqrt(2))
            else:  # so many are told well enough by their mean
                values[place] = float(np.linalg.norm((total - own) / (len(points) - 1) - own) / np.sqrt(2))
    return values


def patch_displacements(
    patches: Sequence[Any], masks: Sequence[Mask | None], scenes: Sequence[int]
) -> list[float | None]:
    """The same for the points of the subject, each with its counterpart in the other picture.

    Args:
        patches: of each picture ``[rows, columns, D]``, rows of length 1; None where nobody knows.
        masks: where the subject is; without one all points count.
        scenes: places of the scenes. Each is compared with the :data:`MOST_PAIRS` that follow it, around the end.
    """
    values: list[float | None] = [None] * len(patches)
    known = [place for place in scenes if patches[place] is not None]
    for number, place in enumerate(known):
        others = [known[(number + step) % len(known)] for step in range(1, min(MOST_PAIRS, len(known) - 1) + 1)]
        found = [moved for other in others if (moved := _moved(patches, masks, place, other)) is not None]
        values[place] = float(np.mean(found)) if found else None
    return values


def _moved(patches: Sequence[Any], masks: Sequence[Mask | None], one: int, other: int) -> float | None:
    """Mean displacement of one picture's subject in another, in frame diagonals; None where one shows no subject."""
    (own, places), (theirs, targets) = (_points(patches[place], masks[place]) for place in (one, other))
    if not len(own) or not len(theirs):
        return None
    nearest = (own @ theirs.T).argmax(1)
    return float(np.linalg.norm(places - targets[nearest], axis=1).mean() / np.sqrt(2))


def _points(patches: NDArray[np.float32], mask: Mask | None) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    rows, columns = patches.shape[:2]
    inside = np.ones((rows, columns), bool) if mask is None or not mask.any() else enlarged(mask, rows, columns)
    ys, xs = np.nonzero(inside)
    return patches[ys, xs], np.stack([(xs + 0.5) / columns, (ys + 0.5) / rows], axis=1)


def _centre(mask: Mask | None) -> tuple[float, float] | None:
    if mask is None or not mask.any():
        return None
    ys, xs = np.nonzero(mask)
    return (xs.mean() + 0.5) / mask.shape[1], (ys.mean() + 0.5) / mask.shape[0]
