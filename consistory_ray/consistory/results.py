"""What a caller gets: rendered pictures with their masks, and of a subject what its scenes need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from consistory_ray.consistory.cache.anchor_cache import AnchorCache
from consistory_ray.consistory.method.layout import Grid, Level
from consistory_ray.consistory.method.masks import Masks

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RenderResult:
    """Rendered pictures.

    Attributes:
        images: list of PIL images, float array [B, height, width, 3] in 0..1, or latents [B, 4, h, w] float32.
            (Where a :class:`~consistory_ray.errors.PictureError` brings the result, what failed is None or NaN in it.)
        masks: level (SDXL's are "coarse" and "fine") -> final subject masks, bool [B, rows, columns]; empty where none
            were made.
    """

    images: Any
    masks: dict[Level, Tensor]


@dataclass(frozen=True)
class SubjectResult(RenderResult):
    """A subject's anchors.

    Attributes:
        cache: what scenes of the subject are rendered with.
        notices: by index of a given picture, what somebody should look at before rendering scenes.
    """

    cache: AnchorCache
    notices: Mapping[int, str] = field(default_factory=dict)


def ticker(progress: Progress | None, total: int) -> Callable[[], None]:
    """What is called after every step so that somebody is told (steps done, steps in all)."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


def shaped(masks: Masks, grids: Mapping[Level, Grid]) -> dict[Level, Tensor]:
    """[images, tokens] -> [images, rows, columns] on the CPU."""
    return {level: mask.reshape(-1, grids[level].height, grids[level].width).cpu() for level, mask in masks.items()}
