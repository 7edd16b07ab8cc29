"""Whose noise levels are sampled: DDIM is the only sampler, on the noise schedule of the model's own scheduler."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

_RANDOM = ("Ancestral", "SDE", "LCM", "TCD", "DDPM", "SASolver")
"""Parts of the names of samplers that draw new noise at every step, which DDIM does not."""
_STEPS = 20
_NEAR = 2.0  # timesteps: how far rounding and offsets put them apart


def ddim_scheduler(config: Mapping[str, object], steps: int, device: torch.device) -> DDIMScheduler:
    """DDIM on the noise schedule and prediction type of a model's own scheduler.

    Latents are never clipped unless the model's configuration says so: schedulers other than DDIM leave that out.
    """
    unset = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    scheduler: DDIMScheduler = DDIMScheduler.from_config(
        config, **{key: value for key, value in unset.items() if key not in config}
    )
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def scheduler_notice(scheduler: Any) -> str:
    """What somebody should know whose pipeline has this scheduler, since it is DDIM that samples; empty for nothing.

    Nothing need be told of schedulers that go through the same noise levels without drawing noise: DDIM itself, Euler,
    Heun and others solve the same equation and differ in how exactly.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if any(part in name for part in _RANDOM) or str(config.get("algorithm_type", "")).startswith("sde"):
        why = "draws new noise at every step"
    elif not set(_compatibles(scheduler)) & {"DDIMScheduler"} and not isinstance(scheduler, DDIMScheduler):
        why = "is no relative of DDIM"
    elif _other_levels(scheduler):
        why = "goes through other noise levels"
    else:
        return ""
    return (
        f"pictures are sampled by DDIM on the noise schedule of the model: its scheduler, {name}, {why} and is not "
        "used; other schedulers do not work yet"
    )


def _compatibles(scheduler: Any) -> list[str]:
    return list(getattr(type(scheduler), "_compatibles", ()))


def _other_levels(scheduler: Any) -> bool:
    """Whether it visits other timesteps than DDIM would on its configuration, asked of a copy."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = copy.deepcopy(scheduler)
            theirs.set_timesteps(_STEPS)
            visited = np.unique(np.asarray(theirs.timesteps, dtype=np.float64))
            ours = ddim_scheduler(scheduler.config, _STEPS, torch.device("cpu")).timesteps
            expected = np.unique(np.asarray(ours, dtype=np.float64))
    except Exception:  # a scheduler of somebody's own, with other arguments
        return True
    return visited.shape != expected.shape or bool(np.abs(visited - expected).max() > _NEAR)
