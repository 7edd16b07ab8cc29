"""Runs whose pictures are led by hints: the output keeps the hints, and tells of each picture what has led it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consistory_ray.engine.events import RunSummary
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.running import run_job
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.output.assets import read_metadata
from consistory_ray.output.index.index import read_index
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.verify import verify
from consistory_ray.plan.plan import make_plan
from consistory_ray.testing import FakeRenderer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hints"
    folder.mkdir()
    for name, grey in (("sitting", 10), ("asleep", 250)):
        buffer = io.BytesIO()
        Image.new("L", (16, 16), grey).save(buffer, "PNG")
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
    return folder


def job(folder: Path, **changes: Any) -> RenderJob:
    anchors = [{"prompt": "in the forest", "control": f"{folder}/sitting.png"}, "on the beach"]
    led = {"id": "led", "concept": "cat", "subject": "a cat", "anchors": anchors, "poses": str(folder)}
    led |= {"scenes": ["in space", "in the snow"]}
    mixed = {"id": "mixed", "concept": "dog", "subject": "a dog", "anchors": ["in the forest"]}
    hint = {"image": f"{folder}/asleep.png", "scale": 0.5, "net": "second"}
    mixed |= {"scenes": ["in space", {"prompt": "in the snow", "control": [f"{folder}/sitting.png", hint]}, "at sea"]}
    nets = ["acme/first", {"model": "acme/second", "name": "second"}]
    return parse_job({"name": "poses", "model": "fake", "controlnets": nets, "subjects": [led, mixed], **changes})


def run(job: RenderJob, out: Path, **fake: Any) -> RunSummary:
    options = RunOptions(workers=1, cpus_per_worker=1, batch_size=3, renderer=FakeRenderer.factory(**fake))
    return run_job(job, out, options)


def corner(path: Path) -> list[int]:
    """The first grey of each corner that a hint may be drawn into."""
    with Image.open(path) as image:
        return [int(np.asarray(image)[4, column, 0]) for column in (4, 12)]


@pytest.mark.usefixtures("ray_cluster")
def test_led_pictures_are_made_and_told_of(folder: Path, tmp_path: Path) -> None:
    out, read = tmp_path / "out", job(folder)
    assert run(read, out).state == "complete"
    plan = make_plan(read)
    assert len(list((out / "inputs").iterdir())) == 2
    assert corner(out / "images/led/in-space.sitting.png")[0] == 10
    assert corner(out / "images/led/in-the-snow.asleep.png")[0] == 250
    assert corner(out / "images/mixed/in-the-snow.png") == [10, 250]
    assert corner(out / "anchors/led/anchor-0.png")[0] == 10
    rows = {row["asset_id"]: row for row in read_index(str(out)).to_pylist()}
    for asset in plan.assets():
        told = [control.to_dict() for control in asset.control]
        assert json.loads(rows[asset.asset_id]["control"] or "[]") == told
        written = read_metadata((out / asset.path).read_bytes())
        assert written is not None
        assert written.get("control", []) == told
    assert sum(row["control"] is None for row in rows.values()) == 4
    record = read_run_record(str(out))
    assert record is not None
    assert list(record.controlnets) == ["acme/first", "acme/second"]
    assert all(len(fingerprint) == 64 for fingerprint in record.controlnets.values())
    page = (out / "gallery/index.html").read_text()
    assert page.count('class="hints"') == 6
    assert all(f"../inputs/{path.name}" in page for path in (out / "inputs").iterdir())
    checked = verify(str(out))
    assert checked.is_sound and not checked.orphans


@pytest.mark.usefixtures("ray_cluster")
def test_nothing_but_the_output_is_needed_to_go_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(job(folder), out)
    shutil.rmtree(folder)
    kept = (out / "images/mixed/in-the-snow.png").read_bytes()
    for name in ("images/mixed/in-the-snow.png", "images/led/in-space.sitting.png", "anchors/led/anchor-0.png"):
        (out / name).unlink()
    shutil.rmtree(out / "index")  # rows are made again of what the pictures say of themselves
    record = read_run_record(str(out))
    assert record is not None
    again = run(parse_job(record.job), out)
    assert again.state == "complete"
    assert (out / "images/mixed/in-the-snow.png").read_bytes() == kept
    rows = read_index(str(out)).to_pylist()
    assert len(rows) == 10
    assert sum(row["control"] is not None for row in rows) == 6


@pytest.mark.usefixtures("ray_cluster")
def test_another_hint_is_another_picture_and_the_anchors_stay(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(job(folder), out)
    buffer = io.BytesIO()
    Image.new("L", (16, 16), 77).save(buffer, "PNG")
    (folder / "asleep.png").write_bytes(buffer.getvalue())
    read = job(folder)
    assert run(read, out).rendered == 3
    assert corner(out / "images/led/in-space.asleep.png")[0] == 77
