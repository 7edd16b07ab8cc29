"""Where scenes find a cache's tensors: on the device that computes, or on their way to it a step ahead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from consistory_ray.consistory.cache.anchor_cache import AnchorCache
from consistory_ray.consistory.cache.copies import Copies, copies_of, flat_size, flat_views
from consistory_ray.consistory.method.layout import Level
from consistory_ray.consistory.method.steps import Pass


@dataclass
class _Coming:
    """Packed tensors that may be used once their copy has arrived."""

    tensors: dict[str, Tensor]
    copy: Tensor | None = None
    event: Any = None


class PlacedCache:
    """A subject's cache as a device reads it. Tensors travel packed, and are unpacked where they are used.

    A *part* is what a step reads of a kind (:meth:`AnchorCache.part`). The first parts that are read stay on the device
    for the next batches, as many as there is room for. Every other is brought anew in each batch: a step ahead where it
    was expected, and otherwise when it is read; of each kind the one in use and the next are on the device at most.

    Args:
        cache: the subject. Where its tensors are on the device, nothing is copied.
        device: that computes.
        room: bytes of the cache that may stay on the device.
        copies: by which everything is brought; those of
            :func:`~consistory_ray.consistory.cache.copies.copies_of` when None, where anything has to be.
    """

    def __init__(self, cache: AnchorCache, device: torch.device, room: int = 0, copies: Copies | None = None) -> None:
        self.cache = cache
        self.device = device
        self.resident_bytes = 0
        self._here = copies is None and _same(cache.device, device)
        self._copies = copies or copies_of(device)
        self._room = room
        self._staying: dict[str, dict[str, Tensor]] = {}
        self._coming: dict[str, _Coming] = {}
        self._in_use: dict[str, tuple[str, dict[str, Tensor]]] = {}
        self._unpacked: tuple[str, dict[Level, Tensor]] = "", {}

    def limit(self, room: int) -> None:
        """Another room: what is too much for it leaves the device, the last parts first."""
        self._room = room
        while self.resident_bytes > room:
            _, tensors = self._staying.popitem()
            self.resident_bytes -= flat_size(tensors)

    def release(self) -> None:
        """Let go of what does not stay, between batches."""
        self._coming, self._in_use, self._unpacked = {}, {}, ("", {})

    def shared(self, at: Pass) -> dict[Level, Tensor]:
        """See :meth:`AnchorCache.shared`."""
        part = self.cache.shared_part(at)
        if self._unpacked[0] != part:
            self._unpacked, tensors = ("", {}), self._read(part)
            found = {level: self.cache.unpacked(f"{part}.{level}", tensors) for level in self.cache.grids}
            self._unpacked = part, found
        return self._unpacked[1]

    def injected(self, step: int) -> Tensor:
        """See :meth:`AnchorCache.injected`."""
        part = self.cache.injected_part(step)
        return self.cache.unpacked(f"{part}.{self.cache.feature_level}", self._read(part))

    def features(self, at: Pass | None = None) -> Tensor:
        """Features of a step, or of the DIFT step, [M, C] of length one.

        Raises:
            KeyError: the cache was made without.
        """
        part = self.cache.features_part(at)
        return self._read(part)[f"{part}.{self.cache.feature_level}"]

    @cached_property
    def injected_positions(self) -> Tensor:
        """See :attr:`AnchorCache.injected_positions`."""
        return self.cache.injected_positions.to(self.device)

    def expect(self, parts: Iterable[str]) -> None:
        """These are read next: they set out now. What was expected before and has not been read is given up."""
        expected = dict.fromkeys(parts)
        self._coming = {part: coming for part, coming in self._coming.items() if part in expected}
        if self._copies is not None and not self._here:
            self._coming |= {part: self._begun(part) for part in expected if not self._at_hand(part)}

    def _at_hand(self, part: str) -> bool:
        return part in self._staying or part in self._coming or self._used(part) is not None

    def _used(self, part: str) -> dict[str, Tensor] | None:
        """A part's tensors, if it is the last of its kind that was read."""
        name, tensors = self._in_use.get(_kind(part), ("", None))
        return tensors if name == part else None

    def _read(self, part: str) -> Mapping[str, Tensor]:
        """A part's packed tensors on the device."""
        if self._here:
            return self.cache.tensors
        found = self._staying.get(part) or self._used(part)
        if found is None:
            coming = self._coming.pop(part, None) or self._begun(part)
            if self._copies is not None and coming.copy is not None:
                self._copies.arrived(coming.copy, coming.event)
            found = coming.tensors
            self._keep(part, found)
        return found

    def _keep(self, part: str, tensors: dict[str, Tensor]) -> None:
        size = flat_size(tensors)
        if self.resident_bytes + size <= self._room:
            self._staying[part] = tensors
            self.resident_bytes += size
        else:
            self._in_use[_kind(part)] = part, tensors

    def _begun(self, part: str) -> _Coming:
        """Begin to bring a part. On a device without copies of its own it is there at once."""
        tensors = self.cache.part(part)
        if self._copies is None:
            return _Coming({name: tensor.to(self.device) for name, tensor in tensors.items()})
        staged = self._copies.staging(flat_size(tensors))
        for name, view in flat_views(staged, tensors).items():
            view.copy_(tensors[name])
        copy, event = self._copies.upload(staged)
        return _Coming(flat_views(copy, tensors), copy, event)


def _kind(part: str) -> str:
    return part.rsplit(".", 1)[-1]


def _same(one: torch.device, other: torch.device) -> bool:
    """``cuda`` is ``cuda:0`` where nobody says otherwise."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)
