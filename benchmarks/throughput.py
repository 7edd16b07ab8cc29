"""How many pictures a second do real workers make, how does that scale, and where does their time go?

    python benchmarks/throughput.py                                  # all GPUs of this machine: 1, 2, 4, ... workers
    python benchmarks/throughput.py --model MODEL --scenes 32 --workers 1,8
    python benchmarks/throughput.py --device cpu --model miniature --steps 4 --scenes 2 --subjects 1 --workers 1
    python benchmarks/throughput.py --address HOST:PORT --workers 8,16,32

Each number of workers is one run in a process of its own: ``--subjects`` subjects for each worker, ``--scenes`` scenes
of each, two anchors besides (so that work grows with the workers). Rates count anchors and scenes, from when the last
worker has loaded the model until the last picture is written; the first calls are in there, with what they compile and
allocate. What bounds a GPU worker is arithmetic: ``cost.py`` says how many FLOPs a picture takes. On CPU workers have
one thread each and share the machine's memory bandwidth.

A worker's time is split as its engine reports it, per picture: ``anchors`` and ``scenes`` (denoising), ``decode`` (and
whatever else follows the last step), ``load`` (of anchor caches), ``idle`` (between two batches); these follow one
another. ``encode`` and ``write`` run beside them on other threads.

Energy is what NVML counts for the GPUs of this machine (``pip install nvidia-ml-py``), from the same start; with
workers on other machines it would not be all of it, and is left out.

The last line of stdout is JSON, also written to ``results/throughput.json``:

    runs     for each number of workers: pictures, seconds, pictures_per_second, per_worker, efficiency (per_worker over
             that of the first run), split (seconds per picture), idle_share, joules_per_picture, device_memory_gb,
             cache_mb_per_picture (fetched by workers)
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.engine_model.apart import apart
from benchmarks.model_options import DTYPES, say
from benchmarks.result_stamp import stamped
from consistory_ray.engine.cluster.local_ray import start_local_ray
from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.events import BatchDone, Event, WorkerReady
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.workers.renderer import consistory_renderer
from consistory_ray.jobs.job import RenderJob
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.testing import FakeRenderer

RESULTS = Path(__file__).parent / "results"
BESIDE = ("encode", "write")
STEPPING = ("anchors", "scenes", "pass1", "pass2")
PLACES = ("in the forest", "on the beach", "in the snow", "in the mountains", "in the city", "at night")


@dataclass(frozen=True)
class Settings:
    """What is rendered, and on what; fields are the options of the command line."""

    model: str = "miniature"
    device: str = "auto"
    dtype: str = "auto"
    subjects: int = 2
    scenes: int = 16
    steps: int | None = None
    size: int | None = None
    batch_size: int | None = None
    address: str | None = None
    fake_seconds: float | None = None

    def plan(self, workers: int) -> Plan:
        """The work for so many workers."""
        subjects = [
            {
                "id": f"dragon-{number}",
                "concept": "dragon",
                "style": "a drawing of",
                "subject": "a dragon",
                "anchors": [{"prompt": place, "seed": number} for place in PLACES[:2]],
                "scenes": [
                    {"prompt": PLACES[scene % len(PLACES)], "id": f"scene-{scene}", "seed": 1000 * number + scene}
                    for scene in range(self.scenes)
                ],
            }
            for number in range(workers * self.subjects)
        ]
        chosen = {"num_inference_steps": self.steps, "height": self.size, "width": self.size}
        settings: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
        settings["torch_dtype"] = self.dtype
        job = {"name": "throughput", "model": self.model, "settings": settings, "subjects": subjects}
        return make_plan(RenderJob.model_validate(job))


@dataclass
class Watch:
    """What a run tells about its workers."""

    batches: list[BatchDone] = field(default_factory=list)
    ready: set[str] = field(default_factory=set)
    all_ready: float = 0.0
    meter: Energy | None = None
    metered: bool = False

    def __call__(self, event: Event) -> None:
        """Listen."""
        if isinstance(event, WorkerReady):
            self.ready.add(event.worker)
            self.all_ready = time.perf_counter()
            self.meter = Energy.of_this_machine() if self.metered else None
        elif isinstance(event, BatchDone):
            self.batches.append(event)

    def split(self) -> dict[str, float]:
        """Seconds by what a worker's time went into; see the module."""
        seconds = defaultdict[str, float](float, idle=0.0)
        for batch in self.batches:
            seconds["idle"] += batch.idle
            for phase, spent in batch.phases.items():
                seconds[batch.kind if phase in STEPPING else phase] += spent
        return dict(seconds)


class Energy:
    """Joules that the GPUs of this machine have used since it was made."""

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
        self._start = self._total()

    @classmethod
    def of_this_machine(cls) -> Energy | None:
        """A meter, or None where NVML or its counter is missing."""
        try:
            import pynvml  # type: ignore[import-untyped]
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return cls(pynvml)
        except pynvml.NVMLError as error:
            say(f"no energy: {error}")
            return None

    @property
    def joules(self) -> float:
        """So far."""
        return self._total() - self._start

    def _total(self) -> float:
        return float(sum(map(self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handles))) / 1e3


