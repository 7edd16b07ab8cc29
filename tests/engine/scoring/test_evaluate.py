"""Outputs are scored once, by workers that may die, in evaluations that may be killed; what changed is scored anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.scoring.evaluate import EvaluationOptions, evaluate_output
from consistory_ray.engine.scoring.work import Evaluation
from consistory_ray.errors import InputError, OutputBusyError
from consistory_ray.output.index.index import read_index
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.scores import list_score_parts, read_summary
from consistory_ray.output.storage import open_output
from consistory_ray.quality.scores import KEY
from tests.patience import PATIENCE

pytestmark = pytest.mark.usefixtures("ray_cluster")

MakeOutput = Callable[..., Path]
FAKE = "consistory_ray.testing:FakeMetric"
SUBJECTS, SCENES, ANCHORS = 3, 3, 2
PICTURES = SUBJECTS * (SCENES + ANCHORS)
RUN = RunOptions(workers=1, cpus_per_worker=1, device="cpu")
SCORES = (
    "fake_identity",
    "fake_among",
    "fake_background",
    "fake_alignment",
    "layout_displacement",
    "background_distance",
)


def evaluate(out: Path, **habits: Any) -> Evaluation:
    weights = {}
    if habits:
        file = out.parent / "fake.json"
        file.write_text(json.dumps(habits))
        weights = {"fake": str(file)}
    return evaluate_output(str(out), EvaluationOptions((FAKE,), weights, RUN))


def rows(out: Path) -> list[dict[str, Any]]:
    """Of all parts, as anybody reads them."""
    files = [str(out / path) for path in list_score_parts(open_output(str(out)))]
    found: list[dict[str, Any]] = ds.dataset(files).to_table().to_pylist()
    return found


def check_complete(out: Path) -> None:
    """Every picture has every score once, and of the file that is there."""
    there = {row["asset_id"]: row["sha256"] for row in read_index(str(out)).to_pylist()}
    found = Counter((row["asset_id"], row["metric"]) for row in rows(out))
    assert found == Counter({(asset_id, metric): 1 for asset_id in there for metric in SCORES})
    assert all(there[row["asset_id"]] == row["sha256"] for row in rows(out))


@pytest.fixture
def out(tmp_path: Path, make_output: MakeOutput) -> Path:
    return make_output(tmp_path / "out")


def test_an_output_is_scored_once(out: Path) -> None:
    trace = out.parent / "trace"
    first = evaluate(out, trace=str(trace))
    assert (first.state, first.pictures, first.found, first.scored) == ("complete", PICTURES, 0, PICTURES)
    assert first.without_mask == 0 and not first.failures
    check_complete(out)
    seen = len(trace.read_text().splitlines())
    again = evaluate(out, trace=str(trace))
    assert (again.state, again.found, again.scored) == ("complete", PICTURES, 0)
    assert len(trace.read_text().splitlines()) == seen, "pictures were looked at again"


def test_a_worker_that_dies_is_replaced(out: Path) -> None:
    marker = out.parent / "died"
    result = evaluate(out, exit_once=str(marker))
    assert marker.exists() and result.state == "complete" and result.scored == PICTURES
    check_complete(out)


def test_an_output_that_somebody_holds_is_refused(out: Path) -> None:
    with Lease.acquire(open_output(str(out)), "a run", ttl_seconds=60), pytest.raises(OutputBusyError):
        evaluate(out)
    assert not list_score_parts(open_output(str(out)))


def test_what_cannot_be_scored_is_said_before_ray_starts(out: Path, tmp_path: Path) -> None:
    for where, options, told in (
        (tmp_path / "nothing", EvaluationOptions((FAKE,), {}, RUN), "no pictures"),
        (out, EvaluationOptions(None, {}, RUN), "need a metric"),
        (out, EvaluationOptions(("clipp",), {}, RUN), "not known"),
        (out, EvaluationOptions((FAKE, FAKE), {}, RUN), "not clear"),
        (out, EvaluationOptions(("judge",), {"clip": "x"}, RUN), "weights of no metric"),
        (out, EvaluationOptions(("dinov2",), {}, RUN), "dinov2 needs weights"),
    ):
        with pytest.raises(InputError, match=told):
            evaluate_output(str(where), options)
    with pytest.raises(InputError, match="clip cannot be loaded"):  # in the worker, which loads it
        evaluate_output(str(out), EvaluationOptions(("clip",), {"clip": str(tmp_path)}, RUN))


def test_a_killed_evaluation_goes_on(out: Path) -> None:
    import ray

    trace, habits = out.parent / "trace", out.parent / "slow.json"
    habits.write_text(json.dumps({"seconds": 0.15, "trace": str(trace)}))
    command = [sys.executable, "-m", "consistory_ray.cli", "evaluate", str(out), "--metrics", FAKE, "--json"]
    command += ["--weights", f"fake={habits}", "--workers", "1", "--cpus-per-worker", "1", "--device", "cpu"]
    command += ["--address", ray.get_runtime_context().gcs_address]
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not list_score_parts(open_output(str(out))) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert first.poll() is None, "it was over before it could be killed"
    first.send_signal(signal.SIGKILL)
    first.wait()
    left = len({row["asset_id"] for row in rows(out)})
    assert 0 < left < PICTURES and read_summary(str(out)) is None
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert (told["state"], told["found"], told["scored"]) == ("complete", left, PICTURES - left)
    check_complete(out)
    keys = Counter(tuple(row[name] for name in KEY) for row in rows(out))
    assert max(keys.values()) == 1
