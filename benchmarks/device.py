"""The first hour on a GPU: what decides how things are done on this kind of device, each part alone or all in order.

    python benchmarks/device.py                                # SDXL's size with random weights in float16; no download
    python benchmarks/device.py --parts kernels,cache --steps 20
    python benchmarks/device.py --device cpu --tiny            # the same code on a tiny model

Nothing here is about pictures: weights are random, masks are a quarter of each picture, and few steps are rendered. The
parts, in order of what they may change:

    trace     a profiler's trace of vanilla and of a scene, alone and eight at a time: the operators that take longest,
              and a file for chrome://tracing
    kernels   seconds of a scene, the first and the second time, by attention kernel; on CUDA in processes of their own
              with TORCH_CUDNN_SDPA_AVOID_RECOMPILE=1, too
    lengths   the same with exact and with padded numbers of shared keys
    cache     seconds of a scene with its cache on the device, brought ahead, and brought when needed
    batch     how far scenes in a batch of eight are from the same ones alone, in half precision and in float32
    profiles  seconds of a picture of each profile and of vanilla, alone and eight at a time
    compile   seconds of a scene before and after ``unet.compile_repeated_blocks()``, with what compiling took
    memory    peak bytes of scenes and anchors beside what batches are planned by

The last line of stdout is JSON, also written to ``results/device.json``: what results say about where they come from,
and an object for each part. A part that fails has an ``error`` there, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import device_checks as checks
from benchmarks.engine_model.apart import apart
from benchmarks.model_options import add_device_options, chosen_device, chosen_dtype, described, say
from benchmarks.random_sdxl import SDXL, TINY, random_model
from benchmarks.result_stamp import stamped
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.method.attention_kernel import AttentionKernel, shared_lengths
from consistory_ray.doctor.meters import seconds_for
from consistory_ray.doctor.random_models import SDXL_AUTOENCODER
from consistory_ray.settings import MethodSettings

RESULTS = Path(__file__).parent / "results"
MANY = 8
AVOID_RECOMPILE = "TORCH_CUDNN_SDPA_AVOID_RECOMPILE"
_SHOWN = 12
_FAILURES = (RuntimeError, ValueError, NotImplementedError, TypeError, AttributeError, ImportError)


@dataclass(frozen=True)
class Bench:
    """What is measured on.

    Attributes:
        device: where.
        dtype: of the model.
        tiny: a tiny model in place of one of SDXL's size.
        settings: of what is rendered.
        many: scenes of a batch.
        backend: torch.compile's.
        folder: for traces; None writes none.
    """

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    settings: MethodSettings
    many: int = MANY
    backend: str = "inductor"
    folder: Path | None = None

    def model(self, dtype: torch.dtype | None = None) -> ConsiStoryPipeline:
        """A fresh one, so that parts do not hang together."""
        size = (TINY,) if self.tiny else (SDXL,)
        autoencoder = {} if self.tiny else SDXL_AUTOENCODER
        return random_model(*size, self.device, dtype or self.dtype, autoencoder)


def trace(bench: Bench) -> dict[str, Any]:
    """The operators that take longest, in milliseconds of the device."""
    pipe = bench.model()
    cache = checks.subject(pipe, bench.settings)
    on_cuda = bench.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_cuda
    found: dict[str, Any] = {}
    for count in (1, bench.many):
        checks.scenes(pipe, cache, count)
        with torch.profiler.profile(activities=activities) as profiler:
            seconds = seconds_for(lambda count=count: checks.scenes(pipe, cache, count), bench.device)
        key = "self_device_time_total" if on_cuda else "self_cpu_time_total"
        events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
        found[str(count)] = {
            "seconds": seconds,
            "busy_seconds": sum(getattr(event, key) for event in events) / 1e6,
            "operators_ms": {event.key[:80]: getattr(event, key) / 1e3 for event in events[:_SHOWN]},
            "launches": sum(event.count for event in events if "LaunchKernel" in event.key),
        }
        if bench.folder is not None:
            bench.folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(bench.folder / f"trace_{count}.json.gz"))
    return found


def kernels(bench: Bench) -> dict[str, Any]:
    """Which kernels run by themselves, and seconds by the one that is asked for."""
    pipe = bench.model()
    cache = checks.subject(pipe, bench.settings)
    ran = checks.kernels(lambda: checks.scenes(pipe, cache, 1))
    found: dict[str, Any] = {"shared": dict(ran[True]), "other": dict(ran[False])}
    on_cuda = bench.device.type == "cuda"
    choices: tuple[AttentionKernel, ...] = ("auto", "default", "flash", "cudnn") if on_cuda else ("auto", "math")
    found["seconds"] = checks.seconds_by_kernel(pipe, cache, choices, 1)
    if on_cuda:
        del pipe, cache
        torch.cuda.empty_cache()
        found["seconds_avoiding_recompiles"] = apart(_avoiding_recompiles, bench)
    return found


def _avoiding_recompiles(bench: Bench) -> dict[str, list[float]]:
    """In a process of its own: torch reads the variable once."""
    os.environ[AVOID_RECOMPILE] = "1"
    pipe = bench.model()
    cache = checks.subject(pipe, bench.settings)
    return checks.seconds_by_kernel(pipe, cache, ("default", "cudnn"), 1)


def lengths(bench: Bench) -> dict[str, Any]:
    """Seconds of a scene twice with each way to count shared keys."""
    pipe = bench.model()
    cache = checks.subject(pipe, bench.settings)
    found = {}
    for way in ("exact", "bucketed"):
        with shared_lengths(way):
            found[way] = [seconds_for(lambda: checks.scenes(pipe, cache, 1), bench.device) for _ in range(2)]
    return found


def cache(bench: Bench) -> dict[str, Any]:
    """Seconds by the cache's place, and its bytes."""
    pipe = bench.model()
    made = checks.subject(pipe, bench.settings)
    counts = (1, bench.many)
    return {"cache_mb": made.nbytes / 1e6, **{str(n): checks.seconds_by_place(pipe, made, n) for n in counts}}


