"""Whole runs with the fake renderer on real Ray workers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.dispatching import session
from consistory_ray.engine.events import (
    AnchorsReady,
    AssetDone,
    BatchDone,
    Event,
    Notice,
    RunSummary,
    Stopping,
    WorkerLost,
)
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.rendering import RendererSpec
from consistory_ray.engine.stopping import StopRequest
from consistory_ray.errors import CheckpointError, InputError, RunFailed, RunInterrupted
from consistory_ray.jobs.job import RenderJob
from consistory_ray.output.index.index import read_index
from consistory_ray.output.run_record import read_run_record
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.testing import FakeRenderer

pytestmark = pytest.mark.usefixtures("ray_cluster")

MakeJob = Callable[..., RenderJob]


def run(
    plan: Plan,
    url: Path,
    *,
    workers: int = 1,
    batch_size: int | None = None,
    events: list[Event] | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: StopRequest | None = None,
    **fake: Any,
) -> RunSummary:
    options = RunOptions(
        workers=workers, cpus_per_worker=1, batch_size=batch_size, renderer=FakeRenderer.factory(**fake)
    )
    heard: list[Event] = events if events is not None else []

    def listen(event: Event) -> None:
        heard.append(event)
        if on_event is not None:
            on_event(event)

    return run_plan(plan, str(url), options, listen, stop=stop)


class Padding(FakeRenderer):
    """Refuses to be made for batches of another shape."""

    def __init__(self, spec: RendererSpec | None = None, *, pad_to: int | None = None, **options: Any) -> None:
        if spec is None or spec.pad_to != pad_to:
            raise InputError(f"{spec} is not for {pad_to}")
        super().__init__(spec, **options)


@pytest.mark.parametrize(
    ("batch_size", "deterministic", "pad_to"), [(3, True, 3), ("auto", True, session.AUTO_BATCH_SIZE), (3, False, None)]
)
def test_deterministic_runs_fill_batches_up_to_their_size(
    make_job: MakeJob, tmp_path: Path, batch_size: int | Literal["auto"], deterministic: bool, pad_to: int | None
) -> None:
    plan, factory = make_plan(make_job(scenes=2)), Padding.factory(pad_to=pad_to)
    options = RunOptions(
        workers=1, cpus_per_worker=1, batch_size=batch_size, deterministic=deterministic, renderer=factory
    )
    assert run_plan(plan, str(tmp_path / "out"), options).state == "complete"


def rows(url: Path) -> dict[str, dict[str, Any]]:
    listed = read_index(str(url)).to_pylist()
    assert len({row["asset_id"] for row in listed}) == len(listed)
    return {row["asset_id"]: row for row in listed}


def check_complete(plan: Plan, url: Path) -> None:
    """Every asset of the plan once in the index, its file as the row says, its picture its own."""
    found = rows(url)
    assert set(found) == {asset.asset_id for asset in plan.assets()}
    for asset in plan.assets():
        row = found[asset.asset_id]
        data = (url / asset.path).read_bytes()
        assert (row["status"], row["path"], row["size"]) == ("ok", asset.path, len(data))
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert picture(url / asset.path) == FakeRenderer().picture(asset.asset_id).tobytes()


def picture(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


def rendered(events: list[Event]) -> list[str]:
    return [event.asset.path for event in events if isinstance(event, AssetDone)]


def test_a_run_makes_everything_once_and_a_second_one_nothing(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(make_job(subjects=3, scenes=5))
    events: list[Event] = []
    summary = run(plan, tmp_path, workers=2, events=events)
    assert (summary.state, summary.planned, summary.found, summary.rendered) == ("complete", 21, 0, 21)
    assert len(rendered(events)) == 21
    batches = [event for event in events if isinstance(event, BatchDone)]
    for name in ("encode", "write"):
        took = sum(batch.phases[name] for batch in batches)
        assert took > 0 and summary.spent[name] == pytest.approx(took, abs=0.01)
    assert summary.spent["device"] > 0
    check_complete(plan, tmp_path)
    for subject in plan.subjects:
        cache = tmp_path / subject.cache_path
        listed = Path(f"{cache}.sha256").read_text()
        assert listed == f"{hashlib.sha256(cache.read_bytes()).hexdigest()}  {cache.name}\n"
    record = read_run_record(str(tmp_path))
    assert record is not None
    assert (record.state, record.totals["rendered"], record.model_fingerprint) == (
        "complete",
        21,
        FakeRenderer().fingerprint,
    )

    monkeypatch.setattr(session, "joined_cluster", lambda options: pytest.fail("Ray is not needed"))
    summary = run(plan, tmp_path)
    assert (summary.state, summary.found, summary.rendered) == ("complete", 21, 0)


def test_after_an_edit_only_the_change_is_rendered(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(subjects=2, scenes=3)
    run(make_plan(job), tmp_path)
    data = job.model_dump(exclude_unset=True)
    data["subjects"][1]["scenes"][2]["prompt"] = "somewhere else"
    data["subjects"][1]["scenes"] += ({"id": "extra", "prompt": "one more"},)
    plan = make_plan(RenderJob.model_validate(data))
    events: list[Event] = []
    run(plan, tmp_path, events=events)
    assert sorted(rendered(events)) == ["images/cat-1/extra.png", "images/cat-1/scene-2.png"]
    assert [(event.subject_id, event.made) for event in events if isinstance(event, AnchorsReady)] == [("cat-1", False)]
    check_complete(plan, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "missing", "other model"])
def test_a_cache_that_cannot_be_used_is_made_again(make_job: MakeJob, tmp_path: Path, damage: str) -> None:
    plan = make_plan(make_job(subjects=1, scenes=2))
    run(plan, tmp_path, version=2 if damage == "other model" else 1)
    cache = tmp_path / plan.subjects[0].cache_path
    if damage == "truncated":
        cache.write_bytes(cache.read_bytes()[:-1])
    if damage == "missing":
        cache.unlink()
    (tmp_path / plan.subjects[0].scenes[1].path).unlink()
    events: list[Event] = []
    summary = run(plan, tmp_path, events=events)
    assert summary.rendered == 1
    assert [event.made for event in events if isinstance(event, AnchorsReady)] == [True]
    assert bool([event for event in events if isinstance(event, Notice)]) == (damage != "missing")
    check_complete(plan, tmp_path)


def test_a_dying_worker_is_replaced_and_nothing_is_lost(make_job: MakeJob, tmp_path: Path) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    plan = make_plan(make_job(subjects=2, scenes=6))
    events: list[Event] = []
    faults = {"cat-0/scene-2": "exit-once", "cat-1/anchor-1": "exit-once"}
    summary = run(plan, tmp_path / "out", workers=2, events=events, batch_size=2, faults=faults, scratch=str(scratch))
    assert summary.state == "complete"
    lost = [event for event in events if isinstance(event, WorkerLost)]
    assert len(lost) == 2 and all(event.replaced for event in lost)
    assert sorted(rendered(events)) == sorted(asset.path for asset in plan.assets())
    check_complete(plan, tmp_path / "out")


def test_poison_fails_and_its_neighbours_do_not(make_job: MakeJob, tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=1, scenes=4))
    events: list[Event] = []
    summary = run(plan, tmp_path, batch_size=4, events=events, faults={"scene-1": "exit"})
    assert (summary.state, summary.rendered, summary.failed) == ("failed", 5, 1)
    assert summary.failures[0].path == "images/cat-0/scene-1.png"
    assert "died each time" in summary.failures[0].error
    assert len([event for event in events if isinstance(event, WorkerLost)]) == 3


def test_failures_are_rows_and_the_rest_goes_on(make_job: MakeJob, tmp_path: Path) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    plan = make_plan(make_job(subjects=3, scenes=4))
    faults = {
        "cat-0/scene-1": "bad",
        "cat-0/scene-2": "error",
        "cat-0/scene-3": "error-once",
        "cat-1/anchor-0": "error",
    }
    out = tmp_path / "out"
    summary = run(plan, out, workers=2, faults=faults, scratch=str(scratch))
    assert (summary.state, summary.failed, summary.rendered) == ("failed", 8, 10)
    with pytest.raises(RunFailed, match="8 of 18 pictures failed"):
        summary.raise_for_state()
    failed = {row["asset_id"]: row for row in rows(out).values() if row["status"] == "failed"}
    by_name = {f"{row['subject']}/{row['scene']}": row for row in failed.values()}
    assert set(by_name) == {
        "cat-0/scene-1",
        "cat-0/scene-2",
        *(f"cat-1/{scene}" for scene in ("anchor-0", "anchor-1", "scene-0", "scene-1", "scene-2", "scene-3")),
    }
    assert (by_name["cat-0/scene-1"]["attempt"], by_name["cat-0/scene-2"]["attempt"]) == (1, 2)
    assert by_name["cat-0/scene-2"]["error"].startswith("RuntimeError")
    assert "anchors of cat-1 could not be made" in by_name["cat-1/scene-0"]["error"]

    assert run(plan, out).state == "complete"  # without faults, the failed ones are made and nothing else
    check_complete(plan, out)


def test_out_of_memory_makes_batches_smaller(make_job: MakeJob, tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=1, scenes=6, batch_size=6))
    assert run(plan, tmp_path, max_batch=2).state == "complete"
    check_complete(plan, tmp_path)


def test_a_stopped_run_is_resumed_where_it_was(make_job: MakeJob, tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=2, scenes=6))
    stop, events = StopRequest(), []

    def stop_early(event: Event) -> None:
        if isinstance(event, AssetDone) and event.asset.kind == "scene" and not stop:
            stop.ask("the test")

    summary = run(plan, tmp_path, batch_size=2, seconds=0.05, events=events, on_event=stop_early, stop=stop)
    assert summary.state == "interrupted"
    assert 0 < summary.rendered < summary.planned
    assert any(isinstance(event, Stopping) for event in events)
    with pytest.raises(RunInterrupted, match="resumes"):
        summary.raise_for_state()
    assert len(rows(tmp_path)) == summary.rendered
    record = read_run_record(str(tmp_path))
    assert record is not None and record.state == "interrupted"

    again = run(plan, tmp_path)
    assert (again.state, again.found, again.rendered) == (
        "complete",
        summary.rendered,
        summary.planned - summary.rendered,
    )
    check_complete(plan, tmp_path)


def test_a_model_that_cannot_be_loaded_stops_the_run(make_job: MakeJob, tmp_path: Path) -> None:
    def broken(spec: object) -> FakeRenderer:
        raise CheckpointError(f"no model of that name: {spec}")

    options = RunOptions(workers=1, cpus_per_worker=1, renderer=broken)
    with pytest.raises(CheckpointError, match="no model of that name"):
        run_plan(make_plan(make_job()), str(tmp_path), options)
    record = read_run_record(str(tmp_path))
    assert record is not None and record.state == "failed" and "no model" in str(record.error)
