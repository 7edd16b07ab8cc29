"""How fast a device is at most: a large product of matrices, and copies between it and the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from consistory_ray.doctor.diagnosis import Speeds
from consistory_ray.doctor.meters import seconds_for

CUDA_SIDE, CPU_SIDE = 8192, 512
CUDA_BYTES, CPU_BYTES = 256 << 20, 16 << 20
_REPEATS = 3


def measured_speeds(device: torch.device, dtype: torch.dtype) -> Speeds:
    """Measure a device; takes less than a second of a GPU, and some of a CPU."""
    return Speeds(matmul_tflops(device, dtype), copy_speeds(device))


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """10^12 FLOPs a second of the product of two large square matrices."""
    side = CUDA_SIDE if device.type == "cuda" else CPU_SIDE
    factor = torch.randn(side, side, dtype=dtype, device=device)
    return 2 * side**3 / _shortest(lambda: factor @ factor, device) / 1e12


def copy_speeds(device: torch.device) -> dict[str, float]:
    """10^9 bytes a second, see :class:`~consistory_ray.doctor.diagnosis.Speeds`."""
    on_cuda = device.type == "cuda"
    count = CUDA_BYTES if on_cuda else CPU_BYTES
    here, there = torch.ones(count, dtype=torch.uint8), torch.zeros(count, dtype=torch.uint8, device=device)

    def speed(target: Tensor, source: Tensor) -> float:
        return count / _shortest(lambda: target.copy_(source, non_blocking=True), device) / 1e9

    if not on_cuda:
        return {"in memory": speed(there, here)}
    pinned = here.pin_memory()
    return {
        "pageable to device": speed(there, here),
        "pinned to device": speed(there, pinned),
        "device to pinned": speed(pinned, there),
    }


def _shortest(action: Callable[[], object], device: torch.device) -> float:
    action()
    return min(seconds_for(action, device) for _ in range(_REPEATS))
