"""Which sampler makes the steps: those of diffusers, on the noise schedule of the model's own scheduler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from consistory_ray.consistory.method.latents import RANDOM, SchedulerSteps, draws, kept_signal
from consistory_ray.consistory.method.noise_levels import is_reference, leading_timesteps, level_of
from consistory_ray.errors import InputError, Problem
from consistory_ray.settings import MethodSettings

_SAMPLERS: Mapping[str, tuple[Any, Mapping[str, object]]] = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {}),
    "tcd": (TCDScheduler, {}),
}
_SPACED = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
_NO_PICTURES = (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler)
"""Samplers that do not know networks which predict the picture itself."""
_NEAR = 2.0  # timesteps: how far rounding and offsets put them apart


class TimestepDDIM(DDIMScheduler):  # type: ignore[misc,unused-ignore]
    """DDIM through timesteps that need not be evenly spaced: each step goes to the next of them."""

    def set_timesteps(
        self, num_inference_steps: int, device: Any = None, timesteps: Sequence[int] | None = None
    ) -> None:
        """Evenly spaced ones, or those that are given."""
        super().set_timesteps(num_inference_steps, device=device)
        if timesteps is not None:
            self.timesteps = torch.tensor(timesteps, dtype=torch.int64, device=device)
        self._following = [*self.timesteps.tolist()[1:], -1]

    def step(
        self,
        model_output: Any,
        timestep: Any,
        sample: Any,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Any = None,
        variance_noise: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """See ``DDIMScheduler``, which takes the next timestep to be ``num_train // num_inference_steps`` below."""
        following = next(each for each in self._following if each < int(timestep))
        trained: int = self.config["num_train_timesteps"]
        self.num_inference_steps: Any = Fraction(trained, int(timestep) - following)
        drawn = generator, variance_noise, return_dict
        return super().step(model_output, int(timestep), sample, eta, use_clipped_model_output, *drawn)


def model_schedule(own: Any, settings: MethodSettings, device: torch.device) -> SchedulerSteps:
    """The steps that settings ask for, at their beginning.

    Args:
        own: the model's scheduler, which is left as it is.
        settings: the settings.
        device: where the network computes.

    Raises:
        InputError: this sampler cannot do that, or cannot be had for this model.
    """
    scheduler = _scheduler(own, settings, device)
    return SchedulerSteps(scheduler, _levels(scheduler, settings), settings.eta)


def _scheduler(own: Any, settings: MethodSettings, device: torch.device) -> Any:
    if settings.scheduler == "ddim" and settings.timesteps is None and settings.timestep_spacing is None:
        return ddim_scheduler(own.config, settings.num_inference_steps, device)
    scheduler = _built(own, settings)
    if isinstance(scheduler, _NO_PICTURES) and scheduler.config.prediction_type == "sample":
        fix = "use ddim or dpmpp_2m: this one does not know networks that predict the picture itself"
        raise InputError("this sampler does not fit the model", [Problem("scheduler", settings.scheduler, fix)])
    try:
        _set_timesteps(scheduler, settings, device)
    except (ValueError, NotImplementedError, AssertionError) as error:
        problem = Problem("scheduler", f"{settings.scheduler} ({type(scheduler).__name__})", str(error)[:300])
        raise InputError("the sampler cannot make these steps", [problem]) from error
    expected, order = settings.num_inference_steps, getattr(scheduler, "order", 1)
    if order != 1 or len(scheduler.timesteps) != expected:
        fix = f"it calls the network {len(scheduler.timesteps)} times in {expected} steps: use another sampler"
        problem = Problem("scheduler", f"{settings.scheduler} ({type(scheduler).__name__})", fix)
        raise InputError("this sampler makes more than one call a step", [problem])
    if any(part in type(scheduler).__name__ for part in RANDOM) and not _lets_noise_be_given(scheduler):
        fix = (
            "use dpmpp_2m_sde: this one draws one noise for the whole batch, pictures would depend on their neighbours"
        )
        raise InputError("this sampler cannot be used", [Problem("scheduler", type(scheduler).__name__, fix)])
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


def _lets_noise_be_given(scheduler: Any) -> bool:
    return bool({"generator", "variance_noise"} & inspect.signature(scheduler.step).parameters.keys())


