"""Workers and coordinators die of jobs with several takes: none that is there is made twice, none is lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from consistory_ray.output.decisions import Decision, write_decisions
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.takes import chosen_rows
from consistory_ray.output.standing import gate_of, take_in
from consistory_ray.quality.gate import Verdict
from tests.chaos.harness import Cluster, Run
from tests.chaos.invariants import Marks, check_kept, content, pictures, there
from tests.chaos.test_kills import let_it_begin

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

QUALITY = {"metric": "colours", "within": 0.0, "max_takes": 3, "when_none_passes": "accept"}


def gated_job(path: Path) -> Path:
    """Three subjects with eight scenes each, half of which fall short at first."""
    subjects = [
        {
            "id": f"cat-{number}",
            "concept": "cat",
            "subject": f"a cat number {number}",
            "anchors": ["at home", "in the garden"],
            "scenes": [f"at place {scene}" for scene in range(8)],
        }
        for number in range(3)
    ]
    path.write_text(yaml.safe_dump({"name": "gated", "model": "fake", "quality": QUALITY, "subjects": subjects}))
    return path


def found(run: Run) -> dict[str, Any]:
    """What the index says and the files hold: score and content of every take, and which ones are chosen."""
    rows = read_index(run.store)
    ok = {row["asset_id"]: row for row in rows.to_pylist() if row["status"] == "ok"}
    assert len(ok) == len(rows), "something failed"
    takes = {key: (row["score"], content(there(run.store, row["path"]))) for key, row in ok.items()}
    assert pictures(run.store) == {row["path"] for row in ok.values()}, "pictures without rows"
    return {"takes": takes, "chosen": chosen_rows(rows)["asset_id"].to_pylist()}


def test_a_gated_job_survives_kills(cluster: Cluster, tmp_path: Path) -> None:
    chance, job = random.Random(18), gated_job(tmp_path / "gated.yaml")
    calm = Run(cluster, tmp_path / "calm", job, str(tmp_path / "calm-out"))
    calm.finish()
    wanted = found(calm)
    assert len(wanted["takes"]) > 30 == len(wanted["chosen"]), "nothing was rendered again"

    run = Run(cluster, tmp_path / "run", job, str(tmp_path / "out"), {"seconds": 0.1, "jitter": 0.5}, workers=2)
    kept = Marks()
    for round_number in range(5):
        coordinator = run.start()
        if let_it_begin(run, coordinator, chance.randrange(2, 5)) is not None:
            break
        run.kill_worker(chance)
        if round_number % 2:
            let_it_begin(run, coordinator, 2)
        run.kill(coordinator)
        cluster.wait_until_gone()
        check_kept(run.store, kept)
        kept |= {path: mark for path in pictures(run.store) if (mark := _mark(run, path)) and "images/" in path}
    run.finish(seconds=0.0)
    check_kept(run.store, kept)
    assert found(run) == wanted
    gate = gate_of(run.plan)
    assert gate is not None and not take_in(gate, run.plan, read_index(run.store))
    scenes = [scene.asset_id for subject in run.plan.subjects for scene in subject.scenes]
    assert all(gate.verdict(scene) is not Verdict.OPEN for scene in scenes)


def _mark(run: Run, path: str) -> tuple[int, int]:
    stat = Path(run.store.join(path)).stat()
    return stat.st_ino, stat.st_mtime_ns


def test_takes_and_rerolls_survive_kills(cluster: Cluster, tmp_path: Path) -> None:
    """Two takes of each scene; while they are made and killed somebody asks for more, and rejects some."""
    chance, job = random.Random(19), tmp_path / "takes.yaml"
    told = yaml.safe_load(gated_job(job).read_text())
    del told["quality"]
    job.write_text(yaml.safe_dump({**told, "takes": 2, "subjects": told["subjects"][:2]}))
    calm = Run(cluster, tmp_path / "calm", job, str(tmp_path / "calm-out"))
    calm.finish()
    assert len(found(calm)["takes"]) == 4 + 2 * 8 * 2
    run = Run(cluster, tmp_path / "run", job, str(tmp_path / "out"), {"seconds": 0.1, "jitter": 0.5}, workers=2)
    kept, scenes = Marks(), [scene for subject in run.plan.subjects for scene in subject.scenes]
    for round_number in range(4):
        coordinator = run.start()
        if let_it_begin(run, coordinator, chance.randrange(2, 4)) is not None:
            break
        for scene in chance.sample(scenes, 2):  # while the run goes on, which does not hear of it
            names = (scene.asset_id, scene.asset_id, scene.subject_id, scene.scene_id)
            for one_run in (run, calm):
                seen = [Decision(*names, "reject", "mia")] if scene.path in pictures(run.store) else []
                write_decisions(one_run.store, [Decision(*names, "reroll", "mia", take=3 + round_number), *seen])
        if round_number % 2:
            run.kill_worker(chance)
        run.kill(coordinator)
        cluster.wait_until_gone()
        check_kept(run.store, kept)
        kept |= {path: mark for path in pictures(run.store) if (mark := _mark(run, path)) and "images/" in path}
    run.finish(seconds=0.0)
    calm.finish()
    check_kept(run.store, kept)
    assert found(run) == found(calm) and len(found(run)["takes"]) > 4 + 2 * 8 * 2
    before = {path: _mark(run, path) for path in pictures(run.store)}
    run.finish()
    assert {path: _mark(run, path) for path in pictures(run.store)} == before
