"""Every Prometheus metric of a run, in one table, and the two ways to record them.

The coordinator owns the only :class:`PrometheusMetrics` of a run and exports it at one port; workers report to the
coordinator, not to Prometheus. Everything else records into whatever :class:`Metrics` it is handed, and the base class
records nothing, so a run without Prometheus neither imports it nor pays for it. Alert rules and dashboards may only use
names of this table (a test checks it). Names follow https://prometheus.io/docs/practices/naming: base units, ``_total``
for counters. Labels take few values: no subject, asset, prompt or worker process is ever a label.

This module imports neither torch nor ray.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from consistory_ray.engine.events import RunState
from consistory_ray.engine.faults import Fault
from consistory_ray.errors import InputError, Problem

if TYPE_CHECKING:
    from types import TracebackType

PREFIX = "consistory_"
DEFAULT_PORT = 9464
RUN_LABEL = "run"
LINGER_SECONDS = 35.0
"""How long a run that was scraped may wait at its end for the scrape of its totals: two usual intervals and a bit."""

_LINGER_STEP = 0.1

MetricType = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Label:
    """A label of a metric.

    Attributes:
        name: as in Prometheus.
        values: all values it may take; empty for names that only the machines at hand can tell (nodes, GPUs).
    """

    name: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table.

    Attributes:
        name: the full name as Prometheus shows it.
        type: counter, gauge or histogram.
        unit: what its numbers count.
        help: one sentence.
        labels: besides ``run``, the job's name, which every metric has.
        buckets: upper bounds, of a histogram.
    """

    name: str
    type: MetricType
    unit: str
    help: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()


KIND = Label("kind", ("anchor", "scene"))
BESIDE = ("score", "encode", "write")
"""Phases that pass beside the device."""
PHASE = Label("phase", ("load", "anchors", "scenes", "pass1", "pass2", "scene", "decode", *BESIDE, "other"))
REASON = Label("reason", tuple(fault.value for fault in Fault))
DEATH = Label("reason", tuple(fault.value for fault in Fault if fault.kills_worker))
WORKER_STATE = Label("state", ("starting", "idle", "busy", "draining"))
WAITS_FOR = Label("reason", ("placement", "cache-room"))
OUTCOME = Label("outcome", get_args(RunState))
DIRECTION = Label("direction", ("saved", "loaded", "transferred"))
NODE = Label("node")
GPU = Label("gpu")

BATCH_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 300.0, 600.0)
COMMIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

