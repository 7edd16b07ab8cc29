"""The whole examination, in order. What goes wrong in a part is a finding, and the others are examined all the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from consistory_ray.consistory.cache.estimates import estimate_cache_bytes
from consistory_ray.doctor import machine, verdicts
from consistory_ray.doctor.copies import measured_speeds
from consistory_ray.doctor.diagnosis import RANDOM, Diagnosis, Finding
from consistory_ray.doctor.estimates import job_forecast
from consistory_ray.doctor.kernels import examined_kernels
from consistory_ray.doctor.models import RANDOM_PARAMETERS, MeasuredModel, load_model, quietly
from consistory_ray.doctor.precision import STEPS, examined_precision
from consistory_ray.doctor.timings import BATCHES, Stopwatch, Tell
from consistory_ray.engine.workers.renderer import BYTES_PER_LATENT_AND_BYTE
from consistory_ray.errors import InputError, Problem
from consistory_ray.settings import BUNDLED_MODEL

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan

T = TypeVar("T")

QUICK_STEPS = 2
"""The fewest with a step of each kind."""
SDXL_LATENTS = 128 * 128


@dataclass(frozen=True)
class Request:
    """What is to be examined.

    Attributes:
        model: ``miniature``, ``random``, or any other; None is the job's kind, else ``random`` on a GPU and
            ``miniature`` on a CPU. Only a hub id is ever downloaded.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: ``auto``, ``float16``, ``bfloat16`` or ``float32``.
        seconds: about how long it may take, loading aside.
        steps: denoising steps of most measurements; None chooses.
        quick: single pictures of very few steps only.
        plan: of a job that is to be forecast.
        output: where the job would be written to.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    seconds: float = 120.0
    steps: int | None = None
    quick: bool = False
    plan: Plan | None = None
    output: str | None = None


def examine(request: Request, tell: Tell = str) -> Diagnosis:
    """Examine this machine.

    Args:
        request: what of it.
        tell: is told what is being done.

    Raises:
        InputError: the model or the device that is asked for cannot be used.
    """
    with quietly():
        return _examine(request, tell)


def _examine(request: Request, tell: Tell) -> Diagnosis:
    started = time.perf_counter()
    tell("looking at the machine")
    found = machine.examined_machine()
    if request.device == "cuda" and not found.gpus and not found.cuda:
        problem = Problem("--device", "cuda", "use cpu, or install a torch that is built for CUDA")
        raise InputError("the device cannot be used", [problem])
    on_cuda = request.device != "cpu" and any(not gpu.problem for gpu in found.gpus)
    device = torch.device("cuda" if on_cuda else "cpu")
    name = "float16" if on_cuda else "float32"
    examination = Examination(request, tell, device, getattr(torch, name if request.dtype == "auto" else request.dtype))
    examination.findings += verdicts.of_devices(found, request.device)
    if request.output is not None:
        tell("writing to the output")
        examination.findings += machine.of_output(request.output)
    told = Diagnosis(examination.model_name, str(device), examination.dtype_name, found)
    if request.device != "cuda" or on_cuda:
        told = examination.of_arithmetic(told)
        told = examination.of_model(told, started + request.seconds)
    return replace(told, findings=tuple(examination.findings), seconds=time.perf_counter() - started)


