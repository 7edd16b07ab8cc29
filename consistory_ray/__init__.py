"""One individual in every picture: consistent subjects from SDXL models, at scale.

Two ways in: :class:`ConsiStoryPipeline` renders subjects in this process, :func:`run_job` a whole job on one machine or
on a cluster. The names below load on first use, so that importing the package, validating and planning need neither
torch nor Ray.

What :func:`make_plan` plans is also the name of the package's room ``consistory_ray.plan``, which is why it is not
called ``plan``.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consistory_ray.consistory.cache.anchor_cache import AnchorCache
    from consistory_ray.consistory.pipeline import ConsiStoryPipeline
    from consistory_ray.engine.events import (
        AnchorsReady,
        AssetDone,
        AssetFailed,
        AssetFailure,
        Event,
        Notice,
        Paused,
        RunFinished,
        RunStarted,
        RunSummary,
        Stopping,
        SubjectProgress,
        WorkerLost,
        WorkerReady,
    )
    from consistory_ray.engine.options import RunOptions
    from consistory_ray.engine.running import run_job
    from consistory_ray.engine.stopping import StopRequest
    from consistory_ray.errors import (
        AssetError,
        CacheMismatchError,
        CheckpointError,
        ClusterLostError,
        ConsistoryError,
        DiskFullError,
        InputError,
        JobError,
        OutageError,
        OutputBusyError,
        Problem,
        PromptError,
        RetryableError,
        RunError,
        RunFailed,
        RunInterrupted,
        StorageError,
    )
    from consistory_ray.jobs.job import RenderJob, load_job, parse_job
    from consistory_ray.jobs.render_settings import RenderSettings
    from consistory_ray.jobs.subject import Anchor, Scene, Subject
    from consistory_ray.plan.plan import Asset, Plan, SubjectPlan, make_plan
    from consistory_ray.settings import MethodSettings

_HOMES = {
    "consistory.cache.anchor_cache": ("AnchorCache",),
    "consistory.pipeline": ("ConsiStoryPipeline",),
    "engine.events": (
        "AnchorsReady",
        "AssetDone",
        "AssetFailed",
        "AssetFailure",
        "Event",
        "Notice",
        "Paused",
        "RunFinished",
        "RunStarted",
        "RunSummary",
        "Stopping",
        "SubjectProgress",
        "WorkerLost",
        "WorkerReady",
    ),
    "engine.options": ("RunOptions",),
    "engine.running": ("run_job",),
    "engine.stopping": ("StopRequest",),
    "errors": (
        "AssetError",
        "CacheMismatchError",
        "CheckpointError",
        "ClusterLostError",
        "ConsistoryError",
        "DiskFullError",
        "InputError",
        "JobError",
        "OutageError",
        "OutputBusyError",
        "Problem",
        "PromptError",
        "RetryableError",
        "RunError",
        "RunFailed",
        "RunInterrupted",
        "StorageError",
    ),
    "jobs.job": ("RenderJob", "load_job", "parse_job"),
    "jobs.subject": ("Anchor", "Scene", "Subject"),
    "jobs.render_settings": ("RenderSettings",),
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
    "run_job",
    "RunOptions",
    "StopRequest",
    "RunSummary",
    "AssetFailure",
    "Event",
    "RunStarted",
    "SubjectProgress",
    "WorkerReady",
    "WorkerLost",
    "AnchorsReady",
    "AssetDone",
    "AssetFailed",
    "Notice",
    "Paused",
    "Stopping",
    "RunFinished",
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
    "OutageError",
    "ClusterLostError",
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
