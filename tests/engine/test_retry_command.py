"""``consistory-ray retry``: what failed and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from consistory_ray.cli.app import app
from consistory_ray.jobs.job import RenderJob
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.parts import read_parts
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.storage import open_output
from consistory_ray.testing import read_trace

pytestmark = pytest.mark.usefixtures("ray_cluster")

FAKE = "consistory_ray.testing:FakeRenderer"
BAD = {"cat-0/scene-1": "bad", "cat-1/scene-3": "error"}


@pytest.fixture
def job(make_job: Callable[..., RenderJob], tmp_path: Path) -> Path:
    """A job file of 2 subjects with 2 anchors and 4 scenes each."""
    path = tmp_path / "job.json"
    path.write_text(make_job(subjects=2, scenes=4).model_dump_json(exclude_unset=True))
    return path


def call(command: str, job: Path, *more: object, **fake: Any) -> Result:
    """Run a command of the command line into ``out`` beside the job; the renderer's trace lies there, too."""
    (trace := job.with_name("trace")).mkdir(exist_ok=True)
    given = [command, job, "-o", job.with_name("out"), "--workers", 1, "--cpus-per-worker", 1, "--no-gallery"]
    given += ["--renderer", FAKE, "--renderer-options", json.dumps({"trace": str(trace)} | fake), *more]
    return CliRunner().invoke(app, [str(value) for value in given])


def told(result: Result) -> dict[str, Any]:
    """The summary that was printed."""
    summary: dict[str, Any] = json.loads(result.stdout)
    return {key: summary[key] for key in ("state", "planned", "found", "rendered", "failed")}


def rows(job: Path) -> dict[str, dict[str, Any]]:
    """The index, by subject and scene."""
    return {f"{row['subject']}/{row['scene']}": row for row in read_index(job.with_name("out")).to_pylist()}


def made(job: Path) -> int:
    """How many scenes were rendered so far."""
    return sum(span.assets for span in read_trace(job.with_name("trace")) if span.kind == "scenes")


def test_only_what_failed_is_rendered_and_the_rest_is_kept(job: Path) -> None:
    result = call("render", job, "--json", faults=BAD)
    assert result.exit_code == 1, result.output
    assert told(result) == {"state": "failed", "planned": 12, "found": 0, "rendered": 10, "failed": 2}
    before = rows(job)
    assert {name for name, row in before.items() if row["status"] == "failed"} == set(BAD)
    out, lost = job.with_name("out"), before.pop("cat-1/scene-0")["path"]
    (out / lost).unlink()  # missing, but nothing that failed
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    scenes = made(job)

    result = call("retry", job, "--json")
    assert result.exit_code == 0, result.output
    assert told(result) == {"state": "complete", "planned": 11, "found": 9, "rendered": 2, "failed": 0}
    assert made(job) == scenes + 2
    after = rows(job)
    assert "cat-1/scene-0" not in after and not (out / lost).exists(), "its row goes, since its file has gone"
    assert {name: row for name, row in after.items() if name not in BAD} == {
        name: row for name, row in before.items() if name not in BAD
    }
    assert {after[name]["status"] for name in BAD} == {"ok"}
    assert {path: path.stat().st_mtime_ns for path in files} == files, "what was there was written again"
    assert {str(path.relative_to(out)) for path in set(out.rglob("*.png")) - set(files)} == {
        after[name]["path"] for name in BAD
    }
    assert len(read_parts(open_output(out))[0]) == 11

    result = call("render", job, "--json")
    assert result.exit_code == 0, result.output
    assert told(result) == {"state": "complete", "planned": 12, "found": 11, "rendered": 1, "failed": 0}


def test_what_fails_again_stays_failed_and_is_told(job: Path) -> None:
    assert call("render", job, faults=BAD).exit_code == 1
    result = call("retry", job, faults={"cat-1/scene-3": "bad"})
    assert result.exit_code == 1, result.output
    assert "images/cat-1/scene-3.png" in result.stdout and "scene-1.png" not in result.stdout
    assert {name: row["status"] for name, row in rows(job).items() if name in BAD} == {
        "cat-0/scene-1": "ok",
        "cat-1/scene-3": "failed",
    }
    assert rows(job)["cat-1/scene-3"]["fault"] == "bad-asset", "the newest failure counts"
    record = read_run_record(job.with_name("out"))
    assert record is not None and (record.state, record.totals["failed"]) == ("failed", 1)


def test_anchors_that_failed_are_made_with_all_that_waits_for_them(job: Path) -> None:
    result = call("render", job, "--json", faults={"cat-1/anchor-1": "bad"})
    assert result.exit_code == 1, result.output
    assert told(result)["failed"] == 6, "anchors and scenes of one subject"
    result = call("retry", job, "--json")
    assert result.exit_code == 0, result.output
    assert told(result) == {"state": "complete", "planned": 12, "found": 6, "rendered": 6, "failed": 0}
    assert {row["status"] for row in rows(job).values()} == {"ok"} and len(rows(job)) == 12


def test_with_nothing_that_failed_there_is_nothing_to_do(job: Path, tmp_path: Path) -> None:
    """In an empty output that is a mistake, which leaves nothing behind; in a complete one it is not."""
    result = call("retry", job, "--json")
    assert result.exit_code == 2 and "nothing to retry" in result.stderr, result.output
    assert not list(job.with_name("out").glob("*")) and not read_trace(tmp_path / "trace")

    assert call("render", job).exit_code == 0
    scenes = made(job)
    result = call("retry", job, "--json", faults={"scene-0": "bad"})
    assert result.exit_code == 0, result.output
    assert told(result) == {"state": "complete", "planned": 12, "found": 12, "rendered": 0, "failed": 0}
    assert made(job) == scenes


def test_options_and_jobs_that_cannot_be_used(job: Path) -> None:
    assert call("retry", job, "--label", "spot").exit_code == 2
    job.write_text("{}")
    assert call("retry", job).exit_code == 2
