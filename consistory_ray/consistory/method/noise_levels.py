"""How noisy a step is, on one scale for every schedule: where windows of steps lie. Pure: no torch.

A noise level is written as the timestep at which SDXL's own noise schedule is equally noisy (its log signal-to-noise
ratio is the same), and so as a position among the 50 steps of the reference schedule: DDIM with leading spacing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

from consistory_ray.guards.sampling import DISTILLED_SAMPLERS, MOST_DISTILLED_STEPS
from consistory_ray.settings import MethodSettings

TIMESTEPS = 1000
REFERENCE_STEPS = 50
_SPACING = TIMESTEPS // REFERENCE_STEPS
_FIRST = TIMESTEPS - _SPACING + 1
_BETAS = 0.00085, 0.012
_MULTISTEP = ("dpmpp_2m", "dpmpp_2m_sde", "unipc")
_RHO = 7.0
"""Of Karras et al. (arXiv 2206.00364), equation 5."""


@cache
def reference_kept() -> tuple[float, ...]:
    """Cumulative products of alphas of SDXL's noise schedule, by timestep."""
    first, last = (beta**0.5 for beta in _BETAS)
    kept, product = [], 1.0
    for timestep in range(TIMESTEPS):
        product *= 1 - (first + (last - first) * timestep / (TIMESTEPS - 1)) ** 2
        kept.append(product)
    return tuple(kept)


@cache
def _reference_noise() -> tuple[float, ...]:
    """Minus the log signal-to-noise ratio by timestep, rising."""
    return tuple(math.log((1 - kept) / kept) for kept in reference_kept())


def level_of(kept: float) -> float:
    """The timestep, from 0 to 999 with fractions, at which SDXL's noise schedule is as noisy.

    Args:
        kept: the cumulative product of alphas: the share of the signal in the variance; what lies outside the noise
            schedule is as its nearer end, no signal at all and no noise at all too.
    """
    noise = _reference_noise()
    if kept <= 0:
        return TIMESTEPS - 1.0
    if kept >= 1:
        return 0.0
    value = math.log((1 - kept) / kept)
    above = bisect_left(noise, value)
    if above == 0:
        return 0.0
    if above == TIMESTEPS:
        return TIMESTEPS - 1.0
    below = above - 1
    return below + (value - noise[below]) / (noise[above] - noise[below])


def position_of(level: float) -> int:
    """The step of the reference schedule that is nearest to a noise level, from 0 to 49."""
    position = round((_FIRST - level) / _SPACING, 3)  # which side of a half it is on is not for rounding to say
    return min(max(math.floor(position + 0.5), 0), REFERENCE_STEPS - 1)


def timestep_at(position: int) -> int:
    """The timestep of a step of the reference schedule."""
    return _FIRST - _SPACING * position


def leading_timesteps(steps: int) -> list[int]:
    """Those of the reference schedule with so many steps."""
    return [step * (TIMESTEPS // steps) + 1 for step in reversed(range(steps))]


def is_reference(settings: MethodSettings) -> bool:
    """Whether windows are shares of the steps, as far as settings tell: DDIM as it was at any number of steps.

    What is asked of a model's own scheduler is known once the model is.
    """
    return (
        settings.scheduler in ("ddim", "model")
        and settings.timesteps is None
        and settings.sigma_schedule is None
        and settings.timestep_spacing in (None, "leading")
    )


def expected_levels(settings: MethodSettings) -> tuple[float, ...] | None:
    """Of a schedule on SDXL's noise schedule, near enough for estimates; None for the reference one."""
    if is_reference(settings):
        return None
    if settings.timesteps is not None:
        return tuple(float(timestep) for timestep in settings.timesteps)
    steps = settings.num_inference_steps
    if settings.scheduler in DISTILLED_SAMPLERS:
        offered = [(number + 1) * TIMESTEPS // MOST_DISTILLED_STEPS - 1.0 for number in range(MOST_DISTILLED_STEPS)]
        return tuple(offered[::-1][step * MOST_DISTILLED_STEPS // steps] for step in range(steps))
    spaced = _spaced(steps, settings.timestep_spacing or "leading", last=settings.scheduler not in _MULTISTEP)
    if settings.sigma_schedule is None:
        return tuple(spaced)
    # Euler's noise levels end where its timesteps do
    ends = (spaced[-1], spaced[0]) if settings.scheduler == "euler" else (0, TIMESTEPS - 1)
    low, high = (_sigma(round(timestep)) for timestep in ends)
    sigmas = _spaced_sigmas(steps, settings.sigma_schedule, low, high)
    return tuple(level_of(1 / (1 + sigma**2)) for sigma in sigmas)


def _spaced(steps: int, spacing: str, *, last: bool) -> list[float]:
    """Timesteps; multistep samplers leave out the last of one more."""
    if spacing == "trailing":
        return [round(TIMESTEPS - step * TIMESTEPS / steps) - 1.0 for step in range(steps)]
    count = steps if last else steps + 1
    if spacing == "linspace":
        return [(TIMESTEPS - 1) * (1 - step / max(count - 1, 1)) for step in range(steps)]
    return [float(timestep) for timestep in leading_timesteps(count)[:steps]]


def _sigma(timestep: int) -> float:
    kept = reference_kept()[timestep]
    return float(((1 - kept) / kept) ** 0.5)


def _spaced_sigmas(steps: int, kind: str, low: float, high: float) -> Sequence[float]:
    ramp = [step / max(steps - 1, 1) for step in range(steps)]
    if kind == "exponential":
        return [high * (low / high) ** share for share in ramp]
    return [(high ** (1 / _RHO) + share * (low ** (1 / _RHO) - high ** (1 / _RHO))) ** _RHO for share in ramp]
