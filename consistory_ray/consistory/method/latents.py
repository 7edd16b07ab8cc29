"""Two seams of the denoising loop: where the latents of the next step come from, and where noise comes from."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Noise: TypeAlias = Callable[[int | None], Tensor]
"""Noise of a batch at a step, or the initial noise for None: [images, channels, height, width] float32 on the CPU.

An image's noise depends on its seed and the step alone: not on its neighbours, the device, or how often it is drawn."""


class Schedule(Protocol):
    """Where a step's latents come from: a scheduler that integrates the prediction, or a path that is given.

    It belongs to a pass's state and forks with it, so that it may remember earlier predictions. Steps are advanced one
    after the other, from the first or from the fork.
    """

    timesteps: Sequence[int]
    """The timestep of each step, falling."""
    noise_scale: float
    """What initial noise is multiplied with."""

    def model_input(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What the network is shown at a step, like the latents, and its timestep, a tensor without dimensions."""
        ...

    def advance(self, prediction: Tensor, latents: Tensor, step: int, noise: Noise) -> Tensor:
        """Latents after a step, [images, channels, height, width] float32, from those before it and the prediction."""
        ...

    def noised(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """Latents of finished pictures as they would be before a step, with noise of variance one; shapes as above."""
        ...

    def jump(self, prediction: Tensor, latents: Tensor, step: int, ahead: int) -> Tensor:
        """Latents before a later step as the prediction at this one has it, straight by DDIM's formula."""
        ...

    def fork(self) -> Schedule:
        """A copy that goes its own way from here."""
        ...


class SchedulerSteps:
    """A :class:`Schedule` made of a deterministic scheduler with diffusers' interface.

    Args:
        scheduler: with its timesteps set; not shared with anybody.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.timesteps: Sequence[int] = [int(timestep) for timestep in scheduler.timesteps.tolist()]
        self.noise_scale = float(scheduler.init_noise_sigma)

    def model_input(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`Schedule`."""
        return self.scheduler.scale_model_input(latents, self.timesteps[step]), self.scheduler.timesteps[step]

    def advance(self, prediction: Tensor, latents: Tensor, step: int, noise: Noise) -> Tensor:
        """See :class:`Schedule`."""
        latents = self.scheduler.step(prediction, self.timesteps[step], latents, return_dict=False)[0]
        return latents

    def noised(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """See :class:`Schedule`."""
        noised: Tensor = self.scheduler.add_noise(clean, noise, self.scheduler.timesteps[step : step + 1])
        return noised

    def jump(self, prediction: Tensor, latents: Tensor, step: int, ahead: int) -> Tensor:
        """See :class:`Schedule`."""
        kept = self.scheduler.alphas_cumprod
        here, there = (float(kept[self.timesteps[number]]) for number in (step, ahead))
        clean, noise = clean_and_noise(prediction, latents, here, self.scheduler.config.prediction_type)
        jumped: Tensor = there**0.5 * clean + (1 - there) ** 0.5 * noise
        return jumped

    def fork(self) -> SchedulerSteps:
        """See :class:`Schedule`."""
        return SchedulerSteps(copy.deepcopy(self.scheduler))


def clean_and_noise(prediction: Tensor, latents: Tensor, kept: float, kind: str) -> tuple[Tensor, Tensor]:
    """What a model's prediction takes the latents to be made of: x0 and epsilon, shaped like them.

    Args:
        prediction: of the model.
        latents: sqrt(kept) x0 + sqrt(1 - kept) epsilon.
        kept: the cumulative product of alphas.
        kind: ``epsilon``, ``v_prediction`` or ``sample``, as schedulers of diffusers name them.

    Raises:
        ValueError: another kind.
    """
    signal, sigma = kept**0.5, (1 - kept) ** 0.5
    if kind == "epsilon":
        return (latents - sigma * prediction) / signal, prediction
    if kind == "v_prediction":
        return signal * latents - sigma * prediction, signal * prediction + sigma * latents
    if kind == "sample":
        return prediction, (latents - signal * prediction) / sigma
    raise ValueError(f"no formula for prediction type {kind!r}")


def seeded_noise(seed: int, shape: tuple[int, ...], step: int | None = None) -> Tensor:
    """One image's noise, float32 on the CPU: its initial noise, or that of a step."""
    if step is None:
        generator = torch.Generator().manual_seed(seed)
    else:
        digest = hashlib.sha256(f"noise/{seed}/{step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator)
