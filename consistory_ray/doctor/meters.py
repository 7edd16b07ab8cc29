"""What an action takes of a device: seconds, and bytes at its peak."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import torch


def synchronise(device: torch.device) -> None:
    """Wait for what was begun."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_for(action: Callable[[], object], device: torch.device) -> float:
    """How long it took, what was left to the device included."""
    synchronise(device)
    started = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - started


def forget_peak(device: torch.device) -> None:
    """Let :func:`peak_bytes` begin anew, where it can."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Bytes that torch had allocated there at most; of a CPU's process the largest it has ever been."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
