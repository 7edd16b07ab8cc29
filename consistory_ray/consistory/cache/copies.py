"""Copies between host and device while the device computes: pinned memory, and a stream beside the computing one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

_ALIGNMENT = 64


class Copies(Protocol):
    """A device's copies, one after the other on a stream of their own.

    What has been begun is over once its event has been waited for, by the device or by the host. All calls are from the
    thread that computes.
    """

    def staging(self, nbytes: int) -> Tensor:
        """Host memory that the device copies from and to by itself, uint8 [nbytes]; nobody else's while it does."""
        ...

    def upload(self, staged: Tensor) -> tuple[Tensor, Any]:
        """Begin to copy staging memory to the device: the copy, to be used after :meth:`arrived`, and its event."""
        ...

    def arrived(self, copy: Tensor, event: Any) -> None:
        """Whatever the device is told to compute from now on waits for an upload, and uses it; the host goes on."""
        ...

    def download(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Any:
        """Begin to copy tensors, once they are computed, into staging memory of their shapes; returns the event."""
        ...

    def wait(self, event: Any) -> None:
        """The host waits for a download."""
        ...


class CudaCopies:
    """See :class:`Copies`.

    PyTorch's allocators keep the books: staging memory is not given out again before copies from it are over, and
    neither is a tensor's memory before the streams that were told of it are past its last use.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def staging(self, nbytes: int) -> Tensor:
        """See :class:`Copies`."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def upload(self, staged: Tensor) -> tuple[Tensor, Any]:
        """See :class:`Copies`."""
        with torch.cuda.stream(self._stream):
            copy = staged.to(self._device, non_blocking=True)
            return copy, self._stream.record_event()

    def arrived(self, copy: Tensor, event: Any) -> None:
        """See :class:`Copies`."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(event)
        copy.record_stream(computing)

    def download(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Any:
        """See :class:`Copies`."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
                source.record_stream(self._stream)
            return self._stream.record_event()

    def wait(self, event: Any) -> None:
        """See :class:`Copies`."""
        event.synchronize()


def copies_of(device: torch.device) -> Copies | None:
    """A device's copies; None where they would be no better than ``tensor.to(device)``."""
    return _cuda_copies(device) if device.type == "cuda" else None


@lru_cache
def _cuda_copies(device: torch.device) -> CudaCopies:
    return CudaCopies(device)


def flat_size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of one array that holds tensors one after the other, each of them aligned."""
    return sum(_padded(tensor) for tensor in tensors.values())


def flat_views(flat: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same names, dtypes and shapes as others, in such an array, wherever it is."""
    views, place = {}, 0
    for name, tensor in tensors.items():
        piece = flat[place : place + tensor.numel() * tensor.element_size()]
        views[name] = piece.view(tensor.dtype).view(tensor.shape)
        place += _padded(tensor)
    return views


def _padded(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
