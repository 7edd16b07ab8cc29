"""The job is edited between the deaths of its coordinators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from consistory_ray.output.assets import read_metadata
from consistory_ray.output.index.index import read_index, read_parts
from consistory_ray.output.storage import OutputStore
from consistory_ray.plan.plan import Plan
from tests.chaos.conftest import MakeRun
from tests.chaos.harness import Run
from tests.chaos.invariants import Marks, check_caches, check_kept, check_over, digests, keepsakes, there
from tests.chaos.test_kills import let_it_begin

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

Subjects = dict[str, dict[str, Any]]
"""A job's subjects by id; their scenes are prompts by scene id."""
SCENES = 24


def subject(name: str) -> dict[str, Any]:
    """One with two anchors and 24 scenes."""
    scenes = {f"place-{number}": f"at place {number}" for number in range(SCENES)}
    return {"subject": f"a cat named {name}", "anchors": ["at home", "in the garden"], "scenes": scenes}


def write(path: Path, subjects: Subjects) -> None:
    """As a job file."""
    entries = [
        {"id": name, "concept": "cat", **given}
        | {"scenes": [{"id": scene, "prompt": prompt} for scene, prompt in given["scenes"].items()]}
        for name, given in subjects.items()
    ]
    path.write_text(yaml.safe_dump({"name": "edited", "model": "fake", "subjects": entries}))


def add_remove_and_change_scenes(subjects: Subjects) -> None:
    """In one subject each."""
    for number in range(SCENES, SCENES + 6):
        subjects["tom"]["scenes"][f"place-{number}"] = f"at place {number}"
    for number in range(0, SCENES, 2):
        del subjects["felix"]["scenes"][f"place-{number}"]
    for number in range(0, SCENES, 3):
        subjects["kitty"]["scenes"][f"place-{number}"] = f"at another place {number}"


def change_anchors_and_subjects(subjects: Subjects) -> None:
    """Other anchors make another individual, of whom every scene is another one in the old one's place."""
    subjects["felix"]["anchors"][0] = "on the sofa"
    subjects["garfield"] = subject("garfield")


def take_back(subjects: Subjects) -> None:
    """What was removed comes back, a subject goes, the one that was changed is as it was."""
    del subjects["tom"]
    subjects["kitty"] = subject("kitty")
    subjects["felix"]["scenes"] = subject("felix")["scenes"]


def rename(subjects: Subjects) -> None:
    """Some scenes have other names, and all else is as it was."""
    scenes = subjects["kitty"]["scenes"]
    for number in range(0, SCENES, 5):
        scenes[f"spot-{number}"] = scenes.pop(f"place-{number}")


EDITS: tuple[tuple[int, Callable[[Subjects], None]], ...] = (
    (12, add_remove_and_change_scenes),
    (4, change_anchors_and_subjects),
    (6, take_back),
)
"""After how many calls a coordinator dies, about half of what it has to do, and how the job is edited then."""


def check_history(store: OutputStore, plans: Sequence[Plan]) -> dict[str, dict[str, Any]]:
    """At any moment: every row, replaced ones included, is of an asset of one of these plans and says what its file is.

    Only where an asset's row now names another place, its picture was moved there and may have left the former one.

    Returns:
        The index's rows by asset id.
    """
    planned = {(asset.asset_id, asset.path) for plan in plans for asset in plan.assets()}
    rows = {row["asset_id"]: row for row in read_index(store).to_pylist()}
    for row in read_parts(store)[0].to_pylist():
        assert row["status"] == "ok" and (row["asset_id"], row["path"]) in planned, row
        data = there(store, row["path"])
        if not data and rows[row["asset_id"]]["path"] != row["path"]:
            continue
        inside = read_metadata(data)
        assert inside is not None and inside["asset_id"] == row["asset_id"], f"{row['path']} is another asset's"
        assert hashlib.sha256(data).hexdigest() == row["sha256"], f"{row['path']} is not what its row says"
    return rows


def still_planned(marks: Marks, before: Plan, now: Plan) -> Marks:
    """Those of an earlier plan's pictures that this one wants in the same place."""
    wanted = {asset.path: asset.asset_id for asset in now.assets()}
    same = {asset.path for asset in before.assets() if wanted.get(asset.path) == asset.asset_id}
    return {path: mark for path, mark in marks.items() if path in same}


def test_jobs_are_edited_between_deaths(make_run: MakeRun, tmp_path: Path) -> None:
    """Scenes come, go and change, subjects too, and each time the coordinator dies in the middle: at the end exactly
    the last plan is there, and what an edit left alone has its old row and was not rendered again. Then names change.
    """
    chance = random.Random(12)
    subjects = {name: subject(name) for name in ("tom", "felix", "kitty")}
    run = make_run(job=tmp_path / "job.yaml", seconds=0.2, jitter=0.5)
    write(run.job, subjects)
    plans, kept, rows = [run.plan], Marks(), dict[str, dict[str, Any]]()
    for calls, edit in EDITS:
        coordinator = run.start()
        assert let_it_begin(run, coordinator, calls + chance.randrange(3)) is None, coordinator.text()
        assert coordinator.kill()
        run.cluster.wait_until_gone()
        check_kept(run.store, kept)
        found = check_history(run.store, plans)
        assert found.items() >= rows.items(), "rows of unchanged assets have changed"
        edit(subjects)
        write(run.job, subjects)
        plans.append(run.plan)
        made = keepsakes(run.store, plans[-2])
        kept = still_planned(made, plans[-2], plans[-1])
        ids = {asset.asset_id for asset in plans[-1].assets()}
        rows = {asset_id: row for asset_id, row in found.items() if asset_id in ids}
        assert rows and 0 < len(kept) < len(made), "the edit changes some of what was there, and not all"
    run.finish(seconds=0.0)
    check_kept(run.store, kept)
    found = check_history(run.store, plans)
    assert found.items() >= rows.items(), "rows of unchanged assets have changed"
    check_exactly(run, plans[-1], found)

    rename(subjects)
    write(run.job, subjects)
    calls = run.calls()
    coordinator = run.start()
    if coordinator.wait(chance.uniform(0, 1)) is None:
        coordinator.kill()
    check_history(run.store, [*plans, run.plan])
    run.finish()
    assert run.calls() == calls, "what has another name only is not rendered again"
    check_exactly(run, run.plan, check_history(run.store, [*plans, run.plan]))


def check_exactly(run: Run, plan: Plan, rows: dict[str, dict[str, Any]]) -> None:
    """The plan is there as if it had been rendered at once; beside it only history that is in nobody's way."""
    places = {asset.path: asset.asset_id for asset in plan.assets()}
    assert places.items() <= {row["path"]: asset_id for asset_id, row in rows.items()}.items()
    former = {row["path"] for asset_id, row in rows.items() if asset_id not in places.values()}
    assert former and not former & set(places), "a subject was removed, its rows stay"
    folder = run.folder / f"calm-{run.starts}"
    calm = Run(run.cluster, folder, run.job, str(folder / "out"))
    calm.finish()
    check_over(calm.store, plan)
    check_caches(calm.store, plan)
    assert digests(run.store, plan) == digests(calm.store, plan)
