"""Two seams of the denoising loop: where the latents of the next step come from, and where noise comes from."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """Noise of a batch. An image's depends on its seed and the step alone: not on its neighbours, the device, the pass,
    or how often it is drawn."""

    def __call__(self, step: int | None) -> Tensor:
        """That of a step, or the initial one for None: [images, channels, height, width] float32 on the CPU."""
        ...

    def generators(self, step: int) -> list[torch.Generator]:
        """One for each image, on the CPU, whose first draw is the noise of a step."""
        ...


@dataclass(frozen=True)
class SeededNoise:
    """See :class:`Noise`.

    Attributes:
        seeds: one for each image.
        initial: the initial noise, which gives the shape.
    """

    seeds: Sequence[int]
    initial: Tensor

    def __call__(self, step: int | None) -> Tensor:
        """See :class:`Noise`."""
        if step is None:
            return self.initial
        return torch.stack([seeded_noise(seed, tuple(self.initial.shape[1:]), step) for seed in self.seeds])

    def generators(self, step: int) -> list[torch.Generator]:
        """See :class:`Noise`."""
        return [step_generator(seed, step) for seed in self.seeds]


class Schedule(Protocol):
    """Where a step's latents come from: a scheduler that integrates the prediction, or a path that is given.

    It belongs to a pass's state and forks with it, so that it may remember earlier predictions. Steps are advanced one
    after the other, from the first or from the fork.
    """

    timesteps: Sequence[float]
    """The timestep of each step, falling; with fractions where noise levels are spaced by themselves."""
    levels: Sequence[float] | None
    """How noisy each step is, as the timestep at which SDXL's noise schedule is as noisy, with fractions; None where
    windows of steps are shares of their number: of the reference schedule, and of models that know no such scale."""
    noise_scale: float
    """What initial noise is multiplied with."""

    def model_input(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What the network is shown at a step, like the latents, and its timestep, a tensor without dimensions.

        Nothing is remembered of it: steps may be asked for in any order.
        """
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
    """A :class:`Schedule` made of a scheduler with diffusers' interface, which makes one call of the network a step.

    Latents are in the scheduler's own scaling: sqrt(kept) x0 + sqrt(1 - kept) epsilon, or times 1 / sqrt(kept) where it
    counts in sigmas. What the network is shown, noised pictures and jumps are computed here, since schedulers know only
    the step at which they are.

    Args:
        scheduler: with its timesteps set; not shared with anybody.
        levels: see :class:`Schedule`.
        eta: how much new noise it adds, of those that take that.
    """

    def __init__(self, scheduler: Any, levels: Sequence[float] | None = None, eta: float = 0.0) -> None:
        self.scheduler = scheduler
        self.levels = levels
        self.eta = eta
        self.timesteps: Sequence[float] = [number(timestep) for timestep in scheduler.timesteps.tolist()]
        self.noise_scale = float(scheduler.init_noise_sigma)
        self.kept = kept_signal(scheduler)
        self._shrinks = shrinks(scheduler)

    def model_input(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`Schedule`."""
        return latents * self.kept[step] ** 0.5 if self._shrinks else latents, self.scheduler.timesteps[step]

    def advance(self, prediction: Tensor, latents: Tensor, step: int, noise: Noise) -> Tensor:
        """See :class:`Schedule`."""
        takes = inspect.signature(self.scheduler.step).parameters
        drawn: dict[str, Any] = {}
        if "eta" in takes:
            drawn["eta"] = self.eta
        if draws(self.scheduler, self.eta):
            if "variance_noise" in takes:
                drawn["variance_noise"] = noise(step).to(latents.device)
            else:
                drawn["generator"] = noise.generators(step)
        if hasattr(self.scheduler, "is_scale_input_called"):
            self.scheduler.is_scale_input_called = True  # it was done here
        timestep = self.timesteps[step]
        at = timestep if self._by_number else self.scheduler.timesteps[step]
        latents = self.scheduler.step(prediction, at, latents, return_dict=False, **drawn)[0]
        return latents

    @property
    def _by_number(self) -> bool:
        """Whether it looks its noise level up by the timestep, which then needs no wait for the device."""
        return not hasattr(self.scheduler, "_step_index")

    def noised(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """See :class:`Schedule`."""
        if self._by_number:
            noised: Tensor = self.scheduler.add_noise(clean, noise, self.scheduler.timesteps[step : step + 1])
            return noised
        return self._scaled(clean, noise, self.kept[step])

    def jump(self, prediction: Tensor, latents: Tensor, step: int, ahead: int) -> Tensor:
        """See :class:`Schedule`."""
        shown = self.model_input(latents, step)[0]
        clean, noise = clean_and_noise(prediction, shown, self.kept[step], self.scheduler.config.prediction_type)
        return self._scaled(clean, noise, self.kept[ahead])

    def _scaled(self, clean: Tensor, noise: Tensor, kept: float) -> Tensor:
        mixed: Tensor = kept**0.5 * clean + (1 - kept) ** 0.5 * noise
        return mixed / kept**0.5 if self._shrinks else mixed

    def fork(self) -> SchedulerSteps:
        """See :class:`Schedule`."""
        forked = copy.copy(self)
        forked.scheduler = copy.deepcopy(self.scheduler)
        return forked


def number(timestep: float) -> float:
    """A timestep as it is printed: whole ones without a fraction."""
    return int(timestep) if timestep == int(timestep) else float(timestep)


def kept_signal(scheduler: Any) -> list[float]:
    """The share of the signal in the variance before each step, the cumulative product of alphas.

    Args:
        scheduler: of diffusers, with its timesteps set, and noise levels of its own (``sigmas``) or those of a table.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None:
        return [1 / (1 + float(sigma) ** 2) for sigma in sigmas[: len(scheduler.timesteps)].tolist()]
    table = scheduler.alphas_cumprod.tolist()  # an offset may lead beyond its end where there are as many steps
    return [table[min(int(timestep), len(table) - 1)] for timestep in scheduler.timesteps.tolist()]


def shrinks(scheduler: Any) -> bool:
    """Whether the scheduler's latents are x0 + sigma epsilon, which the network is shown divided by sqrt(1 + sigma**2).

    Told by what a copy makes of a number.
    """
    trial = copy.deepcopy(scheduler)
    return bool((trial.scale_model_input(torch.ones(1), trial.timesteps[0]) != 1).any())


def draws(scheduler: Any, eta: float) -> bool:
    """Whether a scheduler adds new noise at its steps."""
    name, takes = type(scheduler).__name__, inspect.signature(scheduler.step).parameters
    if "eta" in takes:
        return eta > 0
    if "algorithm_type" in scheduler.config:
        return str(scheduler.config.algorithm_type).startswith("sde")
    return "generator" in takes and any(part in name for part in RANDOM)


RANDOM = ("Ancestral", "SDE", "LCM", "TCD", "DDPM", "SASolver")
"""Parts of the names of samplers that draw new noise at every step."""


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
    generator = torch.Generator().manual_seed(seed) if step is None else step_generator(seed, step)
    return torch.randn(shape, generator=generator)


def step_generator(seed: int, step: int) -> torch.Generator:
    """What draws one image's noise of a step."""
    digest = hashlib.sha256(f"noise/{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
