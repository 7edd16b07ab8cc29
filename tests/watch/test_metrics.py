"""The metric table, and what is exported of it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from consistory_ray.errors import InputError
from consistory_ray.watch import metrics
from consistory_ray.watch.metrics import NO_METRICS, TABLE, Metric, PrometheusMetrics


def samples(text: str) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_is_in_the_table_once() -> None:
    assert len(TABLE) == len({metric.name for metric in TABLE}) > 30


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"consistory_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
    assert (metric.type == "counter") == metric.name.endswith("_total")
    assert (metric.type == "histogram") == bool(metric.buckets)
    assert not metric.name.endswith(("_count", "_sum", "_bucket", "_created"))
    if metric.unit in ("seconds", "bytes", "ratio"):
        assert f"_{metric.unit}" in metric.name, "the unit belongs into the name"
    assert metric.help.endswith(".")
    assert list(metric.buckets) == sorted(metric.buckets)


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_labels_take_few_values(metric: Metric) -> None:
    free = [label.name for label in metric.labels if not label.values]
    assert set(free) <= {"node", "gpu", "model", "version"}
    assert metrics.RUN_LABEL not in [label.name for label in metric.labels]


def test_reasons_are_the_engines_faults() -> None:
    faults = pytest.importorskip("consistory_ray.engine.faults")
    assert set(metrics.REASON.values) == {fault.value for fault in faults.Fault}
    assert set(metrics.DEATH.values) == {fault.value for fault in faults.Fault if fault.kills_worker}


def test_what_is_recorded_is_exported() -> None:
    record = PrometheusMetrics("storybook")
    record.inc(metrics.ASSETS_DONE, 3, kind="scene")
    record.inc(metrics.ASSETS_DONE, kind="scene")
    record.set(metrics.ETA, 12.5)
    record.set(metrics.GPU_UTILIZATION, 0.5, node="a", gpu="0")
    record.observe(metrics.BATCH_SECONDS, 7.0, phase="pass2")
    found = samples(record.expose())
    assert found["consistory_assets_done_total[('kind', 'scene'), ('run', 'storybook')]"] == 4
    assert found["consistory_eta_seconds[('run', 'storybook')]"] == 12.5
    assert found["consistory_gpu_utilization_ratio[('gpu', '0'), ('node', 'a'), ('run', 'storybook')]"] == 0.5
    assert found["consistory_batch_seconds_bucket[('le', '5.0'), ('phase', 'pass2'), ('run', 'storybook')]"] == 0
    assert found["consistory_batch_seconds_bucket[('le', '10.0'), ('phase', 'pass2'), ('run', 'storybook')]"] == 1
    assert found["consistory_batch_seconds_sum[('phase', 'pass2'), ('run', 'storybook')]"] == 7


def test_listed_label_values_start_at_zero() -> None:
    found = samples(PrometheusMetrics("storybook").expose())
    assert found["consistory_assets_failed_total[('reason', 'storage'), ('run', 'storybook')]"] == 0
    assert found["consistory_workers[('run', 'storybook'), ('state', 'busy')]"] == 0
    assert not any("gpu" in name and "node" in name for name in found)


def test_exported_series_are_those_the_table_promises() -> None:
    record = PrometheusMetrics("storybook")
    for metric in TABLE:
        labels = {label.name: (label.values or ("x",))[0] for label in metric.labels}
        {"counter": record.inc, "gauge": record.set, "histogram": record.observe}[metric.type](metric, 1.0, **labels)
    exported = {name.split("[")[0] for name in samples(record.expose())}
    assert exported == metrics.series_names()


def test_two_runs_in_one_process_do_not_mix() -> None:
    one, other = PrometheusMetrics("one"), PrometheusMetrics("other")
    one.inc(metrics.WORKER_RESTARTS)
    assert samples(one.expose())["consistory_worker_restarts_total[('run', 'one')]"] == 1
    assert samples(other.expose())["consistory_worker_restarts_total[('run', 'other')]"] == 0


def test_what_is_gone_is_forgotten() -> None:
    record = PrometheusMetrics("storybook")
    record.set(metrics.DISK_FREE, 1e9, node="a")
    record.forget(metrics.DISK_FREE, node="a")
    record.forget(metrics.DISK_FREE, node="never seen")
    assert 'node="a"' not in record.expose()


def test_misuse_is_an_error() -> None:
    record = PrometheusMetrics("storybook")
    with pytest.raises(TypeError, match="consistory_eta_seconds is a gauge, not a counter"):
        record.inc(metrics.ETA)
    with pytest.raises(TypeError, match=r"has the labels \['kind'\], not \[\]"):
        record.inc(metrics.ASSETS_DONE)
    with pytest.raises(ValueError, match=r"kind is one of .* not 'subject-17'"):
        record.inc(metrics.ASSETS_DONE, kind="subject-17")


def test_the_exporter_answers_and_frees_its_port() -> None:
    record = PrometheusMetrics("storybook")
    before = threading.active_count()
    with record.serve(port=0) as server:
        record.set(metrics.ETA, 3)
        port = server.port
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        assert samples(text)["consistory_eta_seconds[('run', 'storybook')]"] == 3
        assert "_created" not in text
        with pytest.raises(InputError, match=f"127.0.0.1:{port}"):
            record.serve(port=port)
    assert threading.active_count() == before
    with record.serve(port=port):
        pass


def test_without_prometheus_nothing_is_imported_or_kept() -> None:
    NO_METRICS.inc(metrics.ASSETS_DONE, kind="scene")
    NO_METRICS.set(metrics.ETA, 1)
    NO_METRICS.observe(metrics.BATCH_SECONDS, 1, phase="pass1")
    NO_METRICS.forget(metrics.DISK_FREE, node="a")
    code = (
        "import sys; from consistory_ray.watch.metrics import NO_METRICS, ETA; NO_METRICS.set(ETA, 1); "
        "print([name for name in ('prometheus_client', 'torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
