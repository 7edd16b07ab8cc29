"""Runs with LoRAs: rows and pictures tell them, another weight renders all again, stored subjects are held to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.engine.events import RunSummary
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.running import run_job
from consistory_ray.errors import JobError
from consistory_ray.output.assets import read_metadata
from consistory_ray.output.index.index import read_index
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.storage import open_output
from consistory_ray.testing import FakeRenderer
from consistory_ray.watch.status import plan_of_record
from tests.plan.test_loaded import lora


def job(*loras: Any, **fields: Any) -> dict[str, Any]:
    subject = {"id": "moss", "concept": "dragon", "subject": "a dragon", "anchors": ["in the forest"]}
    whole = {"name": "x", "model": "fake", "loras": list(loras), "subjects": [{**subject, "scenes": ["in space"]}]}
    return {**whole, **fields}


def run(job: dict[str, Any], out: Path) -> RunSummary:
    return run_job(job, out, RunOptions(workers=1, cpus_per_worker=1, renderer=FakeRenderer.factory()))


@pytest.mark.usefixtures("ray_cluster")
def test_what_was_loaded_is_told_and_decides_what_is_kept(tmp_path: Path) -> None:
    path, out = lora(tmp_path / "pixel.safetensors", width=2048), tmp_path / "out"
    settings = {"scheduler": "euler_a", "num_inference_steps": 25}
    mine = job({"path": path, "weight": 0.8}, vae="acme/vae", settings=settings)
    assert run(mine, out).rendered == 2
    for row in read_index(str(out)).to_pylist():
        (told,) = json.loads(row["loras"])
        assert (told["name"], told["path"], told["weight"], len(told["content"])) == ("pixel", path, 0.8, 64)
        assert row["scheduler"] == "euler_a"
        written = read_metadata((out / row["path"]).read_bytes())
        assert written is not None and written["loras"] == [told] and written["vae"] == "acme/vae"
    Path(path).unlink()
    record = read_run_record(str(out))
    assert record is not None and record.job["loras"][0]["sha256"] == told["content"]
    assert plan_of_record(record, open_output(out)).loaded.loras[0].content == told["content"]
    lora(tmp_path / "pixel.safetensors", width=2048)
    assert run(mine, out).rendered == 0
    assert run({**mine, "loras": [{"path": path, "weight": 0.9}]}, out).rendered == 2


@pytest.mark.usefixtures("ray_cluster")
def test_a_stored_subject_is_refused_by_a_model_with_other_loras(tmp_path: Path) -> None:
    path, out = lora(tmp_path / "pixel.safetensors", width=2048), tmp_path / "out"
    run(job({"path": path, "weight": 0.8}), out)
    again = {"subjects": [{"from": str(out / "anchors/moss"), "scenes": ["in the snow"]}]}
    with pytest.raises(JobError, match="made with other settings"):
        run(job({"path": path, "weight": 0.7}, **again), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    summary = run(job({"path": "acme/pixel", "weight": 0.8}, **again), tmp_path / "other")  # known by weights alone
    assert (summary.state, summary.rendered) == ("failed", 0)
    assert "stored subject" in summary.failures[0].error and "cannot be used" in summary.failures[0].error
    assert run(job({"path": path, "weight": 0.8}, **again), tmp_path / "same").rendered == 1
