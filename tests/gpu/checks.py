"""What is measured on a device, at whatever size: which attention kernels run, how much memory, and how exactly.

Every function takes the device from the pipeline it is given, so that the same code runs on a CPU with a tiny model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, get_args
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cost import masks_of_a_quarter
from benchmarks.engine_model.apart import Meter
from benchmarks.host_memory import resident
from benchmarks.random_sdxl import Topology, build_pipeline, build_unet
from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, estimate_cache_bytes
from consistory_ray.consistory.method import attention
from consistory_ray.consistory.method.attention_kernel import (
    AttentionKernel,
    SharedLengths,
    attend,
    attention_kernel,
    shared_lengths,
)
from consistory_ray.engine.workers.renderer import BYTES_PER_LATENT_AND_BYTE
from consistory_ray.settings import MethodSettings

ANCHORS = ("a cat in the garden", "a cat on the beach")
SCENES = tuple(
    f"a cat {place}" for place in ("in snow", "in space", "at night", "on a hill", "at sea", "in bed", "up", "by day")
)

T = TypeVar("T")


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Float32 means float32: cuDNN's convolutions would otherwise round their inputs to TF32's ten bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def random_pipeline(topology: Topology, device: torch.device, dtype: torch.dtype) -> ConsiStoryPipeline:
    """A model with random weights, drawn on the device itself: SDXL's takes seconds on a GPU."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            unet = build_unet(topology)
    finally:
        torch.set_default_dtype(default)
    unet.requires_grad_(False)
    return ConsiStoryPipeline(build_pipeline(topology, unet, dtype).to(device))


def synchronise(device: torch.device) -> None:
    """Wait for what was begun."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def subject(pipe: ConsiStoryPipeline, settings: MethodSettings) -> AnchorCache:
    """Two anchors whose masks are a quarter of each picture."""
    with masks_of_a_quarter():
        return pipe.create_subject(ANCHORS, "cat", (1, 2), settings=settings, output_type="latent").cache


def scenes(pipe: ConsiStoryPipeline, cache: AnchorCache, count: int, batch_size: int | None = None) -> Any:
    """So many scenes, as latents with masks."""
    return pipe.render(SCENES[:count], cache, range(10, 10 + count), batch_size=batch_size, output_type="latent")


# Kernels --------------------------------------------------------------------------------------------------------------


class _Dispatched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if "scaled_dot_product" in name:
            self.kernels.append(name.split("_scaled_dot_product_")[-1].removesuffix("_attention"))
        return func(*args, **(kwargs or {}))


def kernels(action: Callable[[], object]) -> dict[bool, Counter[str]]:
    """Which kernels computed the method's attention meanwhile: ragged (shared) or not -> kernel -> calls.

    ``flash``, ``efficient`` and ``cudnn`` are PyTorch's names; what is made of matrix products is ``math``.
    """
    found: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}

    def watched(query: Tensor, key: Tensor, value: Tensor, *, ragged: bool, real: Tensor | None = None) -> Tensor:
        with _Dispatched() as dispatched:
            result = attend(query, key, value, ragged=ragged, real=real)
        found[ragged].update(dispatched.kernels[:1] or ["math"])
        return result

    with mock.patch.object(attention, "attend", watched):
        action()
    return found


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """How long it took, what was left to the device included."""
    synchronise(device)
    started = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - started


def seconds_by_kernel(
    pipe: ConsiStoryPipeline, cache: AnchorCache, choices: Sequence[AttentionKernel], count: int
) -> dict[str, list[float]]:
    """Seconds of the same scenes twice with each kernel: what a shape costs the first time is in the first number."""
    found: dict[str, list[float]] = {}
    for kernel in choices:
        with attention_kernel(kernel):
            found[kernel] = [seconds(lambda: scenes(pipe, cache, count), pipe.device) for _ in range(2)]
    return found


def bucketed_difference(pipe: ConsiStoryPipeline, cache: AnchorCache, count: int) -> tuple[Difference, Counter[str]]:
    """The same scenes with anchors' tokens padded to a few numbers and without, and which kernels padded calls had."""
    exact = scenes(pipe, cache, count)
    with shared_lengths("bucketed"):
        found = scenes(pipe, cache, count)
        chosen = kernels(lambda: scenes(pipe, cache, count))[True]
    return Difference.between(found, exact), chosen


