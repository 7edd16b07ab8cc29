"""Samplers of a job: whether its settings go together, and which of the method's steps they leave out. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.errors import JobError, Problem
from consistory_ray.guards.sampling import DISTILLED_SAMPLERS, sampling_problems
from consistory_ray.settings import MethodSettings


def refuse_sampling(settings: MethodSettings) -> None:
    """What a job and its model's own settings file say together has to go together.

    Raises:
        JobError: naming every setting that does not.
    """
    if found := sampling_problems(vars(settings)):
        problems = [Problem(f"settings.{item.path}", item.value, item.fix) for item in found]
        raise JobError("the job cannot be planned: settings of the sampler do not go together", problems)


def is_for_few_steps(settings: MethodSettings) -> bool:
    """Whether they are of a model that was distilled, for which few steps and no guidance are right."""
    return settings.scheduler in (*DISTILLED_SAMPLERS, "model") or settings.timesteps is not None


def sampling_advice(settings: MethodSettings) -> Iterator[tuple[str, Any, str]]:
    """Parts of the method that find no step at their noise levels: name of the setting, value, why."""
    plan = StepPlan.from_settings(settings)
    reuse, window = settings.reuse_deep, settings.injection_window
    if notice := plan.without_injection(settings):
        yield "injection_window", window, notice
    start = next((step for step in range(plan.steps) if step not in plan.full_calls), plan.steps)
    if reuse is not None and reuse[1] > 1 and plan.injected and start <= plan.injected[-1]:
        why = f"calls that reuse deep features inject nothing: begin where injection ends, at {window[1]:.2f}, or later"
        yield "reuse_deep", reuse, why
