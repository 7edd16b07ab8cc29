"""One individual in every picture: consistent subjects from SDXL models, at scale.

The names below load on first use, so that importing the package, validating and planning need neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consistory_ray.consistory.cache.anchor_cache import AnchorCache
    from consistory_ray.consistory.pipeline import ConsiStoryPipeline
    from consistory_ray.errors import (
        AssetError,
        CacheMismatchError,
        CheckpointError,
        ConsistoryError,
        DiskFullError,
        InputError,
        JobError,
        OutputBusyError,
        Problem,
        PromptError,
        RetryableError,
        RunError,
        RunFailed,
        RunInterrupted,
        StorageError,
    )
    from consistory_ray.jobs.job import Anchor, RenderJob, RenderSettings, Scene, Subject, load_job, parse_job
    from consistory_ray.plan.plan import Asset, Plan, SubjectPlan, make_plan
    from consistory_ray.settings import MethodSettings

_HOMES = {
    "consistory.cache.anchor_cache": ("AnchorCache",),
    "consistory.pipeline": ("ConsiStoryPipeline",),
    "errors": (
        "AssetError",
        "CacheMismatchError",
        "CheckpointError",
        "ConsistoryError",
        "DiskFullError",
        "InputError",
        "JobError",
        "OutputBusyError",
        "Problem",
        "PromptError",
        "RetryableError",
        "RunError",
        "RunFailed",
        "RunInterrupted",
        "StorageError",
    ),
    "jobs.job": ("Anchor", "RenderJob", "RenderSettings", "Scene", "Subject", "load_job", "parse_job"),
    "plan.plan": ("Asset", "Plan", "SubjectPlan", "make_plan"),
    "settings": ("MethodSettings",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022, in the order of use
    "ConsiStoryPipeline",
    "AnchorCache",
    "RenderJob",
    "RenderSettings",
    "Subject",
    "Anchor",
    "Scene",
    "load_job",
    "parse_job",
    "make_plan",
    "Plan",
    "SubjectPlan",
    "Asset",
    "MethodSettings",
    "Problem",
    "ConsistoryError",
    "InputError",
    "JobError",
    "PromptError",
    "CacheMismatchError",
    "CheckpointError",
    "RetryableError",
    "StorageError",
    "DiskFullError",
    "AssetError",
    "RunError",
    "OutputBusyError",
    "RunInterrupted",
    "RunFailed",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("consistory-ray")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
