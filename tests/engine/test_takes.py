"""Jobs with a gate on real Ray workers: takes, edits of the job, retries, kills in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.events import AssetDone, Event, RunSummary, TakesWanted
from consistory_ray.engine.options import RunOptions
from consistory_ray.errors import CheckpointError, InputError, RunFailed
from consistory_ray.jobs.job import RenderJob
from consistory_ray.jobs.quality import Quality
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.takes import chosen_rows, picture_ids
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.standing import gate_of, take_in
from consistory_ray.plan.plan import Asset, Plan, make_plan
from consistory_ray.plan.takes import further_takes, take_of
from consistory_ray.quality.gate import Verdict
from consistory_ray.testing import FakeMetric, FakeRenderer, read_trace

pytestmark = pytest.mark.usefixtures("ray_cluster")

MakeJob = Callable[..., RenderJob]
METRIC = "consistory_ray.testing:FakeMetric"


def gated(job: RenderJob, **quality: Any) -> Plan:
    """A job's plan with a gate whose scores are numbers from 0 to 1 that the pictures' ids decide."""
    given = {"metric": METRIC, "measure": "alignment"} | quality
    return make_plan(job.model_copy(update={"quality": Quality(**given)}))


def score(asset: Asset) -> float:
    """What the gate is going to find."""
    return round(float(FakeMetric().align([FakeRenderer().picture(asset.asset_id)], [asset.prompt])[0]), 6)


def run(plan: Plan, out: Path, events: list[Event] | None = None, fake: Any = None, **options: Any) -> RunSummary:
    """One run; what the renderer made is traced beside the output."""
    (trace := out.with_name("trace")).mkdir(exist_ok=True)
    factory = FakeRenderer.factory(**({"trace": str(trace)} | (fake or {})))
    heard = events if events is not None else []
    return run_plan(plan, str(out), RunOptions(workers=1, cpus_per_worker=1, renderer=factory, **options), heard.append)


def made(out: Path) -> int:
    """How many scenes were rendered so far."""
    return sum(span.assets for span in read_trace(out.with_name("trace")) if span.kind == "scenes")


def check(plan: Plan, out: Path) -> Counter[int]:
    """Each take at most once, with its own score; each scene's picture is the best of its takes.

    Returns:
        How many scenes have so many takes.
    """
    rows = read_index(out)
    by_id = {row["asset_id"]: row for row in rows.to_pylist() if row["kind"] == "scene"}
    takes: Counter[str] = Counter(row["take_of"] or row["asset_id"] for row in by_id.values())
    chosen = chosen_rows(rows)
    pictures = dict(zip(picture_ids(chosen).to_pylist(), chosen.to_pylist(), strict=True))
    assert len(chosen) == len(list(plan.assets()))
    for scene in (scene for subject in plan.subjects for scene in subject.scenes):
        its = [take_of(scene, number) for number in range(1, takes[scene.asset_id] + 1)]
        for take in its:
            row = by_id[take.asset_id]
            assert (row["take"], row["path"], row["seed"]) == (take.take, take.path, take.seed)
            assert row["score"] == score(take) and (out / take.path).is_file()
        best = max(its, key=lambda take: (score(take), -take.take))
        assert pictures[scene.asset_id]["asset_id"] == best.asset_id
    return Counter(takes[scene.asset_id] for subject in plan.subjects for scene in subject.scenes)


def expected(plan: Plan, threshold: float, most: int) -> tuple[int, int]:
    """Further takes that a threshold costs, and how many scenes never reach it."""
    further = short = 0
    for scene in (scene for subject in plan.subjects for scene in subject.scenes):
        scores = [score(take_of(scene, number)) for number in range(1, most + 1)]
        tried = next((number for number, value in enumerate(scores, 1) if value >= threshold), most)
        further, short = further + tried - 1, short + (max(scores[:tried]) < threshold)
    return further, short


def test_what_falls_short_is_rendered_again_and_the_best_take_is_the_picture(make_job: MakeJob, tmp_path: Path) -> None:
    plan, out = gated(make_job(subjects=2, scenes=8), threshold=0.6, max_takes=3), tmp_path / "out"
    further, short = expected(plan, 0.6, 3)
    assert further and short, "else this test proves nothing"
    summary = run(plan, out, events := [])
    assert (summary.state, summary.rendered, summary.takes, summary.short) == ("failed", 20 + further, further, short)
    assert len(summary.shortfalls) == short and made(out) == 16 + further
    assert all(one.score < one.bar == 0.6 and one.takes == 3 for one in summary.shortfalls)
    with pytest.raises(RunFailed, match="best of 3 takes"):
        summary.raise_for_state()
    check(plan, out)
    asked = [take for event in events if isinstance(event, TakesWanted) for take in event.takes]
    assert len(asked) == further and {take.asset_id for take in asked} <= {t.asset_id for t in further_takes(plan)}
    assert sum(isinstance(event, AssetDone) for event in events) == summary.rendered == summary.planned
    record = read_run_record(out)
    assert record is not None and record.totals["short"] == short

    again = run(plan, out, accept_below=True)
    assert (again.state, again.rendered, again.short) == ("complete", 0, short), "what is there is not made again"
    assert again.found == again.planned and made(out) == 16 + further


def test_first_takes_are_the_pictures_of_the_job_without_a_gate(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(subjects=1, scenes=4)
    plain, plan = make_plan(job), gated(job, threshold=0.5)
    assert list(plain.assets()) == list(plan.assets())


def test_edits_go_on_from_the_takes_that_are_there(make_job: MakeJob, tmp_path: Path) -> None:
    """A gate added later only looks, a higher one goes on, a lower one or a smaller budget renders nothing."""
    job, out = make_job(subjects=2, scenes=6), tmp_path / "out"
    assert run(make_plan(job), out).state == "complete"
    assert made(out) == 12
    look = gated(job, threshold=0.0)
    summary = run(look, out)
    assert (summary.state, summary.rendered, summary.scored, made(out)) == ("complete", 0, 12, 12)
    assert {row["score"] is None for row in read_index(out).to_pylist() if row["kind"] == "scene"} == {False}
    check(look, out)

    higher = gated(job, threshold=0.5, max_takes=2)
    run(higher, out)
    assert made(out) == 12 + expected(higher, 0.5, 2)[0]
    assert max(check(higher, out)) == 2
    run(more := gated(job, threshold=0.5, max_takes=4), out)
    assert made(out) == 12 + expected(more, 0.5, 4)[0]
    check(more, out)
    rendered = made(out)
    for lower in ({"threshold": 0.1, "max_takes": 4}, {"threshold": 0.5, "max_takes": 1}):
        plan = gated(job, **lower)
        assert run(plan, out).rendered == 0 and made(out) == rendered
        check(plan, out)


def test_a_median_decides_once_all_first_takes_are_there(make_job: MakeJob, tmp_path: Path) -> None:
    plan, out = gated(make_job(subjects=2, scenes=7), within=0.0, max_takes=2), tmp_path / "out"
    run(plan, out, batch_size=2)
    gate = gate_of(plan)
    assert gate is not None and not take_in(gate, plan, read_index(out))
    counts = check(plan, out)
    assert counts[2] == 6, "of seven scores, three are below their median"
    assert all(gate.verdict(scene.asset_id) is not Verdict.OPEN for s in plan.subjects for scene in s.scenes)


def test_retry_makes_the_takes_that_failed_and_goes_on_from_them(make_job: MakeJob, tmp_path: Path) -> None:
    plan, out = gated(make_job(subjects=1, scenes=6), threshold=0.7, max_takes=3), tmp_path / "out"
    further, _ = expected(plan, 0.7, 3)
    wanted = [take for take in further_takes(plan) if take.take == 2 and score(plan_scene(plan, take)) < 0.7]
    bad = wanted[0]
    summary = run(plan, out, fake={"faults": {f"{bad.subject_id}/{bad.scene_id}.2": "bad"}})
    assert summary.failed == 1 and summary.state == "failed"
    before = made(out)
    rows = {row["asset_id"]: row for row in read_index(out).to_pylist()}
    assert rows[bad.asset_id]["status"] == "failed" and rows[bad.asset_id]["take_of"] == bad.take_of
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    again = run(plan, out, only_failed=True)
    assert again.failed == 0 and again.rendered == made(out) - before >= 1
    assert {path: path.stat().st_mtime_ns for path in files} == files
    check(plan, out)
    assert len(list(out.rglob("takes/*.png"))) == further


def plan_scene(plan: Plan, take: Asset) -> Asset:
    """The first take of a further one."""
    return next(scene for s in plan.subjects for scene in s.scenes if scene.asset_id == take.take_of)


def test_a_metric_that_cannot_be_used_stops_the_run_before_it_renders(make_job: MakeJob, tmp_path: Path) -> None:
    plan = gated(make_job(), metric="consistory_ray.testing:Span", threshold=0.5)
    with pytest.raises((InputError, CheckpointError), match="Span"):
        run(plan, tmp_path / "out")
    assert not made(tmp_path / "out")
