"""Workers that hang, leave or idle; runs that are refused, limited, repeated in part, or built on others."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.dispatching import cache_keeping
from consistory_ray.engine.events import (
    AnchorsReady,
    AssetDone,
    BatchDone,
    Event,
    Notice,
    Pulse,
    RunSummary,
    WorkerLost,
    WorkerReady,
    WorkerReleased,
)
from consistory_ray.engine.faults import Caps
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.stopping import StopRequest
from consistory_ray.errors import CheckpointError, InputError, JobError, OutputBusyError, RunError, RunFailed
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.output.assets import read_metadata
from consistory_ray.output.index.index import read_index
from consistory_ray.output.lease.lease import Lease
from consistory_ray.plan import forecast
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.testing import FakeRenderer

pytestmark = pytest.mark.usefixtures("ray_cluster")

MakeJob = Callable[..., RenderJob]


def run(plan: Plan, url: Path, events: list[Event] | None = None, **given: Any) -> RunSummary:
    """A run with the fake renderer; what RunOptions knows goes there, the rest to the renderer."""
    known = {field.name for field in dataclasses.fields(RunOptions)}
    fake = {name: value for name, value in given.items() if name not in known}
    settings = {"workers": 1, "cpus_per_worker": 1} | {name: given[name] for name in given if name in known}
    options = RunOptions(**settings, renderer=FakeRenderer.factory(**fake))
    return run_plan(plan, str(url), options, (events if events is not None else []).append)


def rows(url: Path) -> dict[str, dict[str, Any]]:
    return {row["path"] or f"{row['subject']}/{row['scene']}": row for row in read_index(str(url)).to_pylist()}


def heard(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_a_worker_that_hangs_is_killed_and_its_scene_tried_again(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    events: list[Event] = []
    summary = run(
        make_plan(make_job(subjects=1, scenes=6)),
        tmp_path / "out",
        events,
        batch_size=2,
        stuck_factor=3.0,
        stuck_seconds=1.5,
        first_call_seconds=3.0,
        faults={"scene-3": "hang-once"},
        scratch=str(tmp_path / "scratch"),
    )
    assert (summary.state, summary.rendered, summary.failed) == ("complete", 8, 0)
    lost = heard(events, WorkerLost)
    assert len(lost) == 1 and "no progress" in lost[0].reason and lost[0].replaced


def test_a_scene_that_always_hangs_fails_alone(make_job: MakeJob, tmp_path: Path) -> None:
    summary = run(
        make_plan(make_job(subjects=1, scenes=3)),
        tmp_path,
        batch_size=3,
        stuck_factor=2.0,
        stuck_seconds=1.0,
        first_call_seconds=1.0,
        faults={"scene-1": "hang"},
    )
    assert (summary.state, summary.rendered, summary.failed) == ("failed", 4, 1)
    assert dict(summary.failures_by_kind) == {"stuck": 1}
    row = rows(tmp_path)["cat-0/scene-1"]
    assert row["fault"] == "stuck" and "hung" in row["error"]


def test_sigterm_lets_a_worker_finish_its_batch_and_leave(make_job: MakeJob, tmp_path: Path) -> None:
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, AssetDone) and event.asset.scene_id == "scene-0":
            place = heard(events, WorkerReady)[0].place
            os.kill(int(place.rsplit("/", 1)[1]), signal.SIGTERM)

    plan = make_plan(make_job(subjects=1, scenes=8))
    options = RunOptions(
        workers=1, cpus_per_worker=1, batch_size=2, renderer=FakeRenderer.factory(seconds=0.4, anchor_seconds=0.0)
    )
    summary = run_plan(plan, str(tmp_path), options, listen)
    assert (summary.state, summary.rendered) == ("complete", 10)
    assert [event.reason for event in heard(events, WorkerReleased)] == ["its machine is going"]
    assert not heard(events, WorkerLost)
    assert len(heard(events, WorkerReady)) == 2
    done = [event.asset.asset_id for event in heard(events, AssetDone)]
    assert len(done) == len(set(done)), "what was on the device was delivered, not rendered again"


def test_idle_workers_are_released_and_few_scenes_ask_for_few(make_job: MakeJob, tmp_path: Path) -> None:
    """One of two scenes takes long; whoever renders the other one is of no more use, and a third never was."""
    events: list[Event] = []
    plan = make_plan(make_job(subjects=1, scenes=2))
    summary = run(
        plan, tmp_path, events, workers=3, batch_size=1, max_in_flight=1, idle_seconds=0.0, delays={"scene-0": 10.0}
    )
    assert summary.state == "complete"
    assert [event.reason for event in heard(events, WorkerReleased)] == ["there is nothing left for it"]
    pulses = heard(events, Pulse)
    assert pulses and max(pulse.workers for pulse in pulses) <= 2 and pulses[-1].queued == 0
    assert len(heard(events, WorkerReady)) == 2
    batches = heard(events, BatchDone)
    assert sum(batch.pictures for batch in batches) == 4
    assert all({"encode", "write"} <= set(batch.phases) for batch in batches)
    assert any(batch.cache_bytes for batch in batches if batch.kind == "scenes")


def test_a_second_run_on_the_same_output_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=1, scenes=1))
    with Lease.acquire(str(tmp_path), "the run of somebody"), pytest.raises(OutputBusyError, match="somebody"):
        run(plan, tmp_path)
    assert run(plan, tmp_path).state == "complete"


def test_failures_are_limited_listed_and_can_be_retried(make_job: MakeJob, tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=2, scenes=6))
    bad = {"cat-0/scene-1": "bad", "cat-1/scene-2": "bad"}
    summary = run(plan, tmp_path, batch_size=1, max_failures=0, faults=bad)
    assert (summary.state, summary.failed) == ("failed", 1)
    assert "--max-failures is 0" in summary.stopped
    with pytest.raises(RunFailed, match="max-failures"):
        summary.raise_for_state()

    summary = run(plan, tmp_path, batch_size=1, faults=bad)
    assert (summary.state, summary.failed, dict(summary.failures_by_kind)) == ("failed", 2, {"bad-asset": 2})

    (tmp_path / plan.subjects[0].scenes[5].path).unlink()  # missing, but nothing that failed
    events: list[Event] = []
    summary = run(plan, tmp_path, events, only_failed=True)
    assert (summary.state, summary.rendered) == ("complete", 2)
    assert sorted(f"{e.asset.subject_id}/{e.asset.scene_id}" for e in heard(events, AssetDone)) == sorted(bad)
    assert run(plan, tmp_path).rendered == 1


@pytest.mark.parametrize("keep", ["previews", "none"])
def test_anchors_are_kept_as_asked(make_job: MakeJob, tmp_path: Path, keep: str) -> None:
    job = make_job(subjects=2, scenes=2)
    plan = make_plan(job)
    summary = run(plan, tmp_path, keep_anchors=keep, faults={"cat-1/scene-0": "bad"})
    assert summary.state == "failed"
    first, second = plan.subjects
    assert not (tmp_path / first.cache_path).exists()
    kept = (tmp_path / second.cache_path).exists()
    assert kept == (keep == "previews"), "a subject that is not finished keeps its cache, if any is ever written"
    assert (tmp_path / first.anchors[0].path).exists() == (keep == "previews")
    assert (first.anchors[0].path in rows(tmp_path)) == (keep == "previews")

    events: list[Event] = []
    assert run(plan, tmp_path, events, keep_anchors=keep).state == "complete"
    assert [event.subject_id for event in heard(events, AnchorsReady)] == ["cat-1"]

    data = job.model_dump(exclude_unset=True)
    data["subjects"][0]["scenes"] += ({"id": "more", "prompt": "somewhere else"},)
    summary = run(make_plan(RenderJob.model_validate(data)), tmp_path)
    assert summary.state == "complete"
    assert (tmp_path / "images/cat-0/more.png").exists()


def test_a_stored_subject_is_taken_up_by_another_job(make_job: MakeJob, tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=1, scenes=1))
    run(plan, tmp_path / "first")
    folder = tmp_path / "first" / "anchors" / "cat-0"
    record = json.loads((folder / "subject.json").read_text())
    assert (record["concept"], record["subject"], len(record["anchors"])) == (["cat"], "a cat number 0", 2)

    job = parse_job(
        {"name": "more", "model": "fake", "subjects": [{"from": str(folder), "scenes": ["on the moon", "at sea"]}]}
    )
    later = make_plan(job)
    assert [scene.prompt for scene in later.subjects[0].scenes] == [
        "a cat number 0 on the moon",
        "a cat number 0 at sea",
    ]
    events: list[Event] = []
    summary = run(later, tmp_path / "second", events)
    assert (summary.state, summary.planned) == ("complete", 2)
    assert [event.made for event in heard(events, AnchorsReady)] == [False]
    digest = record["cache"]["sha256"]
    assert {row["cache_sha256"] for row in rows(tmp_path / "second").values()} == {digest}
    assert json.loads((tmp_path / "second/anchors/cat-0/subject.json").read_text())["cache"]["sha256"] == digest
    assert run(later, tmp_path / "second").found == 2
    # what the run record holds is the same job again, whether or not the first output is still there
    assert make_plan(parse_job(job.model_dump(mode="json", exclude_unset=True))).subjects == later.subjects


def test_stored_subjects_of_different_runs_meet(make_job: MakeJob, tmp_path: Path) -> None:
    """Joined once and then kept like any cache: a resume needs neither of the outputs that they come from."""
    folders = []
    for name, output in (("cat-0", "first"), ("cat-1", "second")):
        data = make_job(subjects=2, scenes=1).model_dump(exclude_unset=True)
        data["subjects"] = [one | {"concept": name} for one in data["subjects"] if one["id"] == name]
        data["subjects"][0]["subject"] = f"a {name}"
        run(make_plan(RenderJob.model_validate(data)), tmp_path / output)
        folders.append(str(tmp_path / output / "anchors" / name))
    sizes = [json.loads(Path(folder, "subject.json").read_text())["cache"]["bytes"] for folder in folders]
    job = parse_job({"model": "fake", "subjects": [{"from": folders, "scenes": ["at sea", "at home", "at work"]}]})
    plan, events = make_plan(job), list[Event]()
    summary = run(plan, tmp_path / "both", events, faults={"at-home": "error"})
    assert (summary.state, summary.rendered, summary.failed) == ("failed", 2, 1)
    assert [event.made for event in heard(events, AnchorsReady)] == [False]
    told = json.loads((tmp_path / "both/anchors/cat-0-and-cat-1/subject.json").read_text())
    assert (told["concept"], told["subject"]) == (["cat-0", "cat-1"], "a cat-0 and a cat-1")
    assert told["cache"]["bytes"] == sum(sizes)
    digests = {row["cache_sha256"] for row in rows(tmp_path / "both").values() if row["cache_sha256"]}
    assert digests == {told["cache"]["sha256"]}

    for output in ("first", "second"):
        shutil.rmtree(tmp_path / output)
    summary = run(plan, tmp_path / "both")
    assert (summary.state, summary.rendered, summary.found) == ("complete", 1, 2)
    summary = run(plan, tmp_path / "again")
    assert (summary.state, summary.failed) == ("failed", 3)
    assert "is missing" in summary.failures[0].error and folders[0] in summary.failures[0].error
    them = str(tmp_path / "both/anchors/cat-0-and-cat-1")
    later = parse_job({"model": "fake", "subjects": [{"from": them, "scenes": ["on stage"]}]})
    assert run(make_plan(later), tmp_path / "later").state == "complete"


def test_a_stored_subject_that_cannot_be_used_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    run(make_plan(make_job(subjects=1, scenes=1)), tmp_path / "first")
    folder = tmp_path / "first" / "anchors" / "cat-0"

    def job(**more: Any) -> dict[str, Any]:
        return {"model": "fake", "subjects": [{"from": str(folder), "scenes": ["on the moon"]}], **more}

    with pytest.raises(JobError, match=r"subjects\[0\]\.from: give a folder of an earlier run"):
        parse_job({"model": "fake", "subjects": [{"from": str(tmp_path), "scenes": ["at sea"]}]})
    with pytest.raises(JobError, match=r"subjects\[0\]\.concept: leave it out"):
        parse_job({"model": "fake", "subjects": [{"from": str(folder), "concept": "cat", "scenes": ["at sea"]}]})
    with pytest.raises(JobError, match=r"settings\.num_inference_steps"):
        make_plan(parse_job(job(settings={"num_inference_steps": 7})))

    plan = make_plan(parse_job(job()))
    cache = folder / plan.subjects[0].sources[0].url.rsplit("/", 1)[1]
    cache.write_bytes(b"damaged")
    summary = run(plan, tmp_path / "second")
    assert (summary.state, summary.failed) == ("failed", 1)
    assert "damaged" in summary.failures[0].error


def test_anchors_made_again_with_another_result_are_told_apart(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(subjects=1, scenes=2)
    plan = make_plan(job)
    run(plan, tmp_path)
    cache = tmp_path / plan.subjects[0].cache_path
    before = {path: row["cache_sha256"] for path, row in rows(tmp_path).items() if row["kind"] == "scene"}
    cache.unlink()
    data = job.model_dump(exclude_unset=True)
    data["subjects"][0]["scenes"] += ({"id": "more", "prompt": "somewhere else"},)
    events: list[Event] = []
    run(make_plan(RenderJob.model_validate(data)), tmp_path, events, cache_bytes=5000)
    assert any("differs from the first" in event.message for event in heard(events, Notice))
    after = {path: row["cache_sha256"] for path, row in rows(tmp_path).items() if row["kind"] == "scene"}
    assert {path: after[path] for path in before} == before, "scenes that are there are kept"
    assert after["images/cat-0/more.png"] not in before.values()


def test_options_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(InputError, match="min_workers"):
        RunOptions(workers=2, min_workers=3)
    with pytest.raises(InputError, match="keep_anchors"):
        RunOptions(keep_anchors="some")  # type: ignore[arg-type]


def test_a_run_that_lost_its_output_stops_and_leaves_the_record_alone(make_job: MakeJob, tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=1, scenes=30))

    def listen(event: Event) -> None:
        if isinstance(event, AssetDone) and event.asset.scene_id == "scene-1":
            Path(tmp_path, "lease", f"{99:012d}.json").write_text("{}")  # another one has taken over
            Path(tmp_path, "run.json").write_text("another run's")

    options = RunOptions(
        workers=1,
        cpus_per_worker=1,
        batch_size=1,
        lease_seconds=2.0,
        renderer=FakeRenderer.factory(seconds=0.2, anchor_seconds=0.0),
    )
    with pytest.raises(RunError, match="taken over"):
        run_plan(plan, str(tmp_path), options, listen)
    assert Path(tmp_path, "run.json").read_text() == "another run's"


def test_time_is_measured(make_job: MakeJob, tmp_path: Path) -> None:
    events: list[Event] = []
    started = time.monotonic()
    run(make_plan(make_job(subjects=1, scenes=4)), tmp_path, events, batch_size=2, seconds=0.1)
    batches = heard(events, BatchDone)
    assert [batch.kind for batch in batches] == ["anchors", "scenes", "scenes"]
    spent = sum(sum(seconds for name, seconds in b.phases.items() if name not in ("encode", "write")) for b in batches)
    assert 0.6 <= spent <= time.monotonic() - started


# Workers and machines that are at fault themselves


def test_a_broken_device_costs_its_worker_and_no_picture(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    events: list[Event] = []
    summary = run(
        make_plan(make_job(subjects=2, scenes=8)),
        tmp_path / "out",
        events,
        batch_size=2,
        faults={"cat-0/scene-3": "device-once"},
        scratch=str(tmp_path / "scratch"),
    )
    assert (summary.state, summary.rendered, summary.failed) == ("complete", 20, 0)
    assert [(lost.fault, lost.replaced) for lost in heard(events, WorkerLost)] == [("broken", True)]


def test_a_worker_where_call_after_call_fails_is_replaced(make_job: MakeJob, tmp_path: Path) -> None:
    """The second of two workers fails at everything it is given; it would take scene after scene otherwise."""
    (tmp_path / "scratch").mkdir()
    events: list[Event] = []
    summary = run(
        make_plan(make_job(subjects=6, scenes=12)),
        tmp_path / "out",
        events,
        workers=2,
        batch_size=2,
        seconds=0.05,
        bad_processes=[1],
        scratch=str(tmp_path / "scratch"),
    )
    assert (summary.state, summary.rendered, summary.failed) == ("complete", 84, 0)
    lost = heard(events, WorkerLost)
    assert [(item.fault, item.replaced) for item in lost] == [("broken", True)]
    assert "call after call fails there" in lost[0].reason


def test_a_replacement_that_is_of_no_use_does_not_end_the_run(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    events: list[Event] = []
    summary = run(
        make_plan(make_job(subjects=1, scenes=6)),
        tmp_path / "out",
        events,
        batch_size=2,
        faults={"scene-2": "exit-once"},
        bad_loads=[1, 2],
        scratch=str(tmp_path / "scratch"),
    )
    assert (summary.state, summary.rendered) == ("complete", 8)
    assert [lost.fault for lost in heard(events, WorkerLost)] == ["worker-died", "broken", "broken"]


def test_the_first_worker_that_comes_up_decides_whether_the_model_can_be_loaded(
    make_job: MakeJob, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    plan = make_plan(make_job(subjects=2, scenes=4))
    good = run(plan, tmp_path / "out", workers=2, batch_size=2, bad_loads=[0], scratch=str(tmp_path / "scratch"))
    assert good.state == "complete"
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match="asked not to load"):
        run(plan, tmp_path / "again", workers=2, bad_loads=[0, 1, 2, 3], scratch=str(tmp_path / "other"))


def test_a_worker_that_never_loads_is_replaced(make_job: MakeJob, tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=1, scenes=2))
    with pytest.raises(RunError, match="not loaded within"):
        run(plan, tmp_path, first_call_seconds=0.1, load_seconds=60.0, caps=Caps(worker_deaths=2, crashes=1))


def test_a_subject_that_kills_costs_a_few_workers_and_no_other_subject(make_job: MakeJob, tmp_path: Path) -> None:
    events: list[Event] = []
    plan = make_plan(make_job(subjects=3, scenes=9))
    summary = run(
        plan, tmp_path, events, workers=2, batch_size=3, faults={f"cat-1/scene-{n}": "exit" for n in range(9)}
    )
    assert (summary.state, summary.rendered, summary.failed) == ("failed", 24, 9)
    assert dict(summary.failures_by_kind) == {"worker-died": 9}
    assert all(lost.replaced for lost in heard(events, WorkerLost))
    assert len(heard(events, WorkerLost)) <= 12, "not two for each of its scenes"
    told = [row["error"] for row in rows(tmp_path).values() if row["status"] == "failed"]
    assert any("not tried" in text for text in told) and any("died each time" in text for text in told)


def test_a_run_in_which_everything_fails_stops(make_job: MakeJob, tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=4, scenes=10))
    caps = Caps(failures_in_a_row=12)
    faults = {f"scene-{number}": "bad" for number in range(10)}
    with pytest.raises(RunError, match="without one success in between"):
        run(plan, tmp_path, faults=faults, caps=caps, batch_size=1)
    assert len([row for row in rows(tmp_path).values() if row["status"] == "failed"]) >= 12


# Anchor caches


def test_caches_of_finished_subjects_go_while_the_run_goes_on(make_job: MakeJob, tmp_path: Path) -> None:
    """With few scenes a subject the caches would be most of what is written."""
    plan, seen = make_plan(make_job(subjects=4, scenes=2)), []

    def listen(event: Event) -> None:
        if isinstance(event, AssetDone) and event.asset.subject_id == "cat-3" and event.asset.kind == "scene":
            seen.append([subject.subject_id for subject in plan.subjects if (tmp_path / subject.cache_path).exists()])

    options = RunOptions(
        workers=1, cpus_per_worker=1, keep_anchors="previews", renderer=FakeRenderer.factory(seconds=0.1)
    )
    assert run_plan(plan, str(tmp_path), options, listen).state == "complete"
    assert seen and all("cat-0" not in there for there in seen), seen
    assert not list(tmp_path.glob("anchors/*/*.safetensors*"))
    assert len(list(tmp_path.glob("anchors/*/*.png"))) == 8


@pytest.mark.parametrize(
    "keep, most, kept", [("auto", 10**9, True), ("auto", 9000, False), ("all", 9000, True), ("none", 10**9, False)]
)
def test_caches_are_kept_where_they_are_small_or_asked_for(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, most: int, kept: bool
) -> None:
    """Three caches of 4 kB, as the first of them shows; much more was expected of this model."""
    monkeypatch.setattr(forecast, "KEPT_CACHE_BYTES", most)
    written: set[str] = set()

    def listen(event: Event) -> None:
        events.append(event)
        written.update(path.name for path in tmp_path.glob("anchors/*/*.safetensors*"))

    plan, events = make_plan(make_job(subjects=3, scenes=2)), []  # type: ignore[var-annotated]
    factory = FakeRenderer.factory(seconds=0.05, cache_bytes=4096)
    options = RunOptions(workers=2, cpus_per_worker=1, keep_anchors=keep, renderer=factory)  # type: ignore[arg-type]
    summary = run_plan(plan, str(tmp_path), options, listen)
    assert summary.state == "complete"
    assert all((tmp_path / subject.cache_path).exists() == kept for subject in plan.subjects)
    assert bool(written) == kept, "what is not kept was never uploaded: its subject was done before that was worth it"
    told = [event.message for event in heard(events, Notice) if "--keep-anchors all" in event.message]
    assert bool(told) == ("--keep-anchors all" in summary.caches) == (keep == "auto" and not kept)
    assert run_plan(plan, str(tmp_path), options).found == summary.planned
    assert all((tmp_path / subject.cache_path).exists() == kept for subject in plan.subjects), "nor by a later look"


def test_a_cache_that_is_not_kept_is_saved_once_its_subject_has_taken_long(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_keeping, "SAVE_AFTER_SECONDS", 0.5)
    plan, seen = make_plan(make_job(subjects=1, scenes=8)), []

    def listen(event: Event) -> None:
        if isinstance(event, AssetDone) and event.asset.kind == "scene":
            seen.append((tmp_path / f"{plan.subjects[0].cache_path}.sha256").exists())

    factory = FakeRenderer.factory(seconds=0.5)
    options = RunOptions(workers=1, cpus_per_worker=1, batch_size=1, keep_anchors="previews", renderer=factory)
    assert run_plan(plan, str(tmp_path), options, listen).state == "complete"
    assert any(seen), "while its scenes are rendered"
    assert not list(tmp_path.glob("anchors/*/*.safetensors*"))


def test_scenes_tell_the_cache_that_they_were_rendered_from(make_job: MakeJob, tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=2, scenes=3))
    run(plan, tmp_path)
    for subject in plan.subjects:
        digest = (tmp_path / f"{subject.cache_path}.sha256").read_text().split()[0]
        for scene in subject.scenes:
            assert rows(tmp_path)[scene.path]["cache_sha256"] == digest
            embedded = read_metadata((tmp_path / scene.path).read_bytes())
            assert embedded is not None and embedded["cache_sha256"] == digest


def test_none_resumes_without_a_cache_at_the_output(make_job: MakeJob, tmp_path: Path) -> None:
    """A run that is stopped halfway leaves no cache; the next one makes again what it needs, and nothing else."""
    plan, stop = make_plan(make_job(subjects=2, scenes=8)), StopRequest()
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        assert not list(tmp_path.glob("anchors/*/*.safetensors*"))
        if len([done for done in heard(events, AssetDone) if done.asset.kind == "scene"]) == 3:
            stop.ask("enough")

    def options(**fake: Any) -> RunOptions:
        factory = FakeRenderer.factory(seconds=0.1, **fake)
        return RunOptions(workers=1, cpus_per_worker=1, batch_size=1, keep_anchors="none", renderer=factory)

    assert run_plan(plan, str(tmp_path), options(), listen, stop=stop).state == "interrupted"
    before = set(rows(tmp_path))
    events.clear()
    stop = StopRequest()
    summary = run_plan(plan, str(tmp_path), options(), events.append, stop=stop)
    assert (summary.state, summary.found) == ("complete", len(before))
    scenes = [event.asset.path for event in heard(events, AssetDone) if event.asset.kind == "scene"]
    assert len(scenes) == len(set(scenes)) and not before.intersection(scenes), "no scene is rendered twice"
    assert not list(tmp_path.glob("anchors/*/*.safetensors*"))
    assert set(rows(tmp_path)) == {scene.path for subject in plan.subjects for scene in subject.scenes}
    assert len({row["cache_sha256"] for row in rows(tmp_path).values()}) == 2