RUN_INFO = Metric(
    "consistory_run_info", "gauge", "", "1, with what the run renders.", (Label("model"), Label("version"))
)
RUN_ACTIVE = Metric("consistory_run_active", "gauge", "", "1 while the run is under way, 0 once it is over.")
RUN_OUTCOME = Metric(
    "consistory_run_outcome", "gauge", "", "1 for how the run ended, all 0 while it is under way.", (OUTCOME,)
)
RUN_START = Metric("consistory_run_start_timestamp_seconds", "gauge", "seconds", "When the run started, Unix time.")
OUTPUT_UNREACHABLE = Metric(
    "consistory_output_unreachable",
    "gauge",
    "",
    "1 from when the output was found out of reach until the next picture, else 0.",
)
LAST_PROGRESS = Metric(
    "consistory_last_progress_timestamp_seconds",
    "gauge",
    "seconds",
    "When an asset was last finished, or a worker became ready to make one, Unix time.",
)
ASSETS_PLANNED = Metric("consistory_assets_planned", "gauge", "assets", "Assets of the plan.", (KIND,))
ASSETS_SKIPPED = Metric(
    "consistory_assets_skipped", "gauge", "assets", "Assets that were there before the run started."
)
ASSETS_DONE = Metric("consistory_assets_done_total", "counter", "assets", "Assets rendered and written.", (KIND,))
ASSETS_FAILED = Metric("consistory_assets_failed_total", "counter", "assets", "Assets given up.", (REASON,))
ASSETS_IN_FLIGHT = Metric("consistory_assets_in_flight", "gauge", "assets", "Assets that workers have in hand.")
QUEUE_DEPTH = Metric("consistory_queue_assets", "gauge", "assets", "Assets that wait for a worker.")
RETRIES = Metric("consistory_retries_total", "counter", "attempts", "Attempts that were repeated.", (REASON,))
PICTURES_PER_SECOND = Metric(
    "consistory_pictures_per_second", "gauge", "pictures per second", "Pictures per second over the last minutes."
)
ETA = Metric(
    "consistory_eta_seconds", "gauge", "seconds", "Estimated time to the end of the run; NaN while nobody can tell."
)
BATCH_SECONDS = Metric(
    "consistory_batch_seconds", "histogram", "seconds", "Time of one batch in each phase.", (PHASE,), BATCH_BUCKETS
)
INDEX_COMMIT_SECONDS = Metric(
    "consistory_index_commit_seconds", "histogram", "seconds", "Time to write a part of the index.", (), COMMIT_BUCKETS
)
WORKERS_REQUESTED = Metric("consistory_workers_requested", "gauge", "workers", "Workers the run asked the cluster for.")
WORKERS = Metric(
    "consistory_workers",
    "gauge",
    "workers",
    "Workers there are; draining: they finish a batch and leave.",
    (WORKER_STATE,),
)
WORKERS_WAITING = Metric(
    "consistory_workers_waiting",
    "gauge",
    "workers",
    "Workers that are starting and have no place on a machine yet, or are idle for want of room for a cache.",
    (WAITS_FOR,),
)
WORKERS_LOST = Metric("consistory_workers_lost_total", "counter", "workers", "Workers that died.", (DEATH,))
WORKER_IDLE = Metric(
    "consistory_worker_idle_seconds_total", "counter", "seconds", "Time that workers' devices waited between batches."
)
WORKER_RESTARTS = Metric(
    "consistory_worker_restarts_total", "counter", "workers", "Workers that were started in place of a dead one."
)
GPU_MEMORY_USED = Metric("consistory_gpu_memory_used_bytes", "gauge", "bytes", "Used memory of a GPU.", (NODE, GPU))
GPU_MEMORY_SIZE = Metric("consistory_gpu_memory_size_bytes", "gauge", "bytes", "Memory of a GPU.", (NODE, GPU))
DEVICE_MEMORY_PEAK = Metric(
    "consistory_device_memory_peak_bytes",
    "gauge",
    "bytes",
    "Most device memory that a worker of a node has used for a batch.",
    (NODE,),
)
GPU_UTILIZATION = Metric(
    "consistory_gpu_utilization_ratio", "gauge", "ratio", "Share of time in which a GPU computes, 0 to 1.", (NODE, GPU)
)
GPU_SECONDS = Metric("consistory_gpu_seconds_total", "counter", "seconds", "GPU time the run's workers have held.")
COST_SPENT = Metric(
    "consistory_cost_spent", "gauge", "currency", "GPU time held so far, at the price per GPU-hour that was given."
)
COST_EXPECTED = Metric(
    "consistory_cost_expected", "gauge", "currency", "The same for the whole run; NaN while nobody can tell."
)
CACHE_BYTES = Metric("consistory_cache_bytes", "gauge", "bytes", "Anchor caches held in the object store.")
CACHE_MOVED = Metric(
    "consistory_cache_moved_bytes_total",
    "counter",
    "bytes",
    "Anchor caches saved, loaded, moved to a node.",
    (DIRECTION,),
)
STORE_USED = Metric(
    "consistory_object_store_used_bytes", "gauge", "bytes", "Used part of the object stores of all nodes together."
)
STORE_SIZE = Metric(
    "consistory_object_store_size_bytes", "gauge", "bytes", "Size of the object stores of all nodes together."
)
DISK_FREE = Metric(
    "consistory_disk_free_bytes",
    "gauge",
    "bytes",
    "Free space of the file system that a node spills and writes to; a volume's own limit on it cannot be seen.",
    (NODE,),
)
DISK_SIZE = Metric(
    "consistory_disk_size_bytes", "gauge", "bytes", "Size of the file system that a node spills and writes to.", (NODE,)
)

