"""Whether a job's ControlNets are there, fit its model and know the hints they get, told before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from consistory_ray.consistory.models.controlnet_checks import config_of, controlnet_problems, mode_names, refuse_unfit
from consistory_ray.errors import CheckpointError, InputError, Problem
from consistory_ray.jobs.model_names import is_hub_id
from consistory_ray.plan.model_files import model_config
from consistory_ray.settings import BUNDLED_MODEL, model_path

if TYPE_CHECKING:
    from consistory_ray.jobs.controls import Control
    from consistory_ray.jobs.job import RenderJob


def check_controlnets(job: RenderJob) -> None:
    """Refuse ControlNets that cannot be used, as far as files on this machine tell.

    Raises:
        CheckpointError: one is not there, is no ControlNet, or is one for another architecture than the job's model.
        InputError: a hint's mode is none of its ControlNet's.
    """
    unet = model_config(job.model, "unet")
    configs: list[Any] = []
    problems: list[Problem] = []
    for index, net in enumerate(job.controlnets):
        where = f"controlnets[{index}]"
        if net.model != BUNDLED_MODEL and not os.path.exists(model_path(net.model)) and not is_hub_id(net.model):
            fix = f'there is no such file or folder here, check the path; or give "{BUNDLED_MODEL}" or a hub id'
            raise CheckpointError("a ControlNet cannot be used", [Problem(where, ascii(net.model)[1:-1], fix)])
        configs.append(config_of(where, net.model, unet))
        if unet is not None and configs[-1] is not None:
            problems += controlnet_problems(where, configs[-1], unet, model_config(job.model, "vae"))
    refuse_unfit(problems)
    names = [net.called for net in job.controlnets]
    wrong: dict[tuple[Any, Any], Problem] = {}
    for where, control in _controls(job):
        config = configs[names.index(control.net) if isinstance(control.net, str) else control.net]
        if config is not None and (fix := _mode_problem(control.mode, mode_names(config))):
            wrong.setdefault((control.net, control.mode), Problem(f"{where}.mode", repr(control.mode), fix))
    if wrong:
        raise InputError("some hints cannot be used", list(wrong.values()))


def _mode_problem(mode: int | str | None, known: tuple[str, ...]) -> str:
    if not known:
        return "" if mode is None else "leave it out, this ControlNet is for one kind of hint"
    fine = mode in known if isinstance(mode, str) else mode is not None and mode < len(known)
    return "" if fine else f"write one of {', '.join(known)}: this ControlNet tells kinds of hints apart"


def _controls(job: RenderJob) -> Iterator[tuple[str, Control]]:
    """Every hint of a job and where it stands."""
    for number, subject in enumerate(job.subjects):
        for name in ("anchors", "pictures", "scenes"):
            for index, entry in enumerate(getattr(subject, name, ())):
                for place, control in enumerate(entry.control):
                    yield f"subjects[{number}].{name}[{index}].control[{place}]", control
        for index, pose in enumerate(subject.poses):
            yield f"subjects[{number}].poses[{index}]", pose
