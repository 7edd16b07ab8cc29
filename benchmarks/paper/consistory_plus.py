"""The ConsiStory+ file from end to end: planned, rendered by the fake renderer, and for real where words are known."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from benchmarks.model_options import say
from benchmarks.paper.bench import Bench
from benchmarks.paper.plus_file import known_slice, mended, plus_document
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.running import run_job
from consistory_ray.engine.scoring.evaluate import EvaluationOptions, evaluate_output
from consistory_ray.evaluation.sheets import grid_sheet
from consistory_ray.jobs.job import load_job
from consistory_ray.output.index.index import read_index
from consistory_ray.output.storage import open_output
from consistory_ray.plan.plan import make_plan
from consistory_ray.testing import FakeRenderer

ONE_WORKER = RunOptions(workers=1, cpus_per_worker=1)
FAKE_METRIC = "consistory_ray.testing:FakeMetric"


def plus(bench: Bench) -> dict[str, Any]:
    """All of the file through the engine with the fake renderer; then the slice with the bundled model."""
    file = bench.options.file
    document, repeated = mended(yaml.safe_load(file.read_text()) if file else plus_document())
    for subject in repeated:
        say(f"occurs once more with the same words, and gets an id: {subject}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(bench.options.cache or temporary) / "plus"
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {"file": "given" if file else "our own words in its layout", "repeated_subjects": len(repeated)}
        numbers |= run_through(document, folder)
        slice_ = known_slice(document)
        kept = {key: items[: bench.options.subjects] for key, items in slice_.items()}
        numbers["known_subjects"] = sum(map(len, slice_.values()))
        sheet = None
        if kept:
            found, sheet = _for_real(bench, kept, folder)
            numbers |= found
    bench.write("plus", {"numbers": numbers}, sheet)
    return numbers


def run_through(document: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Render a whole file with the fake renderer and evaluate it with the fake metric; counts of what is there then."""
    path = folder / "all.yaml"
    path.write_text(yaml.safe_dump(dict(document), allow_unicode=True))
    plan = make_plan(load_job(str(path)))
    options = replace(ONE_WORKER, batch_size=8, renderer=FakeRenderer.factory())
    summary = run_job(str(path), folder / "all", options, gallery=False)
    summary.raise_for_state()
    scored = evaluate_output(str(folder / "all"), EvaluationOptions((FAKE_METRIC,), run=ONE_WORKER))
    rows = read_index(folder / "all")
    counts = {"subjects": len(plan.subjects), "prompts": plan.anchor_count + plan.scene_count}
    counts |= {"pictures": len(set(rows["asset_id"].to_pylist())), "files": len(set(rows["path"].to_pylist()))}
    return counts | {"evaluated": scored.found + scored.scored, "not_evaluated": scored.failed}


def _for_real(
    bench: Bench, document: Mapping[str, list[dict[str, Any]]], folder: Path
) -> tuple[dict[str, Any], Image.Image]:
    """The slice with the bundled model, and what the judge sees in it."""
    path = folder / "known.yaml"
    settings = {"num_inference_steps": bench.options.steps, "seed": 5}
    path.write_text(yaml.safe_dump({**document, "model": "miniature", "settings": settings}))
    options = RunOptions(workers=1, device=bench.pipeline.device.type, batch_size=bench.options.batch_size)
    run_job(str(path), folder / "known", options, gallery=False).raise_for_state()
    store = open_output(folder / "known")
    rows = sorted(read_index(store).to_pylist(), key=lambda row: (row["subject"], row["kind"], row["scene"]))
    images = [Image.open(store.join(row["path"])).convert("RGB") for row in rows]
    scored = evaluate_output(store.url, EvaluationOptions(("judge",), run=ONE_WORKER))
    numbers = {
        "rendered_subjects": len({row["subject"] for row in rows}),
        "rendered_pictures": len(rows),
        "evaluated_pictures": scored.found + scored.scored,
        "evaluation": scored.summary["run"],
    }
    return numbers, grid_sheet(images[:32], [row["prompt"] for row in rows[:32]])
