"""Hooks on the user's UNet: those that bring its weights are honoured, those that want to see whole calls are refused.

The method calls the UNet in two halves and never through ``UNet.forward``. Hooks on its parts run as always, since the
parts are called as modules. Around the halves :class:`UNetHooks` does what accelerate's and diffusers' wrappers of
``forward`` do, so that ``enable_model_cpu_offload``, ``enable_sequential_cpu_offload`` and group offloading work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from consistory_ray.errors import CheckpointError, Problem

_TORCH_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class UNetHooks:
    """What runs before and after each call of a UNet.

    Args:
        unet: with whatever hooks it has at the moment.

    Raises:
        CheckpointError: some of them cannot be honoured.
    """

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        registry = getattr(unet, "_diffusers_hook", None)
        hooks = [] if registry is None else [registry.hooks[name] for name in reversed(registry._hook_order)]
        own = getattr(unet, "_hf_hook", None)
        self._hooks: list[Any] = [*hooks, *([] if own is None else [own])]  # from the outside in
        problems = [
            Problem(f"unet.{kind}", ", ".join(type(hook).__name__ for hook in getattr(unet, kind).values()), _REMOVE)
            for kind in _TORCH_HOOKS
            if getattr(unet, kind, None)
        ]
        for hook in self._hooks:
            if hasattr(hook, "new_forward"):
                problems.append(Problem("unet hook", type(hook).__name__, "remove it: it replaces the UNet's forward"))
        if not self._hooks and _is_replaced(unet):
            problems.append(
                Problem("unet.forward", repr(unet.forward)[:100], "remove this replacement: it would be bypassed")
            )
        if problems:
            raise CheckpointError("the UNet has hooks that the method cannot honour", problems)

    def before(self, sample: Tensor) -> Tensor:
        """A UNet call begins: weights are brought. Returns its input [rows, channels, height, width] where they are."""
        for hook in self._hooks:
            (sample, *_), _ = hook.pre_forward(self._unet, sample)
        return sample

    def after(self, prediction: Tensor) -> Tensor:
        """A UNet call has ended. Returns its output, [rows, channels, height, width]."""
        for hook in reversed(self._hooks):
            prediction = hook.post_forward(self._unet, prediction)
        return prediction


_REMOVE = "remove it, or register it on a part of the UNet: the method calls the UNet's parts one by one"


def _is_replaced(unet: Any) -> bool:
    """Whether somebody has put another ``forward`` in place; hooks that are gone leave the original there."""
    forward = vars(unet).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(unet).forward


def execution_device(pipe: Any) -> torch.device:
    """Where the UNet computes, which is not where its weights are while they are offloaded."""
    unet = pipe.unet
    if any(hasattr(part, hook) for part in unet.modules() for hook in ("_hf_hook", "_diffusers_hook")):
        return torch.device(pipe._execution_device)
    device: torch.device = unet.device
    return device


@contextmanager
def offloaded_again(pipe: Any) -> Iterator[None]:
    """Offload in the end what a call has brought, as diffusers' own pipelines do."""
    try:
        yield
    finally:
        if getattr(pipe, "_all_hooks", None):
            pipe.maybe_free_model_hooks()


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Run modules in evaluation mode and put back the mode of each part afterwards."""
    training = {part: part.training for module in modules if module is not None for part in module.modules()}
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part, mode in training.items():
            part.training = mode
