"""The real Prometheus scrapes real runs, and its answers are the runs' true numbers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from consistory_ray.cli.app import app
from consistory_ray.jobs.job import RenderJob
from consistory_ray.output.index.index import read_index
from consistory_ray.watch.metrics import TABLE
from tests.operations.prometheus import Prometheus, free_port, running_prometheus

RULES = Path(__file__).resolve().parents[2] / "cluster" / "prometheus" / "rules.yml"

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed (Debian: apt-get install)"),
]


def render(job: RenderJob, folder: Path, port: int, *more: object) -> Result:
    path = folder / "job.json"
    path.write_text(job.model_dump_json(exclude_unset=True))
    options = ["--workers", 2, "--cpus-per-worker", 1, "--metrics-port", port, "--price-per-gpu-hour", 2.5, "--json"]
    words = ["render", path, "-o", folder / "out", "--no-gallery", *options, *more]
    return CliRunner().invoke(app, [str(word) for word in words])


def fake(**options: Any) -> tuple[str, ...]:
    return "--renderer", "consistory_ray.testing:FakeRenderer", "--renderer-options", json.dumps(options)


def summary_of(result: Result) -> dict[str, Any]:
    """The summary; Ray may have printed something about a dead worker before it."""
    content: dict[str, Any] = json.loads(result.stdout[result.stdout.index("{\n") :])
    return content


def check_totals(server: Prometheus, out: Path, summary: dict[str, Any], anchors: int) -> None:
    """What Prometheus says is what the summary and the index say."""
    rows = read_index(str(out)).to_pylist()
    done = {kind: sum(row["kind"] == kind and row["status"] == "ok" for row in rows) for kind in ("anchor", "scene")}
    assert server.by("kind", "consistory_assets_done_total") == done
    assert sum(done.values()) == summary["rendered"] + summary["found"]
    assert server.by("kind", "consistory_assets_planned") == {
        "anchor": anchors,
        "scene": summary["planned"] - anchors,
    }
    assert server.total("consistory_assets_failed_total") == summary["failed"]
    assert server.total("consistory_assets_skipped") == summary["found"]
    assert server.total("consistory_run_active") == 0
    outcomes = {state: float(state == summary["state"]) for state in ("complete", "failed", "interrupted")}
    assert server.by("outcome", "consistory_run_outcome") == outcomes
    assert server.total("consistory_eta_seconds") == 0
    assert server.total("consistory_queue_assets") == 0
    assert server.total("consistory_index_commit_seconds_count") >= 1


def test_queries_return_a_runs_true_totals(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    job = make_job(subjects=3, scenes=6, name="book")
    faults = {"cat-1/scene-2": "bad", "cat-2/scene-3": "exit-once", "cat-0/scene-1": "error-once"}
    port = free_port()
    with running_prometheus(tmp_path / "prometheus", port, RULES) as server:
        result = render(job, tmp_path, port, *fake(seconds=0.15, faults=faults, scratch=str(scratch)))
        assert result.exit_code == 1, result.output
        summary = summary_of(result)
        assert (summary["planned"], summary["rendered"], summary["failed"]) == (24, 23, 1)
        check_totals(server, tmp_path / "out", summary, anchors=6)
        assert server.by("reason", "consistory_assets_failed_total")["bad-asset"] == 1
        lost = server.by("reason", "consistory_workers_lost_total")
        assert {reason: count for reason, count in lost.items() if count} == {"worker-died": 1}
        assert server.total("consistory_worker_restarts_total") == 1
        assert server.by("reason", "consistory_retries_total")["error"] >= 1
        assert server.total("consistory_workers_requested") == 2
        assert server.query("max_over_time(consistory_run_active[15m])")[0]["value"][1] == "1"
        busy = server.query('max_over_time(consistory_workers{state="busy"}[15m])')
        assert 1 <= float(busy[0]["value"][1]) <= 2
        batches = server.by("phase", "consistory_batch_seconds_count")
        assert batches["pass1"] + batches["scenes"] >= 18 / 4 and batches["write"] > 0 and batches["other"] == 0
        assert server.total("consistory_batch_seconds_sum") > 0
        assert server.by("direction", "consistory_cache_moved_bytes_total")["saved"] >= 3 * 4096
        assert server.total("consistory_gpu_seconds_total") == 0
        scraped = {item["metric"]["__name__"] for item in server.query('{__name__=~"consistory_.+",run="book"}[15m]')}
        missing = {metric.name for metric in TABLE} - {re.sub("_(bucket|sum|count)$", "", name) for name in scraped}
        assert all("gpu" in name or "device" in name for name in missing), missing
        rules = server.query('{__name__=~"consistory:finished.*"}[15m]')
        assert rules, "the recording rules are evaluated"


def test_a_resumed_run_counts_what_it_skips(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    job = make_job(subjects=2, scenes=4, name="book")
    port = free_port()
    assert render(job, tmp_path, port, *fake(faults={"cat-1/scene-2": "bad"})).exit_code == 1
    with running_prometheus(tmp_path / "prometheus", port) as server:
        result = render(job, tmp_path, port, *fake(seconds=1.0))
        assert result.exit_code == 0, result.output
        assert server.total("consistory_assets_skipped") == 11
        assert server.total("consistory_assets_done_total") == 1
        assert server.by("direction", "consistory_cache_moved_bytes_total")["loaded"] == 4096


@pytest.mark.slow
def test_a_real_run_of_the_miniature(tmp_path: Path) -> None:
    subject = {"id": "fox", "concept": "fox", "style": "a drawing of", "subject": "a red fox"}
    scenes = ["in a meadow", "on a hill"]
    data = {
        "name": "miniature",
        "settings": {"num_inference_steps": 4, "torch_dtype": "float32"},
        "subjects": [{**subject, "anchors": ["in a forest", "in a town"], "scenes": scenes}],
    }
    port = free_port()
    with running_prometheus(tmp_path / "prometheus", port) as server:
        result = render(RenderJob.model_validate(data), tmp_path, port, "--workers", 1, "--device", "cpu")
        assert result.exit_code == 0, result.output
        check_totals(server, tmp_path / "out", summary_of(result), anchors=2)
        phases = server.by("phase", "consistory_batch_seconds_sum")
        assert all(phases[phase] > 0 for phase in ("pass1", "pass2", "decode", "encode", "write")), phases
        (info,) = server.query("last_over_time(consistory_run_info[15m])")
        assert info["metric"]["model"] == "miniature"
