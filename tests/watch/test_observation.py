"""From events to metrics: what a run's story looks like to Prometheus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from consistory_ray.engine.events import (
    AnchorsReady,
    AssetDone,
    AssetFailed,
    BatchDone,
    Committed,
    Event,
    Notice,
    Paused,
    Pulse,
    Retried,
    RunFinished,
    RunStarted,
    RunState,
    RunSummary,
    Stopping,
    SubjectProgress,
    WorkerLost,
    WorkerReady,
    WorkerReleased,
    WorkersRequested,
)
from consistory_ray.engine.machine import (
    GpuReading,
    MachineReading,
    MachineWatch,
    read_gpus,
    read_machine,
    watched_folders,
)
from consistory_ray.errors import ConsistoryError, InputError, RunError, RunInterrupted
from consistory_ray.jobs.job import RenderJob
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.watch import metrics
from consistory_ray.watch.observation import Export, Observation, exported


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def machine(folders: Iterable[str]) -> MachineReading:
    return MachineReading("box", (GpuReading("0", 30, 80, 0.5), GpuReading("1", 40, 80, None)), 25, 100)


@pytest.fixture
def plan(make_job: Callable[..., RenderJob]) -> Plan:
    return make_plan(make_job(subjects=2, scenes=3))


@pytest.fixture
def record() -> metrics.PrometheusMetrics:
    return metrics.PrometheusMetrics("test")


def value(record: metrics.PrometheusMetrics, metric: metrics.Metric, suffix: str = "", **labels: str) -> float | None:
    found: float | None = record._registry.get_sample_value(metric.name + suffix, {"run": "test", **labels})
    return found


def watch(record: metrics.Metrics, plan: Plan, clock: Clock, **options: float) -> Observation:
    return Observation(record, plan, read=machine, clock=clock, **options)  # type: ignore[arg-type]


def story(plan: Plan, clock: Clock) -> Iterable[Event]:
    """Ten pictures, two of which were there; one fails, a worker dies and is replaced, another one is stuck."""
    assets = list(plan.assets())
    subjects = tuple(SubjectProgress(subject.subject_id, 5, 1) for subject in plan.subjects)
    yield RunStarted("test", "/out", subjects, 10, 2, 0)
    yield WorkersRequested(2, "cuda")
    yield Pulse(queued=8, workers=0, busy=0, requested=2, live_cache_bytes=0)
    clock.now += 10
    yield WorkerReady("worker-0", "node-a/17", 10.0)
    yield WorkerReady("worker-1", "node-b/18", 10.0)
    yield AnchorsReady("cat-0", True, 2.0, 1000)
    yield AnchorsReady("cat-1", False, 0.0, 500)
    yield Pulse(queued=4, workers=2, busy=1, requested=0, live_cache_bytes=1500, store_used=10, store_capacity=100)
    for asset in assets[:4]:
        clock.now += 1
        yield AssetDone(asset, 1.0, "worker-0")
    phases = {"load": 0.5, "pass1": 2.0, "pass2": 2.0, "decode": 0.2, "encode": 0.1, "write": 0.3, "blessing": 9.0}
    yield BatchDone("worker-0", "scenes", 4, phases, idle=0.25, cache_bytes=1000, device_memory=7000)
    yield BatchDone("worker-0", "scenes", 4, {"scenes": 4.0}, idle=0.25, device_memory=6000)
    yield Committed(4, 0.02)
    yield Retried("storage", 2)
    yield AssetFailed(assets[4], "AssetError: too dark", "bad-asset", "worker-0", 1)
    yield WorkerLost("worker-1", "ActorDiedError: its node has died", True, "node-died")
    clock.now += 6


def test_takes_that_people_asked_for_are_planned_once_the_output_was_read(
    plan: Plan, record: metrics.PrometheusMetrics
) -> None:
    with watch(record, plan, Clock()) as observation:
        assert value(record, metrics.ASSETS_PLANNED, kind="scene") == 6
        observation(RunStarted("test", "/out", (), 10 + 3, 2, 0))
        assert value(record, metrics.ASSETS_PLANNED, kind="scene") == 9
        assert value(record, metrics.ASSETS_PLANNED, kind="anchor") == 4


def test_a_run_is_counted(plan: Plan, record: metrics.PrometheusMetrics) -> None:
    clock = Clock()
    with watch(record, plan, clock, price_per_gpu_hour=3.6) as observation:
        for event in story(plan, clock):
            observation(event)
        observation(Pulse(queued=1, workers=1, busy=1, requested=1, live_cache_bytes=500))

        assert value(record, metrics.RUN_ACTIVE) == 1
        assert value(record, metrics.RUN_INFO, model="fake", version="0.1.0") == 1
        assert value(record, metrics.ASSETS_PLANNED, kind="anchor") == 4
        assert value(record, metrics.ASSETS_PLANNED, kind="scene") == 6
        assert value(record, metrics.ASSETS_SKIPPED) == 2
        done = {kind: value(record, metrics.ASSETS_DONE, kind=kind) for kind in ("anchor", "scene")}
        assert done == {"anchor": 2, "scene": 2}
        assert value(record, metrics.ASSETS_FAILED, reason="bad-asset") == 1
        assert value(record, metrics.RETRIES, reason="storage") == 2
        assert value(record, metrics.QUEUE_DEPTH) == 1
        assert value(record, metrics.ASSETS_IN_FLIGHT) == 10 - 2 - 4 - 1 - 1
        assert value(record, metrics.WORKERS_REQUESTED) == 2
        states = {state: value(record, metrics.WORKERS, state=state) for state in metrics.WORKER_STATE.values}
        assert states == {"starting": 1, "idle": 0, "busy": 1, "draining": 0}
        assert value(record, metrics.WORKERS_LOST, reason="node-died") == 1
        assert value(record, metrics.WORKER_RESTARTS) == 1
        assert value(record, metrics.WORKER_IDLE) == 0.5
        assert value(record, metrics.CACHE_BYTES) == 500
        moved = {way: value(record, metrics.CACHE_MOVED, direction=way) for way in metrics.DIRECTION.values}
        assert moved == {"saved": 1000, "loaded": 500, "transferred": 1000}
        assert value(record, metrics.INDEX_COMMIT_SECONDS, "_sum") == 0.02
        assert value(record, metrics.BATCH_SECONDS, "_sum", phase="pass1") == 2.0
        assert value(record, metrics.BATCH_SECONDS, "_count", phase="scenes") == 1
        assert value(record, metrics.BATCH_SECONDS, "_sum", phase="other") == 9.0, "a phase nobody listed is kept"
        assert value(record, metrics.DEVICE_MEMORY_PEAK, node="node-a") == 7000
        assert value(record, metrics.GPU_UTILIZATION, node="box", gpu="0") == 0.5
        assert value(record, metrics.GPU_UTILIZATION, node="box", gpu="1") is None
        assert value(record, metrics.GPU_MEMORY_USED, node="box", gpu="1") == 40
        assert value(record, metrics.DISK_FREE, node="box") == 25
        # two workers held a GPU for the 10 s of loading and 4 s more, then one of them for another 6 s
        assert value(record, metrics.GPU_SECONDS) == pytest.approx(2 * (10 + 4) + 6)
        assert value(record, metrics.COST_SPENT) == pytest.approx(34 * 3.6 / 3600)
        rate = 4 / 10
        assert value(record, metrics.PICTURES_PER_SECOND) == pytest.approx(rate)
        assert value(record, metrics.ETA) == pytest.approx(3 / rate)
        assert value(record, metrics.COST_EXPECTED) == pytest.approx((34 + 3 / rate) * 3.6 / 3600)

    assert value(record, metrics.RUN_ACTIVE) == 0
    assert value(record, metrics.ETA) == 0 and value(record, metrics.QUEUE_DEPTH) == 0
    assert value(record, metrics.WORKERS, state="busy") == 0
    assert value(record, metrics.ASSETS_DONE, kind="scene") == 2, "totals stay"


def test_what_stops_a_run_is_seen(plan: Plan, record: metrics.PrometheusMetrics) -> None:
    clock = Clock()
    with pytest.raises(RunError), watch(record, plan, clock) as observation:
        observation(WorkersRequested(2, "cpu"))
        observation(WorkerReady("worker-0", "node-a/17", 10.0))
        observation(Stopping("SIGTERM", 2))
        observation(Pulse(queued=8, workers=1, busy=1, requested=0, live_cache_bytes=0))
        assert value(record, metrics.WORKERS, state="draining") == 1
        assert value(record, metrics.WORKERS, state="busy") == 0
        raise RunError("no worker is left")
    assert value(record, metrics.RUN_ACTIVE) == 0
    assert value(record, metrics.GPU_SECONDS) == 0, "a CPU costs no GPU time"
    assert value(record, metrics.COST_SPENT) == 0


def test_the_time_left_is_not_zero_while_nobody_can_tell(plan: Plan, record: metrics.PrometheusMetrics) -> None:
    clock = Clock()
    with watch(record, plan, clock, price_per_gpu_hour=3.6) as observation:
        assert math.isnan(value(record, metrics.ETA) or 0)
        told = []
        for event in story(plan, clock):
            observation(event)
            told.append((type(event), value(record, metrics.ETA) or 0))
            if isinstance(event, Pulse):
                unknown = math.isnan(value(record, metrics.ETA) or 0)
                assert math.isnan(value(record, metrics.COST_EXPECTED) or 0) == unknown
        first = [kind for kind, _ in told].index(AssetDone)
        assert all(math.isnan(left) for _, left in told[:first]), "no picture yet"
        assert all(left > 0 for _, left in told[first:])
        clock.now += 600  # nothing has come for so long that its speed is unknown again
        observation(Pulse(queued=1, workers=1, busy=1, requested=1, live_cache_bytes=500))
        assert math.isnan(value(record, metrics.ETA) or 0)
    assert value(record, metrics.ETA) == 0


def outcome(record: metrics.PrometheusMetrics) -> list[str]:
    return [state for state in metrics.OUTCOME.values if value(record, metrics.RUN_OUTCOME, outcome=state) == 1]


@pytest.mark.parametrize("state", ["complete", "failed", "interrupted"])
def test_how_a_run_ended_is_told(plan: Plan, record: metrics.PrometheusMetrics, state: RunState) -> None:
    with watch(record, plan, Clock()) as observation:
        assert outcome(record) == []
        observation(RunFinished(RunSummary("test", "/out", state, 10, 0, 10, 0, 1.0)))
    assert outcome(record) == [state]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RunError("no worker is left"), "failed"),
        (ZeroDivisionError(), "failed"),
        (RunInterrupted("stopped while another run held the output"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_how_a_run_broke_off_is_told(
    plan: Plan, record: metrics.PrometheusMetrics, error: BaseException, expected: str
) -> None:
    with pytest.raises(type(error)), watch(record, plan, Clock()):
        raise error
    assert outcome(record) == [expected]


@pytest.mark.parametrize("error", [None, RunError("no worker is left"), ZeroDivisionError()])
def test_the_outcome_waits_for_a_scrape_whatever_the_end(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(metrics.MetricsServer, "linger", lambda self, seconds, leave: seen.append(seconds))
    monkeypatch.setattr(
        metrics.PrometheusMetrics,
        "serve",
        lambda self, port, host: metrics.MetricsServer(*[None] * 3),  # type: ignore[arg-type]
    )
    monkeypatch.setattr(metrics.MetricsServer, "close", lambda self: None)
    try:
        with exported(Export(9464), plan, "/out", 1.0):
            if error is not None:
                raise error
    except (ConsistoryError, ZeroDivisionError) as raised:
        assert raised is error
    assert seen == [metrics.LINGER_SECONDS]


def test_one_worker_whose_machine_goes_is_draining(plan: Plan, record: metrics.PrometheusMetrics) -> None:
    """From the workforce that lets it go to the metric; the others go on."""
    workforce = pytest.importorskip("consistory_ray.engine.dispatching.workforce")
    from consistory_ray.engine.options import RunOptions

    observation = watch(record, plan, Clock())
    actor = SimpleNamespace(drain=SimpleNamespace(remote=lambda: None))
    workers = workforce.Workforce(
        SimpleNamespace(retire_worker=lambda name: None),
        SimpleNamespace(actor=lambda name: actor),
        SimpleNamespace(emit=observation),
        RunOptions(),
        "/out",
    )
    for worker in ("worker-0", "worker-1", "worker-2"):
        observation(WorkerReady(worker, f"node-{worker[-1]}/17", 1.0))
        workers.ready.add(worker)
    workers.leave("worker-1", "its machine is going")
    observation(Pulse(queued=8, workers=3, busy=2, requested=1, live_cache_bytes=0))
    states = {state: value(record, metrics.WORKERS, state=state) for state in metrics.WORKER_STATE.values}
    assert states == {"starting": 1, "idle": 1, "busy": 1, "draining": 1}
    observation(WorkerReleased("worker-1", "its machine is going"))
    observation(Pulse(queued=8, workers=2, busy=1, requested=1, live_cache_bytes=0))
    states = {state: value(record, metrics.WORKERS, state=state) for state in metrics.WORKER_STATE.values}
    assert states == {"starting": 1, "idle": 1, "busy": 1, "draining": 0}


def test_workers_that_let_others_go_first_are_told_of_once() -> None:
    workforce = pytest.importorskip("consistory_ray.engine.dispatching.workforce")
    import os

    from consistory_ray.engine.options import RunOptions
    from consistory_ray.engine.workers.worker import Hello

    events: list[Event] = []
    workers = workforce.Workforce(
        SimpleNamespace(add_worker=lambda *given, **more: None),
        SimpleNamespace(deaths=lambda name: 0, ready=lambda name: None),
        SimpleNamespace(emit=events.append, fingerprint="f"),
        RunOptions(),
        "/out",
    )
    for number, niceness in enumerate((os.nice(0), 15, 15)):
        workers._tell(Hello(f"node-{number}/17", "f", 1.0, True, niceness=niceness))
    (told,) = (event.message for event in events if isinstance(event, Notice))
    assert "node-1/17 runs at nice 15" in told and "RAY_worker_niceness=0" in told


def test_machines_of_workers_are_read_until_their_last_worker_is_gone(
    plan: Plan, record: metrics.PrometheusMetrics
) -> None:
    reading = MachineReading("node-a", (GpuReading("0", 60, 80, 0.9),), 7, 10)
    observation = watch(record, plan, Clock())
    for worker in ("worker-0", "worker-1"):
        observation(WorkerReady(worker, "node-a/17", 1.0))
    observation(BatchDone("worker-0", "scenes", 4, {}, machine=reading))
    observation(WorkerLost("worker-0", "gone", False))
    assert value(record, metrics.GPU_MEMORY_USED, node="node-a", gpu="0") == 60
    assert value(record, metrics.GPU_UTILIZATION, node="node-a", gpu="0") == 0.9
    assert value(record, metrics.DISK_FREE, node="node-a") == 7
    observation(WorkerLost("worker-1", "gone", False))
    observation(BatchDone("worker-1", "scenes", 4, {}, machine=reading))  # what was still under way
    for metric in (metrics.GPU_MEMORY_USED, metrics.GPU_MEMORY_SIZE, metrics.GPU_UTILIZATION):
        assert value(record, metric, node="node-a", gpu="0") is None
    assert value(record, metrics.DISK_FREE, node="node-a") is None


def test_the_coordinators_machine_is_read_on_without_workers(plan: Plan, record: metrics.PrometheusMetrics) -> None:
    observation = watch(record, plan, Clock())
    observation(WorkerReady("worker-0", "box/17", 1.0))
    observation(Pulse(queued=8, workers=1, busy=1, requested=0, live_cache_bytes=0))
    observation(WorkerLost("worker-0", "gone", False))
    assert value(record, metrics.GPU_MEMORY_USED, node="box", gpu="0") == 30
    assert value(record, metrics.DISK_FREE, node="box") == 25


def test_a_machine_is_read_every_ten_seconds() -> None:
    clock = Clock()
    own = MachineWatch([], machine, clock)
    read = []
    for _ in range(25):
        read.append(own.reading() is not None)
        clock.now += 1
    assert [second for second, done in enumerate(read) if done] == [0, 10, 20]


@pytest.mark.parametrize("fault", ["worker-died", "node-died", "stuck", "out-of-memory"])
def test_deaths_by_fault(plan: Plan, record: metrics.PrometheusMetrics, fault: str) -> None:
    watch(record, plan, Clock())(WorkerLost("worker-0", "gone", False, fault))
    expected = fault if fault in metrics.DEATH.values else "worker-died"
    assert value(record, metrics.WORKERS_LOST, reason=expected) == 1
    assert value(record, metrics.WORKER_RESTARTS) == 0


def test_an_outage_is_seen_and_totals_stay_true(plan: Plan, record: metrics.PrometheusMetrics) -> None:
    """It finds one picture that was never reported, and lost another one."""
    clock = Clock()
    assets, events = list(plan.assets()), list(story(plan, clock))
    subjects = tuple(SubjectProgress(subject.subject_id, 5, 3) for subject in plan.subjects)
    with watch(record, plan, clock) as observation:
        for event in events:
            observation(event)
        assert value(record, metrics.OUTPUT_UNREACHABLE) == 0
        observation(Paused("503", 5.0, 1800.0))
        assert value(record, metrics.OUTPUT_UNREACHABLE) == 1
        states = {state: value(record, metrics.WORKERS, state=state) for state in metrics.WORKER_STATE.values}
        assert set(states.values()) == {0} and value(record, metrics.QUEUE_DEPTH) == 0
        held = value(record, metrics.GPU_SECONDS)
        clock.now += 1000
        observation(RunStarted("test", "/out", subjects, 10, 2 + 4 + 1, 1))
        assert value(record, metrics.OUTPUT_UNREACHABLE) == 1, "until there is a picture"
        assert value(record, metrics.GPU_SECONDS) == held, "nobody held a GPU meanwhile"
        assert value(record, metrics.ASSETS_SKIPPED) == 3
        observation(WorkerReady("worker-0", "node-a/17", 10.0))
        for asset in assets[7:]:
            observation(AssetDone(asset, 1.0, "worker-0"))
        assert value(record, metrics.ASSETS_IN_FLIGHT) == 0
        assert value(record, metrics.OUTPUT_UNREACHABLE) == 0
        done = sum(value(record, metrics.ASSETS_DONE, kind=kind) or 0 for kind in ("anchor", "scene"))
        assert done + 3 == 10
        observation(Paused("503 again", 5.0, 1800.0))
    assert value(record, metrics.OUTPUT_UNREACHABLE) == 0, "it waits no more"


def test_every_event_is_understood_without_prometheus(plan: Plan) -> None:
    clock = Clock()
    with watch(metrics.NO_METRICS, plan, clock) as observation:
        for event in story(plan, clock):
            observation(event)


def test_nothing_is_exported_unless_asked_for(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PrometheusMetrics", lambda run: pytest.fail("nobody asked"))
    for port in (None, 0):
        with exported(Export(port), plan, "/out", 1.0) as observe:
            for event in story(plan, Clock()):
                observe(event)


def test_a_taken_port_is_told_before_anything_is_rendered(plan: Plan, record: metrics.PrometheusMetrics) -> None:
    with record.serve(port=0) as server:
        taken = exported(Export(server.port), plan, "/out", 1.0)
        with pytest.raises(InputError, match=f"127.0.0.1:{server.port}"), taken:
            pytest.fail("the port is taken")


def test_this_machine(tmp_path: Path) -> None:
    reading = read_machine([str(tmp_path), str(tmp_path / "nothing")])
    assert 0 < reading.disk_free <= reading.disk_size and reading.node
    assert read_machine([]).disk_size == 0
    for gpu in read_gpus():
        assert 0 <= gpu.memory_used <= gpu.memory_size


def test_watched_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/ray")
    assert watched_folders("s3://bucket/run") == ("/ray",)
    assert watched_folders(str(tmp_path / "not" / "yet")) == ("/ray", str(tmp_path))
