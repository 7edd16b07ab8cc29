"""What pictures take here: every profile beside vanilla, alone and in batches, within a limit of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from consistory_ray.consistory.results import SubjectResult
from consistory_ray.doctor.diagnosis import ANCHORS, VANILLA, Timing
from consistory_ray.doctor.estimates import calls_of
from consistory_ray.doctor.flops import count_flops
from consistory_ray.doctor.meters import forget_peak, peak_bytes, seconds_for
from consistory_ray.doctor.models import MeasuredModel
from consistory_ray.errors import AssetError
from consistory_ray.settings import PROFILES

WAYS = (VANILLA, *PROFILES)
BATCHES = (1, 2, 4, 8)
FEW_STEPS = 10
LEAST_STEPS = 3
WARM_STEPS = 2
_SHARE_ALONE = 0.5
"""Of the time there is, for single pictures."""
_VANILLA_PICTURES = 14
"""What those take together, in vanilla pictures: every way twice, and the anchors."""

Tell = Callable[[str], object]


@dataclass
class Stopwatch:
    """Measures one model until its time is up.

    Attributes:
        model: that renders.
        until: seconds of ``time.perf_counter`` after which nothing long is begun any more.
        tell: is told what is being measured.
        found: the measurements.
        mask_share: share of the anchors that their masks cover; None before there are any.
    """

    model: MeasuredModel
    until: float
    tell: Tell
    found: list[Timing] = field(default_factory=list)
    mask_share: float | None = None
    _tflops: dict[str, float] = field(default_factory=dict)
    _subjects: dict[int, SubjectResult] = field(default_factory=dict)

    def chosen_steps(self) -> int:
        """Warm up, and choose a number of steps that single pictures of all ways have time for."""
        self.tell("warming up")
        self.model.pictures(VANILLA, WARM_STEPS, 1, None)
        warm = seconds_for(lambda: self.model.pictures(VANILLA, WARM_STEPS, 1, None), self.model.device)
        left = _SHARE_ALONE * max(0.0, self.until - time.perf_counter())
        fitting = int(left / (_VANILLA_PICTURES * warm / WARM_STEPS))
        return min(FEW_STEPS, self.model.settings.num_inference_steps, max(LEAST_STEPS, fitting))

    def measure_all(self, steps: int, batches: Sequence[int]) -> None:
        """Single pictures first, then batches, the largest before the others."""
        for way in WAYS:
            self.measure(way, 1, steps, counted=True)
        for batch in sorted(set(batches) - {1}, reverse=True):
            for way in WAYS:
                self.measure(way, batch, steps)

    def measure(self, way: str, batch: int, steps: int, *, counted: bool = False) -> None:
        """Add a measurement, or why there is none.

        Args:
            way: a profile or vanilla; anchors are measured where there are none yet.
            batch: pictures at a time.
            steps: denoising steps.
            counted: count FLOPs in a first picture, which also warms up.
        """
        self.tell(f"{way}: {batch} at a time, {steps} steps")
        expected = self._expected(way, batch, steps)
        if expected > self.until - time.perf_counter():
            self.found.append(self._timing(way, batch, steps, None, why=f"skipped: it would take {expected:.0f} s"))
            return
        try:
            self.found.append(self._measured(way, batch, steps, counted))
        except torch.OutOfMemoryError:
            why = "failed: out of memory" if batch == 1 else "out of memory"
            self.found.append(self._timing(way, batch, steps, None, why=why))
        except AssetError as error:
            self.found.append(self._timing(way, batch, steps, None, why=f"failed: {error}"))

    def _timing(self, way: str, batch: int, steps: int, seconds: float | None, **more: Any) -> Timing:
        settings = self.model.settings
        calls, full = calls_of(way, settings.replace(num_inference_steps=steps)), calls_of(way, settings)
        return Timing(way, batch, steps, calls, full, seconds, **more)

    def _measured(self, way: str, batch: int, steps: int, counted: bool) -> Timing:
        device, subject = self.model.device, None if way == VANILLA else self._subject(steps)
        forget_peak(device)
        if counted:
            with count_flops() as counter:
                self.model.pictures(way, steps, batch, subject)
            self._tflops[way] = counter.get_total_flops() / batch / 1e12
        elif batch > 1:
            self.model.pictures(VANILLA, 1, batch, None)  # what shapes cost the first time
        seconds = seconds_for(lambda: self.model.pictures(way, steps, batch, subject), device)
        return self._timing(way, batch, steps, seconds / batch, memory=peak_bytes(device), tflops=self._tflops.get(way))

    def _subject(self, steps: int) -> SubjectResult:
        """Anchors, made and measured once for each number of steps; their cache serves every profile."""
        if steps not in self._subjects:
            device = self.model.device
            forget_peak(device)
            seconds = seconds_for(lambda: self._make(steps), device)
            self.found.append(self._timing(ANCHORS, 1, steps, seconds / 2, memory=peak_bytes(device)))
        return self._subjects[steps]

    def _make(self, steps: int) -> None:
        made = self._subjects[steps] = self.model.subject(steps)
        shares = [mask.float().mean().item() for mask in made.masks.values()]
        self.mask_share = sum(shares) / len(shares) if shares else None

    def _expected(self, way: str, batch: int, steps: int) -> float:
        """Seconds that a measurement will take, from the nearest one that there is; 0 while there is none."""
        known = next((timing for timing in self.found if timing.way == way and timing.seconds), None)
        return 0.0 if known is None else batch * (known.seconds or 0.0) * steps / known.steps
