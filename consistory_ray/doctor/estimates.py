"""From the few steps that were measured to those of a picture, and to a job. Pure: no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from consistory_ray.consistory.method.call_counts import anchor_calls, scene_calls
from consistory_ray.doctor.diagnosis import ANCHORS, VANILLA, JobForecast, Timing
from consistory_ray.settings import MethodSettings

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan, SubjectPlan

MEASURED_ANCHORS = 2


def calls_of(way: str, settings: MethodSettings) -> float:
    """Calls of the network that a picture takes.

    Args:
        way: a profile, ``vanilla`` or ``anchors``.
        settings: of the model, with the number of steps that is meant.
    """
    if way == ANCHORS:
        return anchor_calls(settings)
    if way == VANILLA:
        return scene_calls(settings.exact.replace(sdsa=False, query_blending=False, injection=False))
    return scene_calls(settings.with_profile(way))


def seconds_of(timings: Sequence[Timing], way: str, batch: int, calls: float) -> float | None:
    """Seconds of a picture that takes so many calls; None if that way was not measured with batches of that size."""
    known = [timing for timing in timings if timing.seconds and (timing.way, timing.batch) == (way, batch)]
    return max(known, key=lambda timing: timing.calls).seconds_for(calls) if known else None


def profile_of(settings: MethodSettings) -> str:
    """The profile that settings are, or are nearest to."""
    if settings.profile is not None:
        return settings.profile
    if settings.first_pass == "full":
        return "exact"
    return "fast" if settings.scene_blending else "turbo"


def largest_batch(timings: Sequence[Timing], way: str, wanted: int | None) -> int:
    """The largest batch that was measured of a way and is not larger than wanted; 1 where none was."""
    sizes = [timing.batch for timing in timings if timing.way == way and timing.seconds]
    return max((size for size in sizes if wanted is None or size <= wanted), default=1)


def job_forecast(
    plan: Plan, timings: Sequence[Timing], size: tuple[int, int], workers: int, batch: int | None = None
) -> JobForecast | None:
    """What a plan's pictures would take on devices like the measured one; None if something of it was not measured.

    Args:
        plan: of the job.
        timings: of the job's model, or of one of its size.
        size: height and width of the pictures that were measured.
        workers: devices.
        batch: scenes at a time; None is what the job says, where ``auto`` is the largest that was measured.
    """
    wanted = batch or (plan.batch_size if isinstance(plan.batch_size, int) else None)
    profiles: Counter[str] = Counter()
    total, scaled, largest = 0.0, False, 1
    for subject in plan.subjects:
        profile = profile_of(subject.settings)
        at_once = largest_batch(timings, profile, wanted)
        seconds = _of_subject(subject, timings, profile, at_once)
        if seconds is None:
            return None
        share = _pixels(subject.settings, size) / (size[0] * size[1])
        total += seconds * share
        profiles[profile] += len(subject.renders)
        scaled |= share != 1 or _made(subject) not in (0, MEASURED_ANCHORS)
        largest = max(largest, at_once)
    workers = max(1, workers)
    counts = plan.anchor_count, plan.scene_count + plan.take_count
    return JobForecast(plan.name, *counts, dict(profiles), largest, workers, total / workers, scaled)


def _of_subject(subject: SubjectPlan, timings: Sequence[Timing], profile: str, batch: int) -> float | None:
    anchor = seconds_of(timings, ANCHORS, 1, anchor_calls(subject.settings)) if _made(subject) else 0.0
    scene = seconds_of(timings, profile, batch, scene_calls(subject.settings)) if subject.scenes else 0.0
    return None if anchor is None or scene is None else _made(subject) * anchor + len(subject.renders) * scene


def _made(subject: SubjectPlan) -> int:
    """Anchors that are rendered."""
    return 0 if subject.sources else len(subject.anchors)


def _pixels(settings: MethodSettings, size: tuple[int, int]) -> int:
    return (settings.height or size[0]) * (settings.width or size[1])
