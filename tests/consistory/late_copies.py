"""Copies of a device that is never faster than it has to be: a copy is made when somebody waits for it, not before.

Until then it is full of what float numbers take for NaN, and so is staging memory that nobody holds any more: what is
used too early, or given away too early, is in the pictures.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

UNWRITTEN = 255


class LateCopies:
    """See :class:`~consistory_ray.consistory.cache.copies.Copies`; computes on the CPU.

    Attributes:
        log: what happened, in order: ("begun" or "arrived" or "left", number of the copy), and what tests add.
        uploaded: bytes that were begun to be copied to the device.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self.uploaded = 0
        self._begun: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._copies: list[weakref.ref[Any]] = []
        self._number = 0

    @property
    def on_device(self) -> int:
        """Copies on the device that somebody still holds."""
        return sum(reference() is not None for reference in self._copies)

    def staging(self, nbytes: int) -> Tensor:
        return torch.full((nbytes,), UNWRITTEN, dtype=torch.uint8)

    def upload(self, staged: Tensor) -> tuple[Tensor, Any]:
        copy = torch.full_like(staged, UNWRITTEN)
        self._copies.append(weakref.ref(copy.untyped_storage()))
        self.uploaded += staged.numel()
        return copy, self._begin([(staged, copy)])

    def arrived(self, copy: Tensor, event: Any) -> None:
        self._finish(event)
        self.log.append(("arrived", event))

    def download(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Any:
        return self._begin(list(pairs))

    def wait(self, event: Any) -> None:
        self._finish(event)
        self.log.append(("left", event))

    def _begin(self, pairs: list[tuple[Tensor, Tensor]]) -> int:
        self._number += 1
        self._begun[self._number] = pairs
        self.log.append(("begun", self._number))
        return self._number

    def _finish(self, event: int) -> None:
        """They are made in order, up to that one."""
        for number in [number for number in self._begun if number <= event]:
            for source, target in self._begun.pop(number):
                target.copy_(source)