@dataclass
class Examination:
    """One examination of one device.

    Attributes:
        request, tell: as of :func:`examine`.
        device: that is examined.
        dtype: of the model.
        findings: so far.
    """

    request: Request
    tell: Tell
    device: torch.device
    dtype: torch.dtype
    findings: list[Finding] = field(default_factory=list)

    @property
    def model_name(self) -> str:
        """What is measured."""
        plan = self.request.plan
        if self.request.model is not None:
            return self.request.model
        small = self.device.type != "cuda" if plan is None else plan.model == BUNDLED_MODEL
        return BUNDLED_MODEL if small else RANDOM

    @property
    def dtype_name(self) -> str:
        """Of the model."""
        return str(self.dtype).removeprefix("torch.")

    def of_arithmetic(self, told: Diagnosis) -> Diagnosis:
        """Kernels and speeds, without a model."""
        self.tell("attention kernels")
        kernels = self._part("attention", lambda: examined_kernels(self.device, self.dtype)) or ()
        self.findings += verdicts.of_kernels(kernels, self.device.type, self.dtype_name)
        self.tell("products and copies")
        speeds = self._part("speed", lambda: measured_speeds(self.device, self.dtype))
        self.findings += [] if speeds is None else verdicts.of_speeds(speeds)
        return replace(told, kernels=kernels, speeds=speeds)

    def of_model(self, told: Diagnosis, until: float) -> Diagnosis:
        """Precision, times and memory of pictures; until a moment of ``time.perf_counter``."""
        if self._lacks_room():
            return told
        self.tell(f"loading {self.model_name}")
        model = self._part("model", lambda: load_model(self.model_name, self.device, self.dtype))
        if model is None:
            return told
        told = replace(told, steps=model.settings.num_inference_steps, size=model.size)
        self.tell("precision")
        half = self.dtype if self.dtype_name != "float32" else torch.float16 if self._on_cuda else torch.bfloat16
        steps = QUICK_STEPS if self.request.quick else STEPS
        precision = self._part("precision", lambda: examined_precision(model, half, steps))
        self.findings += [] if precision is None else verdicts.of_precision(precision, self.dtype_name)
        told = self.of_pictures(replace(told, precision=precision), model, until)
        self.findings += verdicts.of_disks(told.machine, self._cache_bytes(model, told.mask_share), self.model_name)
        return self.of_job(told)

    def of_pictures(self, told: Diagnosis, model: MeasuredModel, until: float) -> Diagnosis:
        """Times of every profile."""
        watch = Stopwatch(model, until, self.tell)

        def measure() -> None:
            quick = QUICK_STEPS if self.request.quick else None
            steps = self.request.steps or quick or watch.chosen_steps()
            watch.measure_all(steps, (1,) if self.request.quick else self._fitting(model))

        self._part("pictures", measure)
        self.findings += verdicts.of_timings(watch.found) + verdicts.of_batches(watch.found)
        return replace(told, timings=tuple(watch.found), mask_share=watch.mask_share)

    def of_job(self, told: Diagnosis) -> Diagnosis:
        """What a job would take."""
        plan = self.request.plan
        if plan is None:
            return told
        if (plan.model == BUNDLED_MODEL) != (self.model_name == BUNDLED_MODEL) or not self._is_of_its_size(told):
            text = f"{told.model} says nothing about {plan.model}: no forecast"
            self.findings.append(Finding("note", "job", text, "measure with --model, on the device it would run on"))
            return told
        workers = len(told.machine.gpus) if self._on_cuda else 1
        forecast = job_forecast(plan, told.timings, told.size, workers)
        if forecast is None:
            fix = "give more time with --seconds"
            self.findings.append(Finding("note", "job", "too little was measured for a forecast", fix))
        return replace(told, forecast=forecast)

    @property
    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def _is_of_its_size(self, told: Diagnosis) -> bool:
        return told.model != RANDOM or self._on_cuda

    def _part(self, about: str, action: Callable[[], T]) -> T | None:
        """What an action gives; None, and a finding, where it fails."""
        try:
            return action()
        except torch.OutOfMemoryError as error:
            self._wrong("memory", error, "end what else is on the device, or take one with more memory")
        except RuntimeError as error:  # of CUDA, of drivers
            self._wrong(about, error, "see dmesg for Xid errors, and that torch fits the driver")
        return None

    def _wrong(self, about: str, error: BaseException, fix: str) -> None:
        self.findings.append(Finding("wrong", about, (str(error) or repr(error)).splitlines()[0], fix))

    def _lacks_room(self) -> bool:
        """Whether SDXL's size does not fit, which is seen before it is made."""
        if not self._on_cuda or self.model_name != RANDOM:
            return False
        needed = RANDOM_PARAMETERS * self._item + self._scene_bytes(SDXL_LATENTS)
        found = verdicts.of_memory(needed, torch.cuda.mem_get_info(self.device)[0], "a model of SDXL's size")
        self.findings += found
        return bool(found)

    def _fitting(self, model: MeasuredModel) -> tuple[int, ...]:
        """Batches that may fit into the device's memory."""
        if not self._on_cuda:
            return BATCHES
        free = torch.cuda.mem_get_info(self.device)[0]
        each = self._scene_bytes(model.size[0] * model.size[1] // model.pipe.backbone.pixels_per_latent**2)
        return tuple(batch for batch in BATCHES if batch == 1 or batch * each <= free)

    @property
    def _item(self) -> int:
        return torch.empty((), dtype=self.dtype).element_size()

    def _scene_bytes(self, latents: int) -> int:
        return latents * self._item * BYTES_PER_LATENT_AND_BYTE

    def _cache_bytes(self, model: MeasuredModel, mask_share: float | None) -> int:
        """Of a subject with two anchors of the model's usual steps."""
        scale = model.pipe.backbone.pixels_per_latent
        config = model.pipe.pipe.unet.config
        return estimate_cache_bytes(
            config, model.settings, mask_fraction=mask_share or 0.25, dtype=self.dtype_name, vae_scale_factor=scale
        )