def batch(bench: Bench) -> dict[str, Any]:
    """Differences of latents and of masks."""
    found = {}
    for dtype in (bench.dtype, torch.float32):
        with checks.exact_arithmetic():
            pipe = bench.model(dtype)
            difference = checks.batch_difference(pipe, checks.subject(pipe, bench.settings), bench.many)
        found[str(dtype).removeprefix("torch.")] = asdict(difference)
    return found


def profiles(bench: Bench) -> dict[str, Any]:
    """Seconds of a picture."""
    pipe = bench.model()
    return {str(count): checks.seconds_by_profile(pipe, bench.settings, count) for count in (1, bench.many)}


def compile(bench: Bench) -> dict[str, Any]:
    """Seconds of a scene, eager and compiled."""
    pipe = bench.model()
    made = checks.subject(pipe, bench.settings)

    def render() -> float:
        return seconds_for(lambda: checks.scenes(pipe, made, 1), bench.device)

    render()
    eager = render()
    pipe.pipe.unet.compile_repeated_blocks(backend=bench.backend)
    first = render()
    return {"eager": eager, "compiled_first": first, "compiled": render()}


def memory(bench: Bench) -> dict[str, Any]:
    """Bytes, alone and in a batch."""
    pipe = bench.model()
    return {str(count): asdict(checks.memory(pipe, bench.settings, count)) for count in (1, bench.many)}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part for part in (trace, kernels, lengths, cache, batch, profiles, compile, memory)
}


def measured(bench: Bench, names: Sequence[str]) -> dict[str, Any]:
    """What the parts find, one after the other."""
    found: dict[str, Any] = {}
    for name in names:
        say(f"{name} ...")
        try:
            found[name] = PARTS[name](bench)
        except _FAILURES as error:
            found[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        say(f"{name}: {json.dumps(found[name])[:2000]}")
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="names, separated by commas")
    parser.add_argument("--steps", type=int, default=5, help="denoising steps")
    parser.add_argument("--batch", type=int, default=MANY, help="scenes of a batch")
    parser.add_argument("--backend", default="inductor", help="torch.compile's, for the part compile")
    parser.add_argument("--tiny", action="store_true", help="a tiny model in place of SDXL's size")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of device.json and of traces")
    add_device_options(parser)
    options = parser.parse_args(arguments)
    if unknown := set(options.parts.split(",")) - PARTS.keys():
        parser.error(f"there are no parts {', '.join(sorted(unknown))}; choose among {', '.join(PARTS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print and write everything; returns what the last line holds."""
    options = parse_arguments(arguments)
    device, dtype = chosen_device(options), chosen_dtype(options)
    settings = MethodSettings(num_inference_steps=options.steps)
    bench = Bench(device, dtype, options.tiny, settings, options.batch, options.backend, options.output)
    result = {**described(device, dtype), "tiny": options.tiny, "steps": options.steps}
    result |= measured(bench, options.parts.split(","))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "device.json").write_text(
        json.dumps(stamped(result, device=device, dtype=dtype), indent=1) + "\n"
    )
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
