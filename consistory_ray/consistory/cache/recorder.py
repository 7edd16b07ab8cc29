"""Collects an anchor cache while a subject's anchors are rendered."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from consistory_ray.consistory.cache.anchor_cache import features_name, mask_name, step_name
from consistory_ray.consistory.cache.codecs import NONE, Codec
from consistory_ray.consistory.method.layout import Layer, Level, Levels
from consistory_ray.consistory.method.steps import Pass

_OWN_PAGES = 1 << 20


class CacheRecorder:
    """Collects an anchor cache while the anchors are rendered; one instance per subject.

    Args:
        levels: of the model.
        codec: how what is shared and injected is packed.

    Layers come in the order in which the UNet reaches them and are filed by their slots, by which scenes read them.
    A step's tensors are moved to the CPU at its end, so that a device never holds more than one step.
    """

    def __init__(self, levels: Levels, codec: Codec = NONE) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.levels = levels
        self.codec = codec
        self._injected = f"injected.{levels.features}"
        self._step: dict[str, dict[int, Tensor]] = {}
        self._positions: dict[Level, Tensor] = {}
        self._layers: dict[str, int] = {}

    def add_shared(self, layer: Layer, tokens: Tensor) -> None:
        """A layer's kept hidden states, [h, K, C].

        Raises:
            RuntimeError: it shares none, or the step has them already.
        """
        self._add(f"shared.{layer.level}", layer.shared_slot, layer, tokens)

    def add_positions(self, level: Level, kept: Sequence[Tensor], tokens: int) -> None:
        """Which tokens a level's layers share at this step: per anchor their indices, of so many tokens."""
        self._positions[level] = torch.cat([index + anchor * tokens for anchor, index in enumerate(kept)])

    def add_injected(self, layer: Layer, tokens: Tensor) -> None:
        """A layer's injected outputs, [M, C].

        Raises:
            RuntimeError: nothing is injected there, or the step has them already.
        """
        self._add(self._injected, layer.injected_slot, layer, tokens)

    def add_features(self, at: Pass, features: Tensor) -> None:
        """Features at the M mask tokens at a step, [M, C], for live correspondences."""
        self.tensors[step_name(at, features_name(self.levels.features))] = features.cpu()

    def _add(self, kind: str, slot: int | None, layer: Layer, tokens: Tensor) -> None:
        if slot is None:
            raise RuntimeError(f"{layer.name} was recorded as {kind}, where it has no slot")
        step = self._step.setdefault(kind, {})
        if slot in step:
            raise RuntimeError(f"{layer.name} was recorded as {kind} twice in a step")
        step[slot] = tokens

    def end_step(self, at: Pass) -> None:
        """File what was added since the last call.

        Raises:
            RuntimeError: a layer is missing.
        """
        for kind in (*(f"shared.{level}" for level in self.levels.names), self._injected):
            if kind in self._step:
                found = self._step[kind]
                slots = range(self._layers.setdefault(kind, len(found)))
                if sorted(found) != list(slots):
                    raise RuntimeError(f"step {at.step} recorded {kind} of layers {sorted(found)}, not of {[*slots]}")
                where = Pass(2, at.step) if kind == self._injected else at  # where scenes inject
                self.tensors |= self.codec.pack(step_name(where, kind), _stacked([found[slot] for slot in slots]))
        for level, positions in self._positions.items():
            self.tensors[step_name(at, f"positions.{level}")] = positions.to("cpu", torch.int32)
        self._step, self._positions = {}, {}

    def finish(self, masks: Mapping[Level, Tensor], features: Tensor | None) -> dict[str, Tensor]:
        """Hand over all tensors in file order: features, steps, and masks last (theirs is the narrowest dtype).

        Args:
            masks: level -> bool [A, tokens].
            features: [M, C] in the model's dtype, or None without injection.
        """
        head = {} if features is None else {features_name(self.levels.features): features.cpu()}
        steps, self.tensors = self.tensors, {}
        return head | steps | {mask_name(level): masks[level].cpu() for level in self.levels.names}


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """``torch.stack`` on the CPU, large results on memory pages of their own.

    Those go back to the system with the tensor, whatever lies around them; the allocator keeps hold of some of what is
    freed, a third of a cache's size by the time that :meth:`AnchorCache.into_buffer` has put the last tensor away.
    """
    size = len(parts) * parts[0].numel() * parts[0].element_size()
    if size < _OWN_PAGES:
        return torch.stack(list(parts)).cpu()
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages = torch.frombuffer(memory, dtype=parts[0].dtype).view(len(parts), *parts[0].shape)
    for slot, part in enumerate(parts):
        pages[slot] = part
    return pages
