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
from torch import nn
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


class Ema:
    """Exponential moving average of a module's parameters, with a ramp so that early steps do not linger."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.shadow = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's present parameters."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, parameter in module.named_parameters():
            self.shadow[name].lerp_(parameter.detach(), 1 - decay)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self.steps, "shadow": self.shadow}

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.steps = int(state["steps"])
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)


def save_atomically(state: Any, path: Path) -> None:
    """``torch.save`` to a temporary name, then rename."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)
