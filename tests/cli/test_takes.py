"""From a render to a review's decisions and the next render, by the commands that people type."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from consistory_ray import RunOptions, load_job, make_plan, run_job
from consistory_ray.jobs.job import RenderJob
from consistory_ray.output.decisions import Decision, write_decisions
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.storage import open_output
from consistory_ray.plan.takes import take_of
from consistory_ray.testing import FakeRenderer
from tests.cli.test_cli import call, render

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def job(make_job: Callable[..., RenderJob], tmp_path: Path) -> Path:
    """A job file of 2 subjects with 2 anchors and 3 scenes each."""
    path = tmp_path / "job.json"
    path.write_text(make_job(subjects=2, scenes=3).model_dump_json(exclude_unset=True))
    return path


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every picture by its path."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in out.rglob("*.png")
    }


def told(result: Result) -> dict[str, Any]:
    """What ``--json`` says."""
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_what_a_review_asks_for_is_what_the_next_render_makes(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert render(job, out).exit_code == 0
    before, plan = digests(out), make_plan(load_job(job))
    scenes = [scene for subject in plan.subjects for scene in subject.scenes]
    store = open_output(str(out))
    for scene, number in ((scenes[0], 2), (scenes[4], 2)):
        names = (scene.asset_id, scene.asset_id, scene.subject_id, scene.scene_id)
        write_decisions(store, [Decision(*names, "reroll", "mia", take=number), Decision(*names, "reject", "mia")])
    planned = told(call("plan", job, "-o", out, "--json"))
    assert (planned["rerolls"], planned["rerolls_todo"], planned["todo"], planned["takes"]) == (2, 2, 2, 2)
    assert "asked for in a review: 2 re-rolls, 2 to do" in call("plan", job, "-o", out).stdout
    assert "decided: 2 rejected, 2 re-rolled; 2 re-rolls to do" in call("status", out).stdout

    result = render(job, out)
    assert result.exit_code == 0 and "2 re-rolls made" in result.stdout
    after = digests(out)
    new = {take_of(scenes[0], 2).path, take_of(scenes[4], 2).path}
    assert after.keys() - before.keys() == new and after.items() >= before.items()
    assert told(call("status", out, "--json"))["rerolls_todo"] == 0
    page = (out / "gallery" / "index.html").read_text()
    assert all(page.count(f"../{path}") for path in (*new, scenes[0].path)), "all takes are to be seen"
    assert page.count('<small class="take">take 2</small>') == 2 and "to come" not in page
    assert call("verify", out).exit_code == 0
    assert "0 pictures made" in render(job, out).stdout and digests(out) == after


def test_plan_tells_of_decisions_that_cannot_be_used(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert render(job, out).exit_code == 0
    (out / "decisions").mkdir()
    (out / "decisions" / "part-00000000000000000000000000000000.parquet").write_bytes(b"half a part")
    planned = call("plan", job, "-o", out, "--json")
    assert planned.exit_code == 0 and json.loads(planned.stdout)["todo"] == 0
    assert "are passed over: decisions/part-0000" in planned.stderr


def test_takes_by_the_command_line_are_recorded(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned = told(call("plan", job, "-o", out, "--takes", 2, "--json"))
    assert (planned["scenes"], planned["takes"], planned["todo"]) == (6, 6, 16)
    summary = told(render(job, out, "--takes", 2, "--json"))
    assert (summary["planned"], summary["rendered"], summary["takes"]) == (16, 16, 6)
    record = read_run_record(out)
    assert record is not None and record.job["takes"] == 2
    status = told(call("status", out, "--json"))
    assert (status["planned"], status["done"], status["takes"]) == (16, 16, 6)
    assert call("plan", out / "run.json", "-o", out).stdout.count("6 further takes") == 1
    assert call("render", job, "-o", out, "--takes", 65).exit_code == 2

    def again(takes: int | None) -> int:
        factory = FakeRenderer.factory()
        options = RunOptions(workers=1, cpus_per_worker=1, renderer=factory)
        return run_job(job, out, options, takes=takes, gallery=False).rendered

    assert [again(2), again(3), again(None)] == [0, 6, 0]
