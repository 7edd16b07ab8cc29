"""Candidates are rendered, scored and chosen; what is written renders the chosen ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from consistory_ray.cli.app import app
from consistory_ray.engine.casting import Casting, CastingOptions, cast_job
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.running import load
from consistory_ray.errors import InputError
from consistory_ray.jobs.job import RenderJob, load_job
from consistory_ray.output.index.index import read_index
from consistory_ray.output.scores import read_scores
from consistory_ray.output.storage import open_output
from consistory_ray.plan.casting import HEADER
from consistory_ray.plan.plan import make_plan
from consistory_ray.testing import FakeRenderer

FAKE = "consistory_ray.testing:FakeMetric"
MakeJob = Callable[..., RenderJob]


def cast(job: RenderJob, folder: Path, candidates: int = 3) -> Casting:
    run = RunOptions(workers=1, cpus_per_worker=1, device="cpu", renderer=FakeRenderer)
    return cast_job(*load(job), str(folder), CastingOptions(candidates, FAKE, run=run))


@pytest.mark.usefixtures("ray_cluster")
def test_the_candidate_is_chosen_whose_anchors_agree_best(make_job: MakeJob, tmp_path: Path) -> None:
    casting = cast(make_job(subjects=2, scenes=4), tmp_path / "out")
    assert casting.state == "complete" and casting.metric == "fake 1" and not casting.left
    assert len(casting.tried) == 6 and len(casting.chosen) == 2
    scores = {row["asset_id"]: row["value"] for row in read_scores(open_output(str(tmp_path / "out")))[0].to_pylist()
              if row["metric"] == "fake_identity"}  # fmt: skip
    rows = read_index(open_output(str(tmp_path / "out"))).to_pylist()
    assert sorted({row["kind"] for row in rows}) == ["anchor", "scene"]
    for one in casting.tried:
        own = [scores[row["asset_id"]] for row in rows
               if row["subject"] == one.candidate.name and row["kind"] == "anchor"]  # fmt: skip
        assert len(own) == 2 and one.agreement == pytest.approx(min(own))
    for chosen in casting.chosen:
        rivals = [one.agreement for one in casting.tried if one.candidate.subject_id == chosen.candidate.subject_id]
        assert len(set(rivals)) == 3 and chosen.agreement == max(one for one in rivals if one is not None)
    kept = {path.suffix for path in (tmp_path / "out" / "anchors").rglob("*") if path.is_file()}
    assert kept == {".png"}, "no caches: nothing is taken up"
    again = cast(make_job(subjects=2, scenes=4), tmp_path / "out")
    assert again.run.rendered == 0 and again.chosen == casting.chosen, "nothing is rendered twice"


def test_a_metric_is_refused_before_a_model_is_loaded(make_job: MakeJob, tmp_path: Path) -> None:
    job, plan = load(make_job())
    bad = (("nobody", {}, "--metric"), ("clip", {}, "--weights"), ("colours", {"x": "y"}, "--weights"))
    for metric, weights, field in bad:
        with pytest.raises(InputError) as told:
            cast_job(job, plan, str(tmp_path / "out"), CastingOptions(2, metric, weights))
        assert told.value.problems[0].path == field
    other = job.model_copy(update={"model": "house/sdxl"})
    with pytest.raises(InputError, match="need a metric"):
        cast_job(other, plan, str(tmp_path / "out"), CastingOptions(2))
    assert not (tmp_path / "out").exists()


def call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_file_is_never_written_over_something_else(make_job: MakeJob, tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text(make_job().model_dump_json(exclude_unset=True))
    mine = tmp_path / "job.cast.yaml"
    mine.write_text("name: my own\n")
    (tmp_path / "elsewhere").mkdir()
    for to, fix in (
        ([], "would be lost"),
        (["--to", job], "name a .yaml file"),
        (["--to", tmp_path / "elsewhere" / "cast.yaml"], "in the job's folder"),
        (["--to", tmp_path / "nowhere" / "cast.yaml"], "make its folder first"),
    ):
        result = call("cast", job, "--metric", "colours", *to)
        assert result.exit_code == 2 and fix in " ".join(result.output.split()), result.output
    assert mine.read_text() == "name: my own\n"
    assert call("cast", "-").exit_code == 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_casting_of_the_bundled_model(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "loras: [miniature/distilled-8]\n"
        "settings: {scheduler: ddim, timesteps: [999, 749, 499, 249], guidance_scale: 1}\n"
        "subjects:\n"
        "- {id: cat, concept: cat, style: a drawing of, subject: a cat,"
        " anchors: [in the meadow, in space], scenes: [in the snow, at sunset]}\n"
    )
    result = call("cast", job, "-o", tmp_path / "out", "--candidates", "2", "--json", "--workers", "1")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout[result.stdout.index("{") :])
    (chosen,) = [one for one in told["candidates"] if one["chosen"]]
    assert chosen["agreement"] == max(one["agreement"] for one in told["candidates"])
    text = (tmp_path / "job.cast.yaml").read_text()
    assert text.startswith(HEADER) and "judge-2" in text.splitlines()[0]
    (subject,) = make_plan(load_job(tmp_path / "job.cast.yaml")).subjects
    assert [one.seed for one in subject.anchors] == chosen["seeds"] and len(subject.scenes) == 2
