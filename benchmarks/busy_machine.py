"""How much longer does a run take beside two processes that never rest, on a Ray that the run starts itself?

    python benchmarks/busy_machine.py

Renders a few pictures with the bundled model on a quiet machine, and again beside busy loops of nice 0. What bounds it
is the scheduler of the operating system: with fair shares and as many busy loops as cores a worker of one thread gets
half a core, so that 2x is what there is to be had. Workers at Ray's default niceness of 15 got about a twentieth.

The last line is JSON: seconds per picture quiet and busy (by the worker's own clock, without Ray's start), their ratio.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.events import AssetDone, Event
from consistory_ray.engine.options import RunOptions
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.plan.plan import make_plan


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--loops", type=int, default=2, help="busy processes")
    options = parser.parse_args(arguments)
    job = job_of(options.scenes, options.steps)
    quiet = seconds_per_picture(job)
    with busy(options.loops):
        beside = seconds_per_picture(job)
    measured = {"cores": os.cpu_count(), "loops": options.loops, "scenes": options.scenes, "steps": options.steps}
    times = {"seconds_quiet": round(quiet, 3), "seconds_busy": round(beside, 3), "ratio": round(beside / quiet, 2)}
    print(json.dumps(measured | times))


def job_of(scenes: int, steps: int) -> RenderJob:
    """A dragon in so many places."""
    places = [{"id": f"space-{number}", "prompt": "in space", "seed": number} for number in range(scenes)]
    subject = {"id": "dragon", "concept": "dragon", "style": "a drawing of", "subject": "a dragon"}
    anchored = {**subject, "anchors": ["in the forest", "on the beach"], "scenes": places}
    return parse_job({"name": "busy", "settings": {"num_inference_steps": steps}, "subjects": [anchored]})


def seconds_per_picture(job: RenderJob) -> float:
    """What a scene takes in a run of its own, whose Ray starts and ends with it."""
    seconds: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, AssetDone) and event.asset.kind == "scene":
            seconds.append(event.seconds)

    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(address="local", device="cpu", workers=1, cpus_per_worker=1, batch_size=2)
        run_plan(make_plan(job), folder, options, listen).raise_for_state()
    return sum(seconds) / len(seconds)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Beside so many processes that only count."""
    processes = [multiprocessing.get_context("fork").Process(target=_count, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _count() -> None:
    number = 0
    while True:
        number += 1


if __name__ == "__main__":
    main()
