"""Runs of the whole engine with real Ray workers, on this machine."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine_model.apart import Meter
from consistory_ray.engine.cluster.local_ray import start_local_ray
from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.events import AssetDone, Event, WorkerReady
from consistory_ray.engine.options import RunOptions
from consistory_ray.jobs.job import load_job
from consistory_ray.plan.plan import make_plan
from consistory_ray.testing import FakeRenderer, Span, read_trace

OBJECT_STORE = 200 << 20
PING_TRIES = 200


def fake_run(job: str, workers: int, batch_size: int, seconds: float, address: str | None) -> dict[str, float]:
    """A run with the fake renderer at ``seconds`` per picture, on a cluster that runs here already or on its own.

    Returns:
        ``pictures``, ``calls``; ``cpu`` of the coordinator in seconds, ``start_cpu`` of it before the first picture;
        ``wall`` and ``per_second``: from the first call of the last worker to join until the first worker is idle for
        good, and pictures per second meanwhile; ``busy``: share of that time that devices were at work; ``peak``:
        bytes, of the coordinator.
    """
    plan = make_plan(load_job(job))
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch, "trace")
        trace.mkdir()
        if address is None:
            start_local_ray(num_cpus=workers, object_store_memory=OBJECT_STORE)
        options = RunOptions(
            address=address,
            device="cpu",
            workers=workers,
            cpus_per_worker=1,
            batch_size=batch_size,
            renderer=FakeRenderer.factory(seconds=seconds, trace=str(trace)),
        )
        watch = _Watch()
        with Meter() as meter:
            watch.began = time.process_time()
            summary = run_plan(plan, f"{scratch}/out", options, watch)
        summary.raise_for_state()
        spans = [span for span in read_trace(trace) if span.kind != "load"]
    start, end = steady_window(spans)
    return {
        "workers": watch.ready,
        "pictures": summary.rendered,
        "calls": len(spans),
        "cpu": meter.cpu,
        "start_cpu": watch.first_picture - watch.began,
        "wall": end - start,
        "per_second": rate(spans, start, end),
        "busy": busy_share(spans, start, end),
        "peak": meter.peak,
    }


class _Watch:
    """Listens to a run."""

    def __init__(self) -> None:
        self.began = self.first_picture = 0.0
        self.ready = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, AssetDone) and not self.first_picture:
            self.first_picture = time.process_time()
        elif isinstance(event, WorkerReady):
            self.ready += 1


def steady_window(spans: Sequence[Span]) -> tuple[float, float]:
    """From when all workers have begun until the first one has done its last call."""
    pids = {span.pid for span in spans}
    first = {pid: min(span.start for span in spans if span.pid == pid) for pid in pids}
    last = {pid: max(span.end for span in spans if span.pid == pid) for pid in pids}
    return max(first.values()), min(last.values())


def busy_share(spans: Sequence[Span], start: float, end: float) -> float:
    """Share of the time from ``start`` to ``end`` that the workers' devices were at work; 0 if there was none."""
    worked = sum(max(0.0, min(span.end, end) - max(span.start, start)) for span in spans)
    pids = {span.pid for span in spans}
    return worked / (len(pids) * (end - start)) if end > start else 0.0


def rate(spans: Sequence[Span], start: float, end: float) -> float:
    """Pictures per second from ``start`` to ``end``; of a call that is only partly in there, that part counts."""
    if end <= start:
        return 0.0
    shares = ((min(span.end, end) - max(span.start, start)) / max(span.end - span.start, 1e-9) for span in spans)
    return sum(max(0.0, share) * span.assets for share, span in zip(shares, spans, strict=True)) / (end - start)


def round_trip_ms(address: str | None) -> float:
    """Median time from a call of an idle Ray actor to its answer, in milliseconds."""
    import ray

    if address is None:
        start_local_ray(num_cpus=1, object_store_memory=OBJECT_STORE)
    else:
        ray.init(address=address, log_to_driver=False)

    class Echo:
        def echo(self, value: Any) -> Any:
            return value

    actor: Any = ray.remote(Echo).remote()
    times = []
    for number in range(PING_TRIES):
        started = time.perf_counter()
        ray.get(actor.echo.remote(number))
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[PING_TRIES // 10 :])


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
