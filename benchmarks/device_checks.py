"""What is measured on a device, at whatever size: which attention kernels run, how much memory, and how exactly.

Every function takes the device from the pipeline it is given, so that the same code runs on a CPU with a tiny model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, get_args
from unittest import mock

import torch
from torch import Tensor

from benchmarks.cost import masks_of_a_quarter
from benchmarks.engine_model.apart import Meter
from benchmarks.host_memory import resident
from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, estimate_cache_bytes
from consistory_ray.consistory.cache.residence import PlacedCache
from consistory_ray.consistory.method import attention
from consistory_ray.consistory.method.attention_kernel import (
    AttentionKernel,
    SharedLengths,
    attend,
    attention_kernel,
    shared_lengths,
)
from consistory_ray.doctor.kernels import DispatchedKernels
from consistory_ray.doctor.meters import seconds_for
from consistory_ray.doctor.precision import Difference
from consistory_ray.engine.workers.renderer import BYTES_PER_LATENT_AND_BYTE
from consistory_ray.settings import PROFILES, MethodSettings

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


def subject(pipe: ConsiStoryPipeline, settings: MethodSettings) -> AnchorCache:
    """Two anchors whose masks are a quarter of each picture."""
    with masks_of_a_quarter():
        return pipe.create_subject(ANCHORS, "cat", (1, 2), settings=settings, output_type="latent").cache


def scenes(
    pipe: ConsiStoryPipeline,
    cache: AnchorCache | PlacedCache,
    count: int,
    batch_size: int | None = None,
    **changes: Any,
) -> Any:
    """So many scenes, as latents with masks."""
    seeds = range(10, 10 + count)
    return pipe.render(SCENES[:count], cache, seeds, batch_size=batch_size, output_type="latent", **changes)


# Kernels --------------------------------------------------------------------------------------------------------------


def kernels(action: Callable[[], object]) -> dict[bool, Counter[str]]:
    """Which kernels computed the method's attention meanwhile: ragged (shared) or not -> kernel -> calls.

    ``flash``, ``efficient`` and ``cudnn`` are PyTorch's names; what is made of matrix products is ``math``.
    """
    found: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}

    def watched(query: Tensor, key: Tensor, value: Tensor, *, ragged: bool, key_mask: Tensor | None = None) -> Tensor:
        with DispatchedKernels() as dispatched:
            result = attend(query, key, value, ragged=ragged, key_mask=key_mask)
        found[ragged].update(dispatched.kernels[:1] or ["math"])
        return result

    with mock.patch.object(attention, "attend", watched):
        action()
    return found


def seconds_by_kernel(
    pipe: ConsiStoryPipeline, cache: AnchorCache, choices: Sequence[AttentionKernel], count: int
) -> dict[str, list[float]]:
    """Seconds of the same scenes twice with each kernel: what a shape costs the first time is in the first number."""
    found: dict[str, list[float]] = {}
    for kernel in choices:
        with attention_kernel(kernel):
            found[kernel] = [seconds_for(lambda: scenes(pipe, cache, count), pipe.device) for _ in range(2)]
    return found


# Where the cache is ---------------------------------------------------------------------------------------------------


class PageableCopies:
    """How a cache would come without pinned memory and a stream: as each step is reached, on the computing one."""

    def staging(self, nbytes: int) -> Tensor:
        """See :class:`~consistory_ray.consistory.cache.copies.Copies`."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def upload(self, staged: Tensor) -> tuple[Tensor, Any]:
        """See :class:`~consistory_ray.consistory.cache.copies.Copies`."""
        return staged.to(self._device), None

    def arrived(self, copy: Tensor, event: Any) -> None:
        """It has."""

    def download(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Any:
        """Of anchors, which this is not about."""
        raise NotImplementedError

    def wait(self, event: Any) -> None:
        """The same."""

    def __init__(self, device: torch.device) -> None:
        self._device = device


def placed_caches(cache: AnchorCache, device: torch.device) -> dict[str, PlacedCache]:
    """One cache three ways: staying on the device once it was read, brought a step ahead, and brought when needed."""
    return {
        "device": PlacedCache(cache, device, room=2 * cache.nbytes),
        "ahead": PlacedCache(cache, device),
        "pageable": PlacedCache(cache, device, copies=PageableCopies(device)),
    }


def seconds_by_place(pipe: ConsiStoryPipeline, cache: AnchorCache, count: int) -> dict[str, list[float]]:
    """Seconds of the same scenes twice with the cache in each place: the first time brings it."""
    found = {}
    for name, placed in placed_caches(cache, pipe.device).items():
        found[name] = [seconds_for(lambda here=placed: scenes(pipe, here, count), pipe.device) for _ in range(2)]
    return found


def differences_by_place(pipe: ConsiStoryPipeline, cache: AnchorCache, count: int) -> dict[str, Difference]:
    """Scenes with the cache in each place against those with it on the host: nothing differs."""
    exact = scenes(pipe, cache, count)
    places = placed_caches(cache, pipe.device)
    return {name: Difference.between(scenes(pipe, placed, count), exact) for name, placed in places.items()}


# Profiles -------------------------------------------------------------------------------------------------------------


def seconds_by_profile(pipe: ConsiStoryPipeline, settings: MethodSettings, count: int) -> dict[str, float]:
    """Seconds of a picture of each profile from one exact cache, and of a vanilla one, so many at a time."""
    cache = subject(pipe, settings)
    placed = PlacedCache(cache, pipe.device, room=2 * cache.nbytes)
    ways: dict[str, Callable[[], Any]] = {
        "vanilla": lambda: pipe.render_vanilla(
            SCENES[:count], range(10, 10 + count), settings=settings, output_type="latent"
        )
    }
    for profile in PROFILES:
        ways[profile] = lambda profile=profile: scenes(pipe, placed, count, profile=profile)
    found = {}
    for way, action in ways.items():
        action()  # warms up, and brings what the profile reads
        found[way] = seconds_for(action, pipe.device) / count
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
            found[lengths] = [seconds_for(lambda: scenes(pipe, cache, count), pipe.device) for _ in range(2)]
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
    eager_seconds = seconds_for(lambda: scenes(pipe, cache, count), pipe.device)
    pipe.compile(backend=backend)
    stats.clear(), breaks.clear()
    times = [seconds_for(lambda: scenes(pipe, cache, count), pipe.device)]
    graphs = stats["unique_graphs"]
    times += [seconds_for(lambda: scenes(pipe, cache, count), pipe.device) for _ in range(2)]
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
