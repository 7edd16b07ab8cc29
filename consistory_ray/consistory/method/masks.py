"""Cross-attention maps become subject masks (section 3.1 of the paper)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from consistory_ray.consistory.method.layout import Grid, Level

Masks = Mapping[Level, Tensor]
"""Subject masks: level -> bool [images, tokens]."""

_BINS = 256


def otsu_threshold(values: Tensor) -> Tensor:
    """Otsu's threshold of each row, over 256 bins between the row's extremes.

    Args:
        values: [..., N] finite numbers.

    Returns:
        [...] float64, the centre of the bin after which splitting gives the largest between-class variance (the
        first such bin); a constant row's own value. What lies strictly above is the foreground. It is on the CPU where
        the device has no float64.
    """
    rows = values.reshape(-1, values.shape[-1]).to(_float64_device(values.device), torch.float64)
    low, high = rows.aminmax(dim=1, keepdim=True)
    span = high - low
    bins = ((rows - low) / span.clamp_min(torch.finfo(torch.float64).tiny) * _BINS).long().clamp_(0, _BINS - 1)
    counts = torch.zeros(rows.shape[0], _BINS, dtype=torch.float64, device=rows.device)
    counts.scatter_add_(1, bins, torch.ones_like(rows))
    # Bin numbers stand for values: every sum below is then an exact integer, so that ties are true ties.
    moments = counts * torch.arange(_BINS, dtype=torch.float64, device=rows.device)
    below, below_moment = counts.cumsum(1), moments.cumsum(1)
    above, above_moment = below[:, -1:] - below, below_moment[:, -1:] - below_moment
    between = below * above * (below_moment / below.clamp_min(1) - above_moment / above.clamp_min(1)) ** 2
    best = between.argmax(dim=1, keepdim=True)
    return (low + (best + 0.5) / _BINS * span).reshape(values.shape[:-1])


def otsu_above(values: Tensor) -> Tensor:
    """Which of the values [..., N] lie strictly above their row's threshold: bool, on the values' device."""
    threshold = otsu_threshold(values)[..., None]
    return (values.to(threshold.device) > threshold).to(values.device)


def otsu_below(values: Tensor) -> Tensor:
    """Which of the values [..., N] lie strictly below their row's threshold: bool, on the values' device."""
    threshold = otsu_threshold(values)[..., None]
    return (values.to(threshold.device) < threshold).to(values.device)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of masks that are bool [images, tokens]: [images]; 0 where both are empty."""
    return (first & second).sum(dim=1) / (first | second).sum(dim=1).clamp_min(1)


def _float64_device(device: torch.device) -> torch.device:
    """Where float64 is computed for a device: Apple's GPUs, and not only they, have none."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def concept_maps(query: Tensor, key: Tensor, columns: Tensor) -> Tensor:
    """One layer's attention probabilities, averaged over its heads and each concept's tokens.

    Args:
        query: [rows, heads, image tokens, head channels]; the last rows are the conditional half.
        key: [rows, heads, text tokens, head channels].
        columns: [images, text tokens, concepts], see :class:`AttentionMaps`.

    Returns:
        [images, image tokens, concepts] float32.
    """
    images = columns.shape[0]
    scaled = query[-images:] * query.shape[-1] ** -0.5  # before the product: float16 ends at 65504
    logits = torch.matmul(scaled, key[-images:].transpose(-1, -2)).float()
    return torch.matmul(logits.softmax(dim=-1).mean(dim=1), columns)


class AttentionMaps:
    """The concept tokens' cross-attention maps of the last steps of one pass.

    Args:
        columns: [images, text tokens, concepts] float32; column c averages over the tokens of concept c and is zero
            where the prompt lacks it.
        window: how many steps are kept.
        level: at whose tokens they are.
    """

    def __init__(self, columns: Tensor, window: int, level: Level) -> None:
        self.columns = columns
        self.level = level
        self._steps: deque[Tensor] = deque(maxlen=window)
        self._sum: Tensor | None = None
        self._layers = 0

    def add(self, found: Tensor) -> None:
        """Take one layer's maps, from :func:`concept_maps`."""
        self._sum = found if self._sum is None else self._sum + found
        self._layers += 1

    def end_step(self) -> None:
        """Close a step: its maps, if any were recorded, enter the window."""
        if self._sum is not None:
            self._steps.append(self._sum / self._layers)
        self._sum, self._layers = None, 0

    def mean(self) -> Tensor:
        """The averaged maps, [images, concepts, tokens] float32.

        Raises:
            RuntimeError: nothing was recorded.
        """
        if not self._steps:
            raise RuntimeError("no attention map has been recorded")
        return torch.stack(tuple(self._steps)).mean(dim=0).transpose(1, 2)

    def masks(self, grids: Mapping[Level, Grid]) -> dict[Level, Tensor]:
        """Subject masks of every level: the union over concepts of what is above each map's Otsu threshold."""
        maps = self.mean()
        own = grids[self.level]
        maps = maps.reshape(*maps.shape[:2], own.height, own.width)
        masks: dict[Level, Tensor] = {}
        for level, grid in grids.items():
            resized = maps
            if grid != own:
                size = (grid.height, grid.width)
                resized = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
            flat = resized.flatten(2)
            masks[level] = otsu_above(flat).any(dim=1)
        return masks

    def agreement(self) -> Tensor:
        """How far the steps' own masks agree with that of them all: mean overlap, [images], 1 where they are equal."""
        whole = otsu_above(self.mean()).any(dim=1)
        each = [overlap(otsu_above(step.transpose(1, 2)).any(dim=1), whole) for step in self._steps]
        return torch.stack(each).mean(dim=0)

    def fork(self) -> AttentionMaps:
        """A copy that goes its own way from here."""
        copy = AttentionMaps(self.columns, self._steps.maxlen or 1, self.level)
        copy._steps.extend(self._steps)
        return copy
