"""Resuming after any edits of a job: every planned asset once, and no row without its file."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consistory_ray.errors import JobError
from consistory_ray.jobs.job import parse_job
from consistory_ray.jobs.stored_subjects import SUBJECT_FILE, describe_subject
from consistory_ray.output.assets import asset_parameters, encode_png, read_metadata, write_asset
from consistory_ray.output.comparison import plan_as_begun
from consistory_ray.output.index.index import compact, current_index, read_index
from consistory_ray.output.index.parts import list_parts
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.resume import REPLACED, replaced_path, resume
from consistory_ray.output.storage import PICTURE_FOLDERS, OutputStore, open_output
from consistory_ray.output.verify import verify
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.testing import FakeRenderer

SIZE = (8, 8)
RENDERER = FakeRenderer(size=SIZE)
STORED = "memory://stored-for-resume/anchors/fox"
NAMES = ["snow", "sea", "moon", "attic"]

Edit = tuple[str, int, int, int]
EDITS = st.tuples(
    st.sampled_from(
        [
            "add",
            "remove",
            "rename",
            "rename",
            "subject",
            "prompt",
            "seed",
            "count",
            "swap",
            "drop",
            "return",
            "anchor",
            "settings",
        ]
    ),
    st.integers(0, 4),
    st.integers(0, 3),
    st.integers(0, 5),
)


@dataclass(frozen=True)
class Run:
    """A run that does not end well, and what happens to its output afterwards; large numbers mean nothing happens."""

    edits: list[Edit]
    budget: int
    forget: bool
    fails: frozenset[int]
    lost_picture: int
    lost_anchor: int
    clears: int | None
    cuts: int | None


RUNS = st.lists(
    st.builds(
        Run,
        edits=st.lists(EDITS, max_size=4),
        budget=st.integers(0, 30),
        forget=st.booleans(),
        fails=st.frozensets(st.integers(0, 20), max_size=4),
        lost_picture=st.integers(0, 40),
        lost_anchor=st.integers(0, 20),
        clears=st.none() | st.integers(0, 2),
        cuts=st.none() | st.integers(0, 5),
    ),
    max_size=5,
)


def store_subject() -> None:
    """A subject of an earlier run, for a job to take up. Its anchor cache is not looked at here."""
    job = {"concept": "fox", "subject": "a fox", "anchors": ["at home"], "scenes": ["away"], "id": "fox"}
    subject = plan_of({"name": "earlier", "model": "fake", "subjects": [job]}).subjects[0]
    words = describe_subject(subject, "fake", RENDERER.fingerprint, "a" * 64, 1000)
    open_output(STORED).write_atomic(SUBJECT_FILE, words)


def first_job() -> dict[str, Any]:
    """Three subjects with a few scenes each and a stored one, named so that edits make their paths collide."""
    stored = {"from": STORED, "scenes": [{"id": name, "prompt": f"at the {name}", "seed": 1} for name in NAMES[:2]]}
    return {
        "name": "edited",
        "model": "fake",
        "settings": {"seed": 0},
        "subjects": [
            {
                "id": f"cat-{number}",
                "concept": "cat",
                "subject": f"a cat number {number}",
                "anchors": [{"prompt": "at home", "seed": number}, "outside"],
                "scenes": [{"id": name, "prompt": f"at the {name}", "seed": 1} for name in NAMES[: number + 1]],
            }
            for number in range(3)
        ]
        + [stored],
    }


def edit(job: dict[str, Any], dropped: list[Any], change: Edit) -> None:
    """One edit such as people make between two runs; those that would make no valid job are left out."""
    what, subject_number, scene_number, value = change
    subjects = job["subjects"]
    subject = subjects[subject_number % len(subjects)]
    scenes = subject["scenes"]
    scene = scenes[scene_number % len(scenes)]
    free = [name for name in NAMES if name not in {one["id"] for one in scenes}]
    if what == "add" and free:
        scenes.append({"id": free[0], "prompt": f"a place {value}", "seed": value})
    elif what == "remove" and len(scenes) > 1:
        scenes.remove(scene)
    elif what == "rename" and free:
        scene["id"] = free[value % len(free)]
    elif what == "subject" and "anchors" in subject:
        subject["id"] = f"pet-{value}"
    elif what == "prompt":
        scene["prompt"] = f"a place {value}"
    elif what == "seed":
        scene["seed"] = value
    elif what == "count":
        scene["count"] = 1 + value % 3
    elif what == "swap" and len(scenes) > 1:
        other = scenes[(scene_number + 1) % len(scenes)]
        scene["id"], other["id"] = other["id"], scene["id"]
    elif what == "drop" and len(subjects) > 1:
        dropped.append(subject)
        subjects.remove(subject)
    elif what == "return" and dropped:
        subjects.append(dropped.pop())
    elif what == "anchor" and "anchors" in subject:
        subject["anchors"][0]["seed"] = 100 + 10 * subject_number + value
    elif what == "settings":
        job["settings"]["seed"] = value


def edited(job: dict[str, Any], dropped: list[Any], change: Edit) -> tuple[dict[str, Any], list[Any]]:
    """The job after an edit, or as it was where that makes two pictures or two subjects the same."""
    after = copy.deepcopy((job, dropped))
    edit(*after, change)
    try:
        plan_of(after[0])
    except JobError:
        return job, dropped
    return after


def plan_of(job: dict[str, Any]) -> Plan:
    return make_plan(parse_job(copy.deepcopy(job)))


def render(store: OutputStore, plan: Plan, budget: int, *, forget: bool, fails: frozenset[int] = frozenset()) -> int:
    """A run that is killed after ``budget`` pictures, the last few of which may lack their rows (``forget``).

    The attempts of those numbers fail, and are rows, too. Whoever failed before is tried again.
    """
    paths = {asset.asset_id: asset.path for asset in plan.assets()}
    pictures = pictures_of(store)
    found = resume(store, paths)
    check_rows(store)
    assert found.done.isdisjoint(found.failed)
    assert found.failed.items() <= failed_rows(store).items(), "attempts are counted on"
    assert found.done | set(found.failed) >= set(current_index(store, paths)["asset_id"].to_pylist())
    writer = IndexWriter(store, rows_per_part=3)
    rendered = 0
    for subject in plan.subjects:
        for asset in (*subject.anchors, *subject.scenes):
            if asset.asset_id in found.done:
                continue
            if rendered == budget:
                if not forget:
                    writer.close(merge=False)
                return rendered
            values = asset_parameters(asset, subject, model=plan.model, model_fingerprint=RENDERER.fingerprint)
            if rendered in fails:
                writer.add(IndexRow.failed(values, "broke", attempt=found.failed.get(asset.asset_id, 0) + 1))
            else:
                data = encode_png(RENDERER.picture(asset.asset_id), values)
                writer.add(IndexRow.rendered(values, write_asset(store, asset.path, data), SIZE))
            rendered += 1
    writer.close()
    assert pictures <= pictures_of(store), "no picture is overwritten by another asset's"
    return rendered


def pictures_of(store: OutputStore) -> set[str]:
    """The ids inside all pictures that are there, in their places or replaced."""
    files = [file for folder in (*PICTURE_FOLDERS, REPLACED) for file in store.list_files(folder)]
    known = [read_metadata(store.read(file.path)) for file in files if file.path.endswith(".png")]
    return {str(parameters["asset_id"]) for parameters in known if parameters is not None}


def failed_rows(store: OutputStore) -> dict[str, int]:
    """The attempts of the failed rows that count."""
    return {row["asset_id"]: row["attempt"] for row in read_index(store).to_pylist() if row["status"] == "failed"}


def lose(store: OutputStore, folder: str, number: int) -> None:
    """Somebody deletes a file, if there are that many."""
    files = [file.path for file in store.list_files(folder)]
    if number < len(files):
        store.delete(files[number])


def clear_anchors_of(store: OutputStore, plan: Plan, number: int) -> None:
    """What ``keep_anchors`` does to a subject whose scenes are all there: rows first, then files."""
    subject = plan.subjects[number % len(plan.subjects)]
    there = {row["asset_id"] for row in read_index(store).to_pylist() if row["status"] == "ok"}
    if all(asset.asset_id in there for asset in subject.scenes):
        compact(store, drop=[asset.asset_id for asset in subject.anchors])
        for asset in subject.anchors:
            store.delete(asset.path)


def check_rows(store: OutputStore) -> None:
    """No row without its file, and no file that two rows claim."""
    rows = [row for row in read_index(store).to_pylist() if row["status"] == "ok"]
    for row in rows:
        assert hashlib.sha256(store.read(row["path"])).hexdigest() == row["sha256"], row["path"]
        known = read_metadata(store.read(row["path"])) or {}
        assert [known[name] for name in ("asset_id", "subject", "scene")] == [row["asset_id"], *names_in(row["path"])]
        assert (row["subject"], row["scene"]) == names_in(row["path"])
    assert len({row["path"] for row in rows}) == len(rows)


def names_in(path: str) -> tuple[str, str]:
    """The subject and the scene of a picture, by its place."""
    return path.split("/")[1], path.split("/")[2].removesuffix(".png")


def check_complete(store: OutputStore, plan: Plan) -> None:
    """Every planned asset is there exactly once, in its place, and is its own picture."""
    planned = {asset.asset_id: asset.path for asset in plan.assets()}
    rows = current_index(store, planned).to_pylist()
    assert {row["asset_id"]: row["path"] for row in rows} == planned, "no failed row is left of what is there"
    assert len(rows) == len(planned)
    found = verify(store)
    assert found.is_sound, found.lines()


@given(RUNS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_edits_between_runs_that_are_killed_anywhere(runs: list[Run]) -> None:
    """Between runs the job is edited, pictures and anchors are lost or cleared, an index part is cut, and runs are
    killed with and without their last rows; some attempts fail."""
    store_subject()
    store, job, dropped = open_output(f"memory://{uuid.uuid4().hex}"), first_job(), list[Any]()
    try:
        for run in runs:
            plan = plan_of(job)
            render(store, plan, run.budget, forget=run.forget, fails=run.fails)
            check_rows(store)
            lose(store, "images", run.lost_picture)
            lose(store, "anchors", run.lost_anchor)
            if run.clears is not None:
                clear_anchors_of(store, plan, run.clears)
            if run.cuts is not None and (parts := list_parts(store)):
                part = parts[run.cuts % len(parts)]
                store.write_atomic(part, store.read(part)[:-9])
            for change in run.edits:
                job, dropped = edited(job, dropped, change)
        plan = plan_of(job)
        render(store, plan, 10**6, forget=False)
        check_complete(store, plan)
        assert render(store, plan, 10**6, forget=False) == 0, "nothing is rendered twice"
    finally:
        if store.fs.exists(store.root):
            store.fs.rm(store.root, recursive=True)


def job_of(*subjects: dict[str, Any]) -> Plan:
    given = [
        {"concept": "cat", "style": "a cat", "anchors": ["at home"], "scenes": ["in space", "at sea"], **one}
        for one in subjects
    ]
    return plan_of({"name": "cats", "model": "fake", "subjects": given})


def test_a_neighbour_moves_a_subject_and_neither_overwrites_nor_renders_it_again() -> None:
    ginger, black = {"style": "a photo of a ginger cat"}, {"style": "a photo of a black cat"}
    store = open_output(f"memory://{uuid.uuid4().hex}")
    alone, both = job_of(ginger), job_of(black, ginger)
    assert render(store, alone, 100, forget=False) == 3
    before = pictures_of(store)
    assert render(store, both, 100, forget=False) == 3, "the black cat's"
    check_complete(store, both)
    assert before < pictures_of(store)
    assert render(store, job_of(ginger, black), 100, forget=False) == 0, "the order makes no difference"
    assert render(store, job_of(ginger), 100, forget=False) == 0


def test_an_edit_keeps_what_it_replaces() -> None:
    store = open_output(f"memory://{uuid.uuid4().hex}")
    before = job_of({"id": "tom", "scenes": [{"id": "a", "prompt": "in space"}, {"id": "b", "prompt": "at sea"}]})
    after = job_of({"id": "tom", "scenes": [{"id": "a", "prompt": "on the moon"}, {"id": "b", "prompt": "at sea"}]})
    render(store, before, 100, forget=False)
    replaced = before.subjects[0].scenes[0]
    data = store.read(replaced.path)
    found = resume(store, {asset.asset_id: asset.path for asset in after.assets()})
    assert (found.replaced, found.dropped, found.moved) == (1, 1, 0)
    assert render(store, after, 100, forget=False) == 1
    assert store.read(replaced_path(replaced.path, replaced.asset_id)) == data
    check_complete(store, after)
    assert render(store, before, 100, forget=False) == 1
    assert len(store.list_files(REPLACED)) == 2
    check_complete(store, before)


def test_a_file_that_is_not_ours_is_kept_as_well() -> None:
    store = open_output(f"memory://{uuid.uuid4().hex}")
    plan = job_of({"id": "tom"})
    path = plan.subjects[0].scenes[0].path
    store.write_atomic(path, b"a drawing of somebody else's")
    render(store, plan, 100, forget=False)
    (kept,) = store.list_files(REPLACED)
    assert store.read(kept.path) == b"a drawing of somebody else's"
    check_complete(store, plan)


def test_an_output_of_the_numbering_version_goes_on_without_rendering_again() -> None:
    """It gave the second of two subjects with one name an id with a 2, and seeds to go with it."""
    first, second = {"style": "a photo of a ginger cat"}, {"style": "a photo of a black cat"}
    old = job_of({"id": "cat", **first}, {"id": "cat-2", **second})
    accented = job_of({"id": "ju-rgen-the-cat", "subject": "Jürgen the cat"})
    for before, after in ((old, job_of(second, first)), (accented, job_of({"subject": "Jürgen the cat"}))):
        store = open_output(f"memory://{uuid.uuid4().hex}")
        written = render(store, before, 100, forget=False)
        begun = plan_as_begun(after, store)
        assert {subject.subject_id for subject in begun.subjects}.isdisjoint({"ju-rgen-the-cat", "cat", "cat-2"})
        assert render(store, begun, 100, forget=False) == 0 < written
        check_complete(store, begun)
        assert plan_as_begun(after, store) == begun, "from then on, too"


@pytest.mark.slow
def test_a_million_rows(tmp_path: Path) -> None:
    """Resuming takes less than a minute of CPU time and a gigabyte beside the plan's own ids and paths."""
    import json
    import os
    import subprocess
    import sys

    script = Path(__file__).with_name("resume_scale.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[2])}
    output = subprocess.run(
        [sys.executable, script], env=environment, check=True, capture_output=True, text=True
    ).stdout
    measured = json.loads(output.splitlines()[-1])
    print(measured)
    assert measured["rows"] == 1_000_000
    assert measured["resume_seconds"] < 60
    assert measured["gb_peak"] - measured["gb_before"] < 1.0


def test_the_scale_script_works(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("resume_scale", Path(__file__).with_name("resume_scale.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_index(open_output(tmp_path), 3000, 1000)
    assert module.measure(str(tmp_path), 3000)["rows"] == 3000
