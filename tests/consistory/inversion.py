"""The inversion that given pictures do without: edit-friendly DDPM inversion (arXiv 2304.06140).

As the paper's appendix E has it: every x_t is drawn independently of the others, then the noise z_t is solved for that
makes DDPM go through them with the picture's own words. Written out, with the network of diffusers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from consistory_ray.consistory.method.latents import Noise

Predict = Callable[[Tensor, int], Tensor]
"""The model's guided prediction of v, or of the noise, at latents and a timestep."""


@dataclass
class DDPM:
    """Stochastic steps through given timesteps, as a Schedule for the package's sampler once ``z`` are known.

    Attributes:
        alphas: cumulative products by timestep.
        final: that after the last step.
        timesteps: falling.
        kind: ``epsilon`` or ``v_prediction``.
        z: noise of each step.
    """

    alphas: Tensor
    final: float
    timesteps: Sequence[int]
    kind: str
    z: list[Tensor] = field(default_factory=list)
    noise_scale: float = 1.0
    levels: Sequence[float] | None = None

    def before_and_after(self, step: int) -> tuple[float, float]:
        """abar before and after a step."""
        following = self.final if step + 1 == len(self.timesteps) else float(self.alphas[self.timesteps[step + 1]])
        return float(self.alphas[self.timesteps[step]]), following

    def noised(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        before, _ = self.before_and_after(step)
        return before**0.5 * clean + (1 - before) ** 0.5 * noise

    def mean(self, prediction: Tensor, latents: Tensor, step: int) -> tuple[Tensor, float]:
        """mu_t and sigma_t."""
        before, after = self.before_and_after(step)
        if self.kind == "v_prediction":
            clean = before**0.5 * latents - (1 - before) ** 0.5 * prediction
            noise = before**0.5 * prediction + (1 - before) ** 0.5 * latents
        else:
            clean, noise = (latents - (1 - before) ** 0.5 * prediction) / before**0.5, prediction
        variance = (1 - after) / (1 - before) * (1 - before / after)
        return after**0.5 * clean + (1 - after - variance) ** 0.5 * noise, variance**0.5

    def invert(self, clean: Tensor, noise: Noise, predict: Predict) -> list[Tensor]:
        """Solve for z; returns x_t before each step, and what is left after the last."""
        path = [self.noised(clean, noise(step), step) for step in range(len(self.timesteps))] + [clean]
        for step, timestep in enumerate(self.timesteps):
            mean, sigma = self.mean(predict(path[step], timestep), path[step], step)
            self.z.append((path[step + 1] - mean) / sigma if sigma else torch.zeros_like(mean))
            path[step + 1] = mean + sigma * self.z[step]
        return path

    def replay(self, latents: Tensor, predict: Predict) -> list[Tensor]:
        """From x_T with the z that were found; x_t before each step, and the picture."""
        path = [latents]
        for step, timestep in enumerate(self.timesteps):
            path.append(self.advance(predict(path[step], timestep), path[step], step))
        return path

    def model_input(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return latents, torch.tensor(self.timesteps[step])

    def advance(self, prediction: Tensor, latents: Tensor, step: int, noise: Noise | None = None) -> Tensor:
        mean, sigma = self.mean(prediction, latents, step)
        return mean + sigma * self.z[step]

    def fork(self) -> DDPM:
        return self
