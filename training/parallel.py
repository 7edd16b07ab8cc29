"""Training on several one-thread processes that average their parameters now and then.

Two OpenMP threads on two cores collapse as soon as anything else runs; two independent processes do not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def launch(work: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Run ``work(rank, processes, *arguments)`` in each process, connected by gloo."""
    rendezvous = f"/tmp/consistory-miniature-{os.getpid()}-{time.time_ns()}"
    spawn(_entry, args=(work, processes, rendezvous, arguments), nprocs=processes, join=True)  # type: ignore[no-untyped-call]
    Path(rendezvous).unlink(missing_ok=True)


def _entry(rank: int, work: Callable[..., None], processes: int, rendezvous: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    try:
        work(rank, processes, *arguments)
    finally:
        dist.destroy_process_group()


def average(parameters: Iterable[torch.Tensor]) -> None:
    """Replace every tensor by its mean over the processes."""
    if dist.get_world_size() == 1:
        return
    tensors = [parameter.data for parameter in parameters]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