def measure(settings: Settings, workers: int) -> dict[str, Any]:
    """One run; to be called in a process of its own.

    Raises:
        RunError: pictures failed.
    """
    if settings.address is None and not ray.is_initialized():
        start_local_ray(**({"num_cpus": workers} if settings.device == "cpu" else {}))
    fake = settings.fake_seconds
    device: Any = settings.device
    options = RunOptions(
        address=settings.address,
        device=device,
        workers=workers,
        min_workers=workers,
        batch_size=settings.batch_size,
        cpus_per_worker=1 if settings.device == "cpu" else None,
        renderer=consistory_renderer if fake is None else FakeRenderer.factory(seconds=fake),
    )
    watch = Watch(metered=settings.device != "cpu" and settings.address is None)
    with tempfile.TemporaryDirectory() as output:
        summary = run_plan(settings.plan(workers), output, options, watch)
        ended, joules = time.perf_counter(), watch.meter.joules if watch.meter is not None else None
    summary.raise_for_state()
    return result(watch, len(watch.ready), summary.rendered, ended - watch.all_ready, joules)


def result(watch: Watch, workers: int, pictures: int, seconds: float, joules: float | None) -> dict[str, Any]:
    """What a run comes to, for JSON."""
    split = watch.split()
    device = sum(spent for phase, spent in split.items() if phase not in (*BESIDE, "idle"))
    memory = max((batch.device_memory or 0 for batch in watch.batches), default=0)
    return {
        "workers": workers,
        "pictures": pictures,
        "seconds": round(seconds, 3),
        "pictures_per_second": round(pictures / seconds, 4),
        "per_worker": round(pictures / seconds / workers, 4),
        "split": {phase: round(spent / pictures, 5) for phase, spent in sorted(split.items())},
        "idle_share": round(split["idle"] / max(device + split["idle"], 1e-9), 4),
        "joules_per_picture": None if joules is None else round(joules / pictures, 2),
        "device_memory_gb": round(memory / 1e9, 3) or None,
        "cache_mb_per_picture": round(sum(batch.cache_bytes for batch in watch.batches) / 1e6 / pictures, 4),
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Settings()
    parser.add_argument("--model", default=default.model, help="'miniature', a hub id or a pipeline folder")
    parser.add_argument("--device", default=default.device, choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", default=default.dtype, choices=DTYPES, help="auto: float16 on GPUs, else float32")
    parser.add_argument("--workers", help="numbers of workers, such as 1,2,4,8 (powers of two up to the GPUs here)")
    parser.add_argument("--subjects", type=int, default=default.subjects, help="for each worker")
    parser.add_argument("--scenes", type=int, default=default.scenes, help="of each subject")
    parser.add_argument("--steps", type=int, help="denoising steps (the model's)")
    parser.add_argument("--size", type=int, help="picture size in pixels (the model's)")
    parser.add_argument("--batch-size", type=int, help="scenes rendered together (auto)")
    parser.add_argument("--address", help="a Ray cluster (one on this machine)")
    parser.add_argument("--fake-seconds", type=float, help="measure the engine: a fake renderer, so long a picture")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for throughput.json")
    return parser.parse_args(arguments)


def worker_counts(text: str | None, gpus: int) -> list[int]:
    """Those asked for, or 1, 2, 4, … and all GPUs."""
    if text:
        return [int(part) for part in text.split(",")]
    return sorted({*(2**power for power in range(gpus.bit_length()) if 2**power <= gpus), max(1, gpus)})


def gpus_here() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_name() -> str | None:
    """What the first GPU of this machine is called; None where there is none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure each number of workers, print it, and keep it in ``--out``."""
    options = parse_arguments(arguments)
    names = (name for name in Settings.__dataclass_fields__)
    settings = Settings(**{name: getattr(options, name) for name in names})
    runs: list[dict[str, Any]] = []
    for workers in worker_counts(options.workers, 0 if settings.device == "cpu" else gpus_here()):
        run = apart(measure, settings, workers)
        run["efficiency"] = round(run["per_worker"] / (runs[0] if runs else run)["per_worker"], 4)
        runs.append(run)
        say(
            f"{run['workers']} worker(s): {run['pictures_per_second']} pictures/s, efficiency {run['efficiency']:.1%}, "
            f"idle {run['idle_share']:.1%}; seconds per picture: {run['split']}"
        )
    chosen = {
        name: getattr(settings, name) for name in ("model", "device", "dtype", "subjects", "scenes", "steps", "size")
    }
    found = {**chosen, "gpu": gpu_name() if settings.device != "cpu" else None, "runs": runs}
    line = json.dumps(found)
    options.out.mkdir(parents=True, exist_ok=True)
    on_gpu = found["gpu"] is not None
    told = stamped(found, device="cuda" if on_gpu else "cpu", dtype=settings.dtype)
    (options.out / "throughput.json").write_text(json.dumps(told) + "\n")
    print(line)
    return found


if __name__ == "__main__":
    main()
