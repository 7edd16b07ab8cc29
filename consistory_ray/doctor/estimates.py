"""From the few steps that were measured to a picture's, and to a job's. Pure: no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from consistory_ray.doctor.diagnosis import ANCHORS, JobForecast, Speeds, Timing
from consistory_ray.settings import MethodSettings

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan, SubjectPlan

MEASURED_ANCHORS = 2
_PROFILE_OF_FIRST_PASS = {"full": "exact", "lookahead": "fast", "live": "turbo"}


def seconds_of(timings: Sequence[Timing], way: str, batch: int, steps: int) -> float | None:
    """Seconds of a picture with so many steps; None if that way, or batches of that size, were not measured.

    What a picture takes rises in a line with its steps, from what does not depend on them: decoding, look-ahead calls.
    So two numbers of steps at batch 1 give those of any, and what is known of another batch size at one of them is how
    much less it takes than batch 1. With a single number of steps nothing is known about the part that stays.
    """
    alone, these = _points(timings, way, 1), _points(timings, way, batch)
    if not these or steps in these:
        return these.get(steps)
    common = max(alone.keys() & these.keys(), default=None) if batch != 1 else None
    if common is None:
        return _along_a_line(these, steps)
    return _along_a_line(alone, steps) * these[common] / alone[common]


def _points(timings: Sequence[Timing], way: str, batch: int) -> dict[int, float]:
    """Steps -> seconds of a picture."""
    return {
        timing.steps: timing.seconds
        for timing in timings
        if timing.seconds and (timing.way, timing.batch) == (way, batch)
    }


def _along_a_line(seconds: dict[int, float], steps: int) -> float:
    """Seconds at a number of steps, from those at some."""
    if steps in seconds:
        return seconds[steps]
    few, many = min(seconds), max(seconds)
    if few == many:
        return seconds[few] * steps / few
    slope = max(0.0, (seconds[many] - seconds[few]) / (many - few))
    return max(0.0, seconds[many] + slope * (steps - many))


def mfu(timing: Timing, speeds: Speeds | None) -> float | None:
    """Share of what the device multiplies at most; None where FLOPs or seconds are unknown."""
    if speeds is None or not timing.seconds or timing.tflops is None or not speeds.matmul_tflops:
        return None
    return timing.tflops / timing.seconds / speeds.matmul_tflops


def profile_of(settings: MethodSettings) -> str:
    """The profile that settings are, or are nearest to."""
    return settings.profile or _PROFILE_OF_FIRST_PASS[settings.first_pass]


def largest_batch(timings: Sequence[Timing], way: str, wanted: int | None) -> int:
    """The largest batch that was measured of a way, and is not larger than wanted; 1 where none was."""
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
        batch: scenes at a time; None is the job's, and ``auto`` the largest that was measured.
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
        profiles[profile] += len(subject.scenes)
        made = 0 if subject.sources else len(subject.anchors)
        scaled |= share != 1 or made not in (0, MEASURED_ANCHORS)
        largest = max(largest, at_once)
    workers = max(1, workers)
    return JobForecast(
        plan.name, plan.anchor_count, plan.scene_count, dict(profiles), largest, workers, total / workers, scaled
    )


def _of_subject(subject: SubjectPlan, timings: Sequence[Timing], profile: str, batch: int) -> float | None:
    steps = subject.settings.num_inference_steps
    made = 0 if subject.sources else len(subject.anchors)
    anchor = seconds_of(timings, ANCHORS, 1, steps) if made else 0.0
    scene = seconds_of(timings, profile, batch, steps) if subject.scenes else 0.0
    return None if anchor is None or scene is None else made * anchor + len(subject.scenes) * scene


def _pixels(settings: MethodSettings, size: tuple[int, int]) -> int:
    return (settings.height or size[0]) * (settings.width or size[1])
