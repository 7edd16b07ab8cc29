"""What a stopped training goes on from: weights, the optimizer, the moving average, the number of steps done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


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


def snapshot(step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None = None) -> dict[str, Any]:
    """For a checkpoint, after so many steps."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    return state if ema is None else {**state, "ema": ema.state()}


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None = None) -> int:
    """Take up a checkpoint if there is one; returns how many steps were done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if ema is not None:
        ema.load(state["ema"])
    return int(state["step"])
