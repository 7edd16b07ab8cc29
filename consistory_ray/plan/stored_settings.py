"""Whether a job's settings can be had from the subjects that it takes up: told before any model is loaded. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from consistory_ray.consistory.method.steps import StepPlan, suffices
from consistory_ray.errors import JobError, Problem
from consistory_ray.guards.problems import shown
from consistory_ray.jobs.job import RenderJob
from consistory_ray.jobs.stored_caches import StoredCache
from consistory_ray.plan.loaded import Loaded, loading_differences
from consistory_ray.settings import PROFILES, SCENE_SETTINGS, MethodSettings

_OF_THE_CACHE = ("cache_codec",)
"""How a stored cache is packed stays as it is."""


def refuse_other_settings(job: RenderJob, loaded: Loaded) -> None:
    """A stored subject's cache holds what its settings, and what was loaded, made of it: others cannot be had from it.

    What is saved on scenes may be asked for anew, as long as the cache holds what they will read.

    Args:
        job: takes up stored subjects, or none.
        loaded: what it loads with its model.

    Raises:
        JobError: naming every setting that a stored subject does not allow.
    """
    problems: list[Problem] = []
    for index, subject in enumerate(job.subjects):
        if subject.sources:
            made = MethodSettings.from_dict(subject.sources[0].settings)
            problems += _other_settings(job, made, f"subjects[{index}]")
            problems += _too_little(job, made, f"subjects[{index}]")
            problems += _other_loading(subject.sources, loaded, f"subjects[{index}]")
    if problems:
        raise JobError("the job cannot be planned: a stored subject was made with other settings", problems)


def _other_settings(job: RenderJob, made: MethodSettings, where: str) -> Iterator[Problem]:
    asked = job.settings.for_model(job.model)
    fixed = MethodSettings.__dataclass_fields__.keys() - {*SCENE_SETTINGS, *_OF_THE_CACHE}
    for name in MethodSettings.__dataclass_fields__:
        wanted, found = getattr(asked, name), getattr(made, name)
        if name in fixed & job.settings.model_fields_set and wanted != found:
            wanted, found = (list(value) if isinstance(value, tuple) else value for value in (wanted, found))
            fix = f"leave it out or set {found!r}, {where} was stored with that"
            yield Problem(f"settings.{name}", repr(wanted), fix)


def _too_little(job: RenderJob, made: MethodSettings, where: str) -> Iterator[Problem]:
    plan, asked = StepPlan.from_settings(made), job.settings.for_scenes_of(made)
    if suffices(plan, StepPlan.from_settings(asked)):
        return
    set_here = [name for name in ("profile", *SCENE_SETTINGS) if name in job.settings.model_fields_set]
    enough = [name for name in PROFILES if suffices(plan, StepPlan.from_settings(made.with_profile(name)))]
    other = f"set profile: {' or '.join(enough)}, " if enough else "leave it out, "
    fix = f"{other}or make the subject again with this: {where} was stored for {_named(made)}, its cache lacks tensors"
    yield Problem(f"settings.{set_here[0]}", shown(getattr(job.settings, set_here[0])), fix)


def _other_loading(sources: Sequence[StoredCache], loaded: Loaded, where: str) -> Iterator[Problem]:
    for source in sources:
        if told := loading_differences(source.loaded or {}, loaded):
            field = told.partition(":")[0].lower()
            fix = f"load what {where} was stored with ({told}), or make the subject again: its cache is of that model"
            yield Problem(field, loaded.words() or "none", fix)
            return


def _named(settings: MethodSettings) -> str:
    return f"profile {settings.profile}" if settings.profile else "settings of its own"
