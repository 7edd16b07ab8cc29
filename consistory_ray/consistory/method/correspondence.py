"""DIFT features and the nearest source of every token (section 3.4 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from consistory_ray.consistory.method.layout import Grid
from consistory_ray.consistory.method.masks import otsu_below

_ROWS_AT_ONCE = 4096  # bounds the similarity matrix: 4096 x sources


@dataclass(frozen=True)
class Matches:
    """For every token of every target its nearest source.

    Attributes:
        index: [targets, tokens] int64 into the list of sources; 0 where there is no source.
        distance: [targets, tokens] float32 cosine distance; infinite where there is no source.
        gate: [targets, tokens] bool, where features are injected: inside the target's mask and nearer than Otsu's
            threshold over all of the target's distances.
    """

    index: Tensor
    distance: Tensor
    gate: Tensor


@dataclass(frozen=True)
class Correspondences:
    """Matches with their sources' places in the anchors' pictures, for whoever wants to look at them.

    Attributes:
        sources: [images, tokens] int64, anchor * tokens + token.
        distance, gate: as in :class:`Matches`.
    """

    sources: Tensor
    distance: Tensor
    gate: Tensor


def smooth(features: Tensor) -> Tensor:
    """Each channel under a 3x3 Gaussian of sigma 1, zero outside; [images, channels, rows, columns] float32."""
    channels = features.shape[1]
    line = torch.exp(-0.5 * torch.tensor([-1.0, 0.0, 1.0], device=features.device) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    return F.conv2d(features.float(), kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


def unit_features(smoothed: Tensor, grid: Grid) -> Tensor:
    """Smoothed features at a level's tokens, scaled to length one: [images, tokens, channels] float32."""
    size = (grid.height, grid.width)
    if smoothed.shape[-2:] != size:
        smoothed = F.interpolate(smoothed, size=size, mode="bilinear", align_corners=False)
    return F.normalize(smoothed.flatten(2).transpose(1, 2), dim=-1)


def match(targets: Tensor, target_masks: Tensor, sources: Tensor) -> Matches:
    """Find the nearest source of every target token.

    Args:
        targets: [targets, tokens, channels] of length one.
        target_masks: [targets, tokens] bool.
        sources: [sources, channels] of length one: the tokens inside the sources' masks only.
    """
    images, tokens, channels = targets.shape
    if sources.shape[0] == 0:
        index = torch.zeros(images, tokens, dtype=torch.long, device=targets.device)
        return Matches(index, torch.full((images, tokens), torch.inf, device=targets.device), index.bool())
    rows = targets.reshape(-1, channels)
    starts = range(0, len(rows), _ROWS_AT_ONCE)
    found = [(rows[start : start + _ROWS_AT_ONCE] @ sources.T).max(dim=1) for start in starts]
    distance = (1 - torch.cat([best.values for best in found])).view(images, tokens)
    index = torch.cat([best.indices for best in found]).view(images, tokens)
    return Matches(index, distance, target_masks & otsu_below(distance))
