"""Which settings of samplers go together, from wherever they come. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consistory_ray.errors import Problem

SIGMA_SAMPLERS = ("euler", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
"""Whose noise levels can be spaced by themselves."""
DISTILLED_SAMPLERS = ("lcm", "tcd")
"""Whose timesteps are some of the 50 that consistency models are distilled at."""
MOST_DISTILLED_STEPS = 50
NOISY_SAMPLERS = ("ddim", "tcd")
"""Which add as much noise as ``eta`` says."""


def sampling_problems(values: Mapping[str, Any]) -> list[Problem]:
    """What settings of samplers say against each other.

    Args:
        values: settings by name, each of them in its range; those that are left out are as they are by default. A
            model's own scheduler is known with the model only, so that nothing is said of it here.
    """
    scheduler, sigmas = values.get("scheduler", "ddim"), values.get("sigma_schedule")
    spacing, timesteps = values.get("timestep_spacing"), values.get("timesteps")
    steps = values.get("num_inference_steps") or 1
    problems = []
    if sigmas is not None and scheduler not in (*SIGMA_SAMPLERS, "model"):
        fix = f"leave it out, {scheduler} has no such thing, or set scheduler to one of {', '.join(SIGMA_SAMPLERS)}"
        problems.append(Problem("sigma_schedule", repr(sigmas), fix))
    if sigmas is not None and timesteps is not None:
        problems.append(Problem("sigma_schedule", repr(sigmas), "leave it out: timesteps says which noise levels"))
    if spacing is not None and timesteps is not None:
        problems.append(Problem("timestep_spacing", repr(spacing), "leave it out: timesteps says which there are"))
    elif spacing is not None and sigmas is not None:
        problems.append(Problem("timestep_spacing", repr(spacing), "leave it out: sigma_schedule spaces the steps"))
    if spacing is not None and scheduler in DISTILLED_SAMPLERS:
        fix = f"leave it out: {scheduler} has a spacing of its own; timesteps can say which there are"
        problems.append(Problem("timestep_spacing", repr(spacing), fix))
    if values.get("eta") and scheduler not in (*NOISY_SAMPLERS, "model"):
        fix = f"leave it out, {scheduler} has no such thing, or set scheduler to one of {', '.join(NOISY_SAMPLERS)}"
        problems.append(Problem("eta", repr(values["eta"]), fix))
    if scheduler in DISTILLED_SAMPLERS and timesteps is None and steps > MOST_DISTILLED_STEPS:
        fix = f"must be at most {MOST_DISTILLED_STEPS} with {scheduler}, which is for few steps"
        problems.append(Problem("num_inference_steps", str(steps), fix))
    return problems