def _built(own: Any, settings: MethodSettings) -> Any:
    """A scheduler of the class and the configuration that settings ask for."""
    changes: dict[str, object] = {}
    if settings.timestep_spacing is not None:
        changes["timestep_spacing"] = settings.timestep_spacing
    if settings.scheduler != "model" or settings.sigma_schedule is not None or settings.timesteps is not None:
        changes |= {name: kind == settings.sigma_schedule for kind, name in _SPACED.items()}
    if settings.scheduler == "ddim" or (settings.scheduler == "model" and type(own) is DDIMScheduler):
        scheduler = TimestepDDIM if settings.timesteps is not None else DDIMScheduler
        unset = {key: value for key, value in _DDIM_UNSET.items() if key not in own.config}
        return scheduler.from_config(own.config, **{**unset, **_accepted(scheduler, changes)})
    if settings.scheduler == "model":
        return type(own).from_config(own.config, **_accepted(type(own), changes)) if changes else copy.deepcopy(own)
    kind, fixed = _SAMPLERS[settings.scheduler]
    known = inspect.signature(kind.__init__).parameters
    config = {name: value for name, value in own.config.items() if name in known or name.startswith("_")}
    return kind.from_config(config, **_accepted(kind, changes), **fixed)


def _accepted(kind: Any, changes: Mapping[str, object]) -> dict[str, object]:
    """Those changes that a class has settings for.

    Raises:
        InputError: it lacks one that is to be switched on.
    """
    known = inspect.signature(kind.__init__).parameters
    lacking = {name for name, value in changes.items() if name not in known and value is not False}
    if lacking:
        fix = f"leave it out: {kind.__name__} has no such thing"
        named = {"timestep_spacing" if name == "timestep_spacing" else "sigma_schedule" for name in lacking}
        problems = [Problem(name, str(changes.get(name, "")), fix) for name in sorted(named)]
        raise InputError("the sampler cannot make these steps", problems)
    return {name: value for name, value in changes.items() if name in known}


def _set_timesteps(scheduler: Any, settings: MethodSettings, device: torch.device) -> None:
    if settings.timesteps is None:
        scheduler.set_timesteps(settings.num_inference_steps, device=device)
        return
    given, takes = list(settings.timesteps), inspect.signature(scheduler.set_timesteps).parameters
    if isinstance(scheduler, TimestepDDIM):
        scheduler.set_timesteps(len(given), device=device, timesteps=given)
    elif "timesteps" in takes:
        # all timesteps are as good as those of the distillation, of which somebody knows who names them
        known = {"original_inference_steps": scheduler.config.num_train_timesteps}
        known = known if "original_inference_steps" in takes else {}
        scheduler.set_timesteps(timesteps=given, device=device, **known)
    elif hasattr(scheduler, "sigmas") and hasattr(scheduler, "_step_index"):
        scheduler.set_timesteps(len(given), device=device)
        table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5
        sigmas = np.interp(given, np.arange(len(table)), table.numpy()).astype(np.float32)
        scheduler.sigmas = torch.cat([torch.from_numpy(sigmas), scheduler.sigmas[-1:]])
        scheduler.timesteps = torch.tensor(given, dtype=scheduler.timesteps.dtype, device=device)
    else:
        raise ValueError("it takes no timesteps: leave them out")


def _levels(scheduler: Any, settings: MethodSettings) -> tuple[float, ...] | None:
    """See :class:`~consistory_ray.consistory.method.latents.Schedule`: DDIM as it was is the reference."""
    levels = tuple(round(level_of(kept), 2) for kept in kept_signal(scheduler))  # what is equally near stays so
    reference = leading_timesteps(len(levels))
    near = all(abs(level - timestep) <= _NEAR for level, timestep in zip(levels, reference, strict=True))
    return None if near and is_reference(settings) and type(scheduler) is DDIMScheduler else levels


_DDIM_UNSET = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}


def ddim_scheduler(config: Mapping[str, object], steps: int, device: torch.device) -> DDIMScheduler:
    """DDIM on the noise schedule and prediction type of a model's own scheduler.

    Latents are never clipped unless the model's configuration says so: schedulers other than DDIM leave that out.
    """
    unset = {key: value for key, value in _DDIM_UNSET.items() if key not in config}
    scheduler: DDIMScheduler = DDIMScheduler.from_config(config, **unset)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def scheduler_notice(scheduler: Any) -> str:
    """What somebody should know whose model has this scheduler and is sampled by DDIM; empty for nothing.

    Nothing need be told of schedulers that go through the same noise levels without drawing noise: DDIM itself, Euler,
    Heun and others solve the same equation and differ in how exactly.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if draws(scheduler, 0.0) or name in ("LCMScheduler", "TCDScheduler"):
        why = "draws new noise at every step" if name != "TCDScheduler" else "is for distilled models"
    elif any(config.get(flag) for flag in _SPACED.values()):
        why = "goes through other noise levels"
    else:
        return ""
    return (
        "unless the settings name another scheduler, pictures are sampled by DDIM on the noise schedule of the model, "
        f"whose own, {name}, {why}: scheduler: model takes it"
    )