TABLE: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class Metrics:
    """Where a run's numbers go; this base class drops them."""

    def inc(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Add one observation to a histogram."""

    def forget(self, metric: Metric, **labels: str) -> None:
        """Stop exporting one combination of labels, such as those of a node that is gone."""


NO_METRICS = Metrics()


class PrometheusMetrics(Metrics):
    """Records in a registry of its own; thread-safe.

    Metrics whose labels take only listed values start at 0, so that rates and alerts see the first increment.

    Args:
        run: the job's name, the label ``run`` of every metric.
    """

    def __init__(self, run: str) -> None:
        import prometheus_client as client

        self._run = run
        self._registry = client.CollectorRegistry(auto_describe=True)
        kinds = {"counter": client.Counter, "gauge": client.Gauge, "histogram": client.Histogram}
        self._collectors: dict[Metric, Any] = {}
        for metric in TABLE:
            names = [RUN_LABEL, *(label.name for label in metric.labels)]
            buckets = {"buckets": metric.buckets} if metric.type == "histogram" else {}
            self._collectors[metric] = kinds[metric.type](
                metric.name, metric.help, names, registry=self._registry, **buckets
            )
            for values in _combinations(metric.labels):
                self._collectors[metric].labels(run, *values)

    def inc(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        self._child(metric, "counter", labels).inc(amount)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self._child(metric, "gauge", labels).set(value)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self._child(metric, "histogram", labels).observe(value)

    def forget(self, metric: Metric, **labels: str) -> None:
        values = self._values(metric, labels)
        try:
            self._collectors[metric].remove(*values)
        except KeyError:
            return  # it was never recorded

    def expose(self) -> str:
        """All metrics in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(_Exported(self._registry)).decode()

    def serve(self, port: int = DEFAULT_PORT, host: str = "127.0.0.1") -> MetricsServer:
        """Export the metrics at ``http://host:port/metrics`` until the server is closed.

        Args:
            port: 0 takes a free one.
            host: the address to bind; ``0.0.0.0`` lets other machines scrape.

        Raises:
            InputError: the address cannot be bound.
        """
        from prometheus_client import start_http_server

        exported = _Exported(self._registry)
        try:
            server, thread = start_http_server(port, host, exported)
        except OSError as error:
            fix = f"choose another port or address, or port 0 for none ({error.strerror or error})"
            raise InputError("the metrics cannot be exported", [Problem("metrics", f"{host}:{port}", fix)]) from error
        return MetricsServer(server, thread, exported)

    def _child(self, metric: Metric, wanted: MetricType, labels: dict[str, str]) -> Any:
        if metric.type != wanted:
            raise TypeError(f"{metric.name} is a {metric.type}, not a {wanted}")
        return self._collectors[metric].labels(*self._values(metric, labels))

    def _values(self, metric: Metric, labels: dict[str, str]) -> list[str]:
        if labels.keys() != {label.name for label in metric.labels}:
            raise TypeError(
                f"{metric.name} has the labels {[label.name for label in metric.labels]}, not {sorted(labels)}"
            )
        for label in metric.labels:
            if label.values and labels[label.name] not in label.values:
                raise ValueError(f"{metric.name}: {label.name} is one of {label.values}, not {labels[label.name]!r}")
        return [self._run, *(labels[label.name] for label in metric.labels)]


class MetricsServer:
    """A running exporter; a context manager that closes it."""

    def __init__(self, server: Any, thread: threading.Thread, exported: _Exported) -> None:
        self._server = server
        self._thread = thread
        self._exported = exported

    @property
    def port(self) -> int:
        """The port it listens at."""
        return int(self._server.server_port)

    def linger(self, seconds: float, leave: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the numbers as they are now have been scraped; not at all if nobody has scraped so far.

        Args:
            seconds: how long at most.
            leave: asked now and then; True ends the wait.

        Returns:
            Whether they were scraped.
        """
        before = self._exported.scrapes
        deadline = time.monotonic() + seconds
        while before and self._exported.scrapes == before and time.monotonic() < deadline and not leave():
            time.sleep(_LINGER_STEP)
        return self._exported.scrapes > before

    def close(self) -> None:
        """Stop listening and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Exported:
    """A registry without the ``_created`` series that the client adds to every counter and histogram.

    Attributes:
        scrapes: how often it was read from beginning to end.
    """

    def __init__(self, registry: Any) -> None:
        self._registry = registry
        self.scrapes = 0

    def collect(self) -> Iterator[Any]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
        self.scrapes += 1

    def restricted_registry(self, names: Iterable[str]) -> Any:
        return _Exported(self._registry.restricted_registry(names))


def series_names() -> set[str]:
    """Every name that a query may use: those of the table, and the three of each histogram."""
    names = set()
    for metric in TABLE:
        names.update(
            {f"{metric.name}_{part}" for part in ("bucket", "count", "sum")} if metric.buckets else {metric.name}
        )
    return names


def _combinations(labels: tuple[Label, ...]) -> list[tuple[str, ...]]:
    """All label values, or none where a label's values are not known beforehand."""
    combinations: list[tuple[str, ...]] = [()]
    for label in labels:
        combinations = [(*values, value) for values in combinations for value in label.values]
    return combinations
