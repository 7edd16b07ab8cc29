"""From what a run tells to what Prometheus is told: events in, metrics out.

A run that nobody measures makes no :class:`Observation`; nothing here imports prometheus_client.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from consistory_ray.engine.events import (
    AnchorsReady,
    AssetDone,
    AssetFailed,
    BatchDone,
    Committed,
    Event,
    Paused,
    Pulse,
    Retried,
    RunFinished,
    RunStarted,
    RunState,
    Stopping,
    TakesWanted,
    WorkerLeaving,
    WorkerLost,
    WorkerReady,
    WorkerReleased,
    WorkersRequested,
)
from consistory_ray.engine.faults import Fault
from consistory_ray.engine.machine import MachineReading, MachineWatch, read_machine, watched_folders
from consistory_ray.errors import RunInterrupted
from consistory_ray.watch import metrics
from consistory_ray.watch.tally import Tally

if TYPE_CHECKING:
    from types import TracebackType

    from consistory_ray.plan.plan import Plan

DEFAULT_HOST = "127.0.0.1"
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Export:
    """Where and what a run exports.

    Attributes:
        port: None and 0 export nothing.
        host: the address to bind.
        price_per_gpu_hour: in any currency; None records no cost.
    """

    port: int | None = None
    host: str = DEFAULT_HOST
    price_per_gpu_hour: float | None = None


@contextmanager
def exported(
    export: Export, plan: Plan, url: str, gpus_per_worker: float, leave: Callable[[], bool] = lambda: False
) -> Iterator[Callable[[Event], None]]:
    """Export a run's metrics while inside, and a little longer where somebody scrapes, so that its totals are seen.

    Args:
        export: where and what.
        plan, url: what is rendered into what.
        gpus_per_worker: what each worker holds.
        leave: asked while waiting for the last scrape; True ends the wait.

    Yields:
        What to call with the run's events. It does nothing where nothing is exported.

    Raises:
        InputError: the port cannot be bound.
    """
    if not export.port:
        yield _ignore
        return
    record = metrics.PrometheusMetrics(plan.name)
    price, folders = export.price_per_gpu_hour, watched_folders(url)
    observation = Observation(record, plan, gpus_per_worker=gpus_per_worker, price_per_gpu_hour=price, folders=folders)
    with record.serve(export.port, export.host) as server:
        try:
            with observation:
                yield observation
        except Exception:  # a run that failed has totals, too, and an outcome
            server.linger(metrics.LINGER_SECONDS, leave)
            raise
        server.linger(metrics.LINGER_SECONDS, leave)


def _ignore(event: Event) -> None:
    """Nobody measures."""


class Observation:
    """Takes a run's events and records them; a context manager that records the end, however it comes.

    Args:
        record: where the numbers go.
        plan: what is rendered.
        gpus_per_worker: what each worker holds of the GPUs, if the run is on GPUs.
        price_per_gpu_hour: in any currency; None records no cost.
        folders: of this machine, whose disks are watched.
        read: reads this machine.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        record: metrics.Metrics,
        plan: Plan,
        *,
        gpus_per_worker: float = 1.0,
        price_per_gpu_hour: float | None = None,
        folders: Iterable[str] = (),
        read: Callable[[Iterable[str]], MachineReading] = read_machine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        self._plan = plan
        self._gpus_per_worker = gpus_per_worker
        self._price = price_per_gpu_hour
        self._watch = MachineWatch(folders, read, clock)
        self._own_node = ""
        self._clock = clock
        self._tally = Tally(clock)
        self._places: dict[str, str] = {}  # workers that are ready, and their nodes
        self._peaks: dict[str, int] = {}  # node -> bytes
        self._gpus_of: dict[str, set[str]] = {}  # node -> its GPUs that were recorded
        self._gpu_seconds = 0.0
        self._counted_until = clock()
        self._queued = 0
        self._leaving: set[str] = set()
        self._made = self._further = 0
        self._scenes = plan.scene_count + plan.take_count
        self._stopping = False
        self._ended = False

    def __call__(self, event: Event) -> None:
        """Record an event."""
        self._count_gpu_time()
        self._tally.take(event)
        if isinstance(event, AssetDone | AssetFailed):
            self._take_asset(event)
        elif isinstance(event, BatchDone):
            self._take_batch(event)
        elif isinstance(event, Pulse):
            self._take_pulse(event)
        elif isinstance(event, WorkersRequested | WorkerReady | WorkerLeaving | WorkerLost | WorkerReleased):
            self._take_worker(event)
        else:
            self._take_rest(event)

    def __enter__(self) -> Observation:
        record, plan = self._record, self._plan
        version = metadata.version("consistory-ray")
        record.set(metrics.RUN_INFO, 1, model=plan.model, version=version)
        record.set(metrics.RUN_START, time.time())
        record.set(metrics.LAST_PROGRESS, time.time())
        record.set(metrics.ASSETS_PLANNED, plan.anchor_count, kind="anchor")
        record.set(metrics.ASSETS_PLANNED, self._scenes, kind="scene")
        record.set(metrics.ETA, math.nan)
        record.set(metrics.RUN_ACTIVE, 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self._ended:
            self._end("interrupted" if isinstance(error, RunInterrupted | KeyboardInterrupt) else "failed")
        self._finish()

    def _take_asset(self, event: AssetDone | AssetFailed) -> None:
        if isinstance(event, AssetDone):
            self._made += 1
            self._record.set(metrics.OUTPUT_UNREACHABLE, 0)
            self._record.inc(metrics.ASSETS_DONE, kind=event.asset.kind)
        else:
            self._record.inc(metrics.ASSETS_FAILED, reason=_listed(event.fault))
        self._record.set(metrics.LAST_PROGRESS, time.time())
        self._forecast()

    def _take_batch(self, event: BatchDone) -> None:
        for phase, seconds in event.phases.items():
            known = phase if phase in metrics.PHASE.values else "other"
            self._record.observe(metrics.BATCH_SECONDS, seconds, phase=known)
        self._record.inc(metrics.WORKER_IDLE, max(0.0, event.idle))
        self._record.inc(metrics.CACHE_MOVED, event.cache_bytes, direction="transferred")
        node = self._places.get(event.worker)
        if event.device_memory is not None and node is not None:
            self._peaks[node] = max(self._peaks.get(node, 0), event.device_memory)
            self._record.set(metrics.DEVICE_MEMORY_PEAK, self._peaks[node], node=node)
        if event.machine is not None and node is not None:  # else its last worker is gone, and what it said forgotten
            self._take_machine(event.machine)

    def _take_pulse(self, event: Pulse) -> None:
        record = self._record
        self._queued = event.queued
        draining = event.workers if self._stopping else len(self._leaving)
        busy = max(0, event.busy - draining)  # one that leaves has a batch in hand, or is about to be gone
        idle = max(0, event.workers - draining - busy)
        states = {"starting": event.requested, "idle": idle, "busy": busy, "draining": draining}
        for state, count in states.items():
            record.set(metrics.WORKERS, count, state=state)
        record.set(metrics.WORKERS_WAITING, event.unplaced, reason="placement")
        record.set(metrics.WORKERS_WAITING, event.short_of_room, reason="cache-room")
        record.set(metrics.QUEUE_DEPTH, event.queued)
        record.set(metrics.CACHE_BYTES, event.live_cache_bytes)
        record.set(metrics.STORE_USED, event.store_used)
        record.set(metrics.STORE_SIZE, event.store_capacity)
        self._forecast()
        reading = self._watch.reading()
        if reading is not None:
            self._own_node = reading.node
            self._take_machine(reading)

    def _take_worker(self, event: WorkersRequested | WorkerReady | WorkerLeaving | WorkerLost | WorkerReleased) -> None:
        record = self._record
        if isinstance(event, WorkersRequested):
            record.set(metrics.WORKERS_REQUESTED, event.count)
        elif isinstance(event, WorkerReady):
            self._places[event.worker] = event.place.split("/")[0]
            self._gpu_seconds += event.seconds * self._gpus  # it held its share while it loaded the model
            record.inc(metrics.GPU_SECONDS, event.seconds * self._gpus)
            record.set(metrics.LAST_PROGRESS, time.time())
        elif isinstance(event, WorkerLeaving):
            self._leaving.add(event.worker)
        else:
            self._forget_worker(event.worker)
        if isinstance(event, WorkerLost):
            known = event.fault in metrics.DEATH.values  # else it never came up, which is no better
            record.inc(metrics.WORKERS_LOST, reason=event.fault if known else Fault.WORKER_DIED.value)
            if event.replaced:
                record.inc(metrics.WORKER_RESTARTS)

    def _forget_worker(self, worker: str) -> None:
        self._leaving.discard(worker)
        node = self._places.pop(worker, None)
        if node is not None and node not in self._places.values():
            self._peaks.pop(node, None)
            self._record.forget(metrics.DEVICE_MEMORY_PEAK, node=node)
            if node != self._own_node:
                self._forget_machine(node)

    def _forget_machine(self, node: str) -> None:
        for gpu in self._gpus_of.pop(node, ()):
            for metric in (metrics.GPU_MEMORY_USED, metrics.GPU_MEMORY_SIZE, metrics.GPU_UTILIZATION):
                self._record.forget(metric, node=node, gpu=gpu)
        for metric in (metrics.DISK_FREE, metrics.DISK_SIZE):
            self._record.forget(metric, node=node)

    def _take_rest(self, event: Event) -> None:
        record = self._record
        if isinstance(event, RunStarted):
            # after an outage it also finds what was counted when it was made
            record.set(metrics.ASSETS_SKIPPED, max(0, event.done - self._made))
            self._scenes = max(self._scenes, event.planned - self._plan.anchor_count)  # takes that people asked for
            record.set(metrics.ASSETS_PLANNED, self._scenes + self._further, kind="scene")
        elif isinstance(event, TakesWanted):
            self._further += len(event.takes)
            record.set(metrics.ASSETS_PLANNED, self._scenes + self._further, kind="scene")
        elif isinstance(event, Paused):
            for worker in list(self._places):
                self._forget_worker(worker)
            self._rest()
            record.set(metrics.ASSETS_IN_FLIGHT, 0)
            record.set(metrics.OUTPUT_UNREACHABLE, 1)
        elif isinstance(event, AnchorsReady):
            record.inc(metrics.CACHE_MOVED, event.cache_bytes, direction="saved" if event.made else "loaded")
        elif isinstance(event, Retried):
            record.inc(metrics.RETRIES, event.assets, reason=_listed(event.reason))
        elif isinstance(event, Committed):
            record.observe(metrics.INDEX_COMMIT_SECONDS, event.seconds)
        elif isinstance(event, Stopping):
            self._stopping = True
        elif isinstance(event, RunFinished):
            self._end(event.summary.state)
            self._finish()

    def _take_machine(self, reading: MachineReading) -> None:
        record, node = self._record, reading.node
        for gpu in reading.gpus:
            self._gpus_of.setdefault(node, set()).add(gpu.index)
            record.set(metrics.GPU_MEMORY_USED, gpu.memory_used, node=node, gpu=gpu.index)
            record.set(metrics.GPU_MEMORY_SIZE, gpu.memory_size, node=node, gpu=gpu.index)
            if gpu.utilization is not None:
                record.set(metrics.GPU_UTILIZATION, gpu.utilization, node=node, gpu=gpu.index)
        if reading.disk_size:
            record.set(metrics.DISK_FREE, reading.disk_free, node=node)
            record.set(metrics.DISK_SIZE, reading.disk_size, node=node)

    @property
    def _gpus(self) -> float:
        """GPUs that one worker holds."""
        return self._gpus_per_worker if self._tally.device == "cuda" else 0.0

    def _count_gpu_time(self) -> None:
        """Charge the workers that were there since the last event."""
        now = self._clock()
        seconds = (now - self._counted_until) * len(self._places) * self._gpus
        self._counted_until = now
        self._gpu_seconds += seconds
        self._record.inc(metrics.GPU_SECONDS, seconds)

    def _forecast(self) -> None:
        """Speed, time left and cost at that speed."""
        tally, record = self._tally, self._record
        left = tally.seconds_left
        record.set(metrics.PICTURES_PER_SECOND, tally.rate or 0.0)
        record.set(metrics.ASSETS_IN_FLIGHT, max(0, tally.left - self._queued))
        record.set(metrics.ETA, left if left is not None else math.nan)
        if self._price is not None:
            per_second = self._price / SECONDS_PER_HOUR
            record.set(metrics.COST_SPENT, self._gpu_seconds * per_second)
            to_come = left * len(self._places) * self._gpus if left is not None else math.nan
            record.set(metrics.COST_EXPECTED, (self._gpu_seconds + to_come) * per_second)

    def _end(self, state: RunState) -> None:
        self._ended = True
        self._record.set(metrics.RUN_OUTCOME, 1, outcome=state)

    def _rest(self) -> None:
        """There are no workers any more."""
        self._places.clear()
        self._leaving.clear()
        self._queued = 0
        self._forecast()
        record = self._record
        for state in metrics.WORKER_STATE.values:
            record.set(metrics.WORKERS, 0, state=state)
        for reason in metrics.WAITS_FOR.values:
            record.set(metrics.WORKERS_WAITING, 0, reason=reason)
        record.set(metrics.QUEUE_DEPTH, 0)
        record.set(metrics.CACHE_BYTES, 0)

    def _finish(self) -> None:
        """Totals stay; whatever speaks of the present goes to zero."""
        self._count_gpu_time()
        self._rest()
        record = self._record
        for metric in (
            metrics.RUN_ACTIVE,
            metrics.OUTPUT_UNREACHABLE,
            metrics.ETA,
            metrics.PICTURES_PER_SECOND,
            metrics.ASSETS_IN_FLIGHT,
        ):
            record.set(metric, 0)
        if self._price is not None:
            record.set(metrics.COST_EXPECTED, self._gpu_seconds * self._price / SECONDS_PER_HOUR)


def _listed(fault: str) -> str:
    """A reason that the metrics know."""
    return fault if fault in metrics.REASON.values else "error"
