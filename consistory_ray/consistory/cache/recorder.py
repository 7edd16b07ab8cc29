"""Collects an anchor cache while a subject's anchors are rendered."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from consistory_ray.consistory.cache.anchor_cache import features_name, mask_name, step_name
from consistory_ray.consistory.cache.codecs import NONE, Codec
from consistory_ray.consistory.cache.copies import Copies, flat_size, flat_views
from consistory_ray.consistory.method.layout import Layer, Level, Levels
from consistory_ray.consistory.method.steps import Pass

_OWN_PAGES = 1 << 20
_UNDER_WAY = 2


class CacheRecorder:
    """Collects an anchor cache while the anchors are rendered; one instance per subject.

    Args:
        levels: of the model.
        codec: how what is shared and injected is packed.
        copies: of the device that computes; None where it is the host, or has none.

    Layers come in the order in which the UNet reaches them and are filed by their slots, by which scenes read them.
    A step's tensors are packed where they are and leave the device at its end, so that it never holds more than a few.
    """

    def __init__(self, levels: Levels, codec: Codec = NONE, copies: Copies | None = None) -> None:
        self._leaving = _Leaving(copies) if copies is not None else None
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
        """Features at the M mask tokens at a step, [M, C], for live correspondences; after all steps."""
        self._arrive()
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
        packed: dict[str, Tensor] = {}
        for kind in (*(f"shared.{level}" for level in self.levels.names), self._injected):
            if kind in self._step:
                found = self._step[kind]
                slots = range(self._layers.setdefault(kind, len(found)))
                if sorted(found) != list(slots):
                    raise RuntimeError(f"step {at.step} recorded {kind} of layers {sorted(found)}, not of {[*slots]}")
                where = Pass(2, at.step) if kind == self._injected else at  # where scenes inject
                packed |= self._packed(step_name(where, kind), [found[slot] for slot in slots])
        positions = {
            step_name(at, f"positions.{level}"): positions.to("cpu", torch.int32)
            for level, positions in self._positions.items()
        }
        if self._leaving is None:
            self.tensors |= packed | positions
        elif packed:
            self.tensors |= self._leaving.put(packed, positions)
        self._step, self._positions = {}, {}

    def _packed(self, name: str, layers: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """A kind of a step's layers, packed: on the host, or where they are if they can leave from there."""
        if self._leaving is not None:
            return self.codec.pack(name, torch.stack(list(layers)))
        stacked = _pages((len(layers), *layers[0].shape), layers[0].dtype)
        for slot, layer in enumerate(layers):
            stacked[slot] = layer
        packed = self.codec.pack(name, stacked)
        return {each: tensor if tensor is stacked else _copied(tensor) for each, tensor in packed.items()}

    def _arrive(self) -> None:
        """Wait for what is on its way."""
        if self._leaving is not None:
            self.tensors |= self._leaving.arrived()

    def finish(self, masks: Mapping[Level, Tensor], features: Tensor | None) -> dict[str, Tensor]:
        """Hand over all tensors in file order: features, steps, and masks last (theirs is the narrowest dtype).

        Args:
            masks: level -> bool [A, tokens].
            features: [M, C] in the model's dtype, or None without injection.
        """
        head = {} if features is None else {features_name(self.levels.features): features.cpu()}
        self._arrive()
        steps, self.tensors = self.tensors, {}
        return head | steps | {mask_name(level): masks[level].cpu() for level in self.levels.names}


class _Leaving:
    """Steps on their way from the device to the host: the device goes on, and the host waits for earlier ones only.

    Args:
        copies: of the device.
    """

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._under_way: list[tuple[dict[str, Tensor], Mapping[str, Tensor], Any]] = []

    def put(self, tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Send some off; others, which follow them, are there. Returns those that have arrived, in their order."""
        staged = flat_views(self._copies.staging(flat_size(tensors)), tensors)
        event = self._copies.download([(tensors[name], view) for name, view in staged.items()])
        self._under_way.append((staged, others, event))
        return self.arrived(_UNDER_WAY)

    def arrived(self, left: int = 0) -> dict[str, Tensor]:
        """All but so many of the last that were sent."""
        found: dict[str, Tensor] = {}
        while len(self._under_way) > left:
            staged, others, event = self._under_way.pop(0)
            self._copies.wait(event)
            found |= {**{name: _copied(tensor) for name, tensor in staged.items()}, **others}
        return found


def _copied(tensor: Tensor) -> Tensor:
    """A copy on :func:`_pages`."""
    copy = _pages(tuple(tensor.shape), tensor.dtype)
    return copy.copy_(tensor)


def _pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``torch.empty``, large ones on memory pages of their own.

    Those go back to the system with the tensor, whatever lies around them; the allocator keeps hold of some of what is
    freed, a third of a cache's size by the time that :meth:`AnchorCache.into_buffer` has put the last tensor away.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _OWN_PAGES:
        return torch.empty(shape, dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