def seconds_by_lengths(pipe: ConsiStoryPipeline, cache: AnchorCache, count: int) -> dict[str, list[float]]:
    """As :func:`seconds_by_kernel`, for exact and for padded numbers of anchors' tokens."""
    found: dict[str, list[float]] = {}
    for lengths in get_args(SharedLengths):
        with shared_lengths(lengths):
            found[lengths] = [seconds(lambda: scenes(pipe, cache, count), pipe.device) for _ in range(2)]
    return found


# Compiling ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompiledCheck:
    """Compiled scenes beside eager ones: how far apart, seconds (the first compiled call compiles), graphs, breaks.

    ``again`` counts the graphs that the same scenes with other noise take besides: none.
    """

    difference: Difference
    eager_seconds: float
    compiled_seconds: list[float]
    graphs: int
    again: int
    breaks: int


def compiled(pipe: ConsiStoryPipeline, cache: AnchorCache, count: int, backend: str) -> CompiledCheck:
    """Render scenes, then compile and render them again. The model stays compiled."""
    import torch._dynamo.utils

    stats, breaks = (torch._dynamo.utils.counters[name] for name in ("stats", "graph_break"))
    eager = scenes(pipe, cache, count)
    eager_seconds = seconds(lambda: scenes(pipe, cache, count), pipe.device)
    pipe.compile(backend=backend)
    stats.clear(), breaks.clear()
    times = [seconds(lambda: scenes(pipe, cache, count), pipe.device)]
    graphs = stats["unique_graphs"]
    times += [seconds(lambda: scenes(pipe, cache, count), pipe.device) for _ in range(2)]
    difference = Difference.between(scenes(pipe, cache, count), eager)
    again = stats["unique_graphs"] - graphs
    return CompiledCheck(difference, eager_seconds, times, graphs, again, sum(breaks.values()))


# Memory ---------------------------------------------------------------------------------------------------------------


def peak(action: Callable[[], T], device: torch.device) -> tuple[T, int]:
    """A result, and how many bytes more than before were taken meanwhile: of the device, or of a CPU's process."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = action()
        return result, torch.cuda.max_memory_allocated(device) - before
    before = resident()
    with Meter() as meter:
        result = action()
    return result, max(0, meter.peak - before)


@dataclass(frozen=True)
class MemoryCheck:
    """Bytes found and bytes forecast: of a batch of scenes on the device, and of the cache."""

    batch: int
    scenes: int
    scenes_forecast: int
    anchors: int
    cache: int
    cache_forecast: int


def memory(pipe: ConsiStoryPipeline, settings: MethodSettings, batch: int) -> MemoryCheck:
    """Make a subject and render so many of its scenes at a time."""
    cache, anchors = peak(lambda: subject(pipe, settings), pipe.device)
    _, taken = peak(lambda: scenes(pipe, cache, batch), pipe.device)
    unet = pipe.pipe.unet
    height, width = cache.settings.height or 0, cache.settings.width or 0
    latents = height * width // pipe.pipe.vae_scale_factor**2
    item = torch.empty((), dtype=unet.dtype).element_size()
    dtype = str(unet.dtype).removeprefix("torch.")
    forecast = estimate_cache_bytes(unet.config, cache.settings, len(ANCHORS), 0.25, dtype=dtype)
    return MemoryCheck(
        batch, taken, batch * latents * item * BYTES_PER_LATENT_AND_BYTE, anchors, cache.nbytes, forecast
    )


# Exactness ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How far two renders of the same scenes are apart: latents (over their root mean square), and mask tokens."""

    largest: float
    mean: float
    rms: float
    flipped: float

    @classmethod
    def between(cls, first: Any, second: Any) -> Difference:
        """Of two results."""
        a, b = (result.images.double().cpu() for result in (first, second))
        scale = b.square().mean().sqrt()
        delta = (a - b).abs() / scale
        flipped = [(first.masks[level] != second.masks[level]).float().mean().item() for level in second.masks]
        return cls(delta.max().item(), delta.mean().item(), delta.square().mean().sqrt().item(), max(flipped))


def batch_difference(pipe: ConsiStoryPipeline, cache: AnchorCache, batch: int) -> Difference:
    """Scenes rendered together against the same ones rendered alone."""
    return Difference.between(scenes(pipe, cache, batch), scenes(pipe, cache, batch, batch_size=1))


def precision_difference(
    pipe: ConsiStoryPipeline, settings: MethodSettings, dtype: torch.dtype, count: int
) -> Difference:
    """A float32 model's scenes against those of the same model in another dtype, of the same noise and the same cache.

    The model stays in that dtype.
    """
    cache = subject(pipe, settings)
    exact = scenes(pipe, cache, count)
    pipe.pipe.to(dtype)
    return Difference.between(scenes(pipe, cache, count), exact)
