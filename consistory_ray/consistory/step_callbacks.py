"""``callback_on_step_end``: somebody sees the latents after each step, may put others in their place, or stop the call.

What is handed to it is as in diffusers' own pipelines, so that callbacks written for those work: the diffusers pipeline
with its ``num_timesteps``, ``guidance_scale`` and ``interrupt``, the step, the timestep, and the tensors by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from consistory_ray.consistory.method.denoiser import StepEnd
from consistory_ray.errors import AssetError, InputError, Problem
from consistory_ray.settings import MethodSettings

OnStepEnd: TypeAlias = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]
"""``callback(pipe, step, timestep, callback_kwargs)``, which returns ``callback_kwargs``; see diffusers."""

LATENTS = "latents"
_ARGUMENT, _INPUTS = "callback_on_step_end", "callback_on_step_end_tensor_inputs"
_GUIDANCE = "leave it out: guidance_interval=(0.0, 0.4) of the settings ends guidance after 40 % of the steps"


class Interrupted(AssetError):
    """A callback has stopped the call: ``pipe._interrupt`` was set."""


@dataclass(frozen=True)
class StepCallback:
    """A callback that can be called.

    Attributes:
        pipe: what it is called with.
        call: the callback.
        inputs: what it is shown.
    """

    pipe: Any
    call: OnStepEnd
    inputs: tuple[str, ...]

    def after_step(self, images: int) -> StepEnd:
        """What is called with the latents of a batch of which only the first images are pictures, not copies."""

        def ended(step: int, timestep: float, latents: Tensor) -> Tensor:
            shown = latents[:images].clone()  # its own, which it may change in place, as in diffusers
            changed = self._called(step, torch.tensor(timestep, device=latents.device), shown)
            return changed if len(latents) == images else torch.cat([changed, latents[images:]])

        return ended

    def _called(self, step: int, timestep: Tensor, latents: Tensor) -> Tensor:
        scale = self.pipe._guidance_scale
        returned = self.call(self.pipe, step, timestep, dict.fromkeys(self.inputs, latents))
        if not isinstance(returned, Mapping):
            raise _unusable("returned value", type(returned).__name__, "return callback_kwargs, a dict")
        if others := sorted(str(name) for name in returned.keys() - {LATENTS}):
            raise _unusable("returned value", ", ".join(others), "leave these out: only latents can be changed")
        if self.pipe._guidance_scale != scale:
            raise _unusable("pipe._guidance_scale", repr(self.pipe._guidance_scale), _GUIDANCE)
        changed = returned.get(LATENTS, latents)
        if not isinstance(changed, Tensor) or changed.shape != latents.shape:
            found = str(tuple(changed.shape)) if isinstance(changed, Tensor) else type(changed).__name__
            raise _unusable("returned latents", found, f"return a tensor of shape {tuple(latents.shape)}")
        if self.pipe._interrupt:
            raise Interrupted(f"{_ARGUMENT} stopped the call after step {step}")
        return changed.to(latents)

    @contextmanager
    def in_use(self, settings: MethodSettings) -> Iterator[None]:
        """The pipeline has what callbacks look at and change, and is as it was afterwards."""
        told = {
            "_num_timesteps": len(settings.timesteps or ()) or settings.num_inference_steps,
            "_guidance_scale": settings.guidance_scale,
            "_interrupt": False,
        }
        before = {name: vars(self.pipe)[name] for name in told if name in vars(self.pipe)}
        try:
            for name, value in told.items():
                setattr(self.pipe, name, value)
            yield
        finally:
            for name in told:
                if name in before:
                    setattr(self.pipe, name, before[name])
                else:
                    delattr(self.pipe, name)


def step_callback(pipe: Any, callback: OnStepEnd | None, inputs: Sequence[str] = (LATENTS,)) -> StepCallback | None:
    """A caller's callback, checked; None for none.

    Args:
        pipe: what it will be called with.
        callback: a function, or one or several callbacks of diffusers, which know their inputs themselves.
        inputs: names of the tensors that it is shown.

    Raises:
        InputError: it cannot be called, or is shown other tensors than latents.
    """
    if callback is None:
        return None
    if not callable(callback):
        raise _unusable(_ARGUMENT, repr(callback)[:100], "give a function of (pipe, step, timestep, callback_kwargs)")
    given: Any = callback
    of_diffusers = isinstance(given, (PipelineCallback, MultiPipelineCallbacks))
    if of_diffusers:
        inputs = given.tensor_inputs
    if isinstance(inputs, str):
        raise _unusable(_INPUTS, repr(inputs), f"give a list: [{inputs!r}]")
    if others := [str(name) for name in inputs if name != LATENTS]:
        name = _names(callback) if of_diffusers else _INPUTS
        fix = _GUIDANCE if "CFGCutoff" in name else "only latents can be shown and changed"
        raise _unusable(name, ", ".join(others), fix)
    return StepCallback(pipe, callback, tuple(dict.fromkeys(inputs)))


def _names(callback: Any) -> str:
    """Of a callback of diffusers, or of several."""
    return ", ".join(type(one).__name__ for one in getattr(callback, "callbacks", [callback]))


def _unusable(path: str, value: str, fix: str) -> InputError:
    path = path if path.startswith(_ARGUMENT) else f"{_ARGUMENT}: {path}"
    return InputError("the callback cannot be used", [Problem(path, value, fix)])
