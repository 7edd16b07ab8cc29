"""The command line: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from consistory_ray import errors
from consistory_ray.cli.app import app
from consistory_ray.cli.common import exit_of
from consistory_ray.cli.options import FAILURES, HOW_MANY, LOGS, WHAT, WHERE
from consistory_ray.jobs.job import RenderJob
from consistory_ray.output.index.index import read_index
from consistory_ray.output.run_record import read_run_record
from tests.patience import PATIENCE, SOON

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"
FAKE = "consistory_ray.testing:FakeRenderer"


@pytest.fixture
def job(make_job: Callable[..., RenderJob], tmp_path: Path) -> Path:
    """A job file of 2 subjects with 2 anchors and 4 scenes each."""
    path = tmp_path / "job.json"
    path.write_text(make_job(subjects=2, scenes=4).model_dump_json(exclude_unset=True))
    return path


def call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def render(job: Path, out: Path, *more: object, **fake: Any) -> Result:
    options = ("--workers", 1, "--cpus-per-worker", 1, "--renderer", FAKE, "--renderer-options", json.dumps(fake))
    return call("render", job, "-o", out, *options, *more)


def test_validate(job: Path) -> None:
    result = call("validate", job)
    assert result.exit_code == 0
    assert "2 subjects, 4 anchors, 8 scenes" in result.stdout
    assert json.loads(call("validate", job, "--json").stdout)["valid"] is True


def test_all_problems_are_told_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: x\nsettings: {num_inference_steps: -1}\nsubjects: [{concept: cat, anchors: [a], scens: [b]}]\n"
    )
    result = call("validate", path)
    assert result.exit_code == 2
    assert "num_inference_steps" in result.stderr and "scens" in result.stderr
    assert "Traceback" not in result.stderr
    told = json.loads(call("validate", path, "--json").stdout)
    assert told["valid"] is False and len(told["problems"]) >= 2


def test_plan_counts_and_writes_nothing(job: Path, tmp_path: Path) -> None:
    result = call("plan", job, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    counts = {key: told[key] for key in ("subjects", "anchors", "scenes", "done", "todo")}
    assert counts == {"subjects": 2, "anchors": 4, "scenes": 8, "done": 0, "todo": 12}
    assert told["cache_bytes"] > 0 and told["seconds"] > 0
    assert not (tmp_path / "out").exists()
    assert "cat-1" in call("plan", job, "-o", tmp_path / "out").stdout


@pytest.mark.parametrize(
    "keep, kept, words",
    [
        ("auto", 0, "of anchor caches only while the run needs them; --keep-anchors all keeps them at the output (9"),
        ("all", 1, "of anchor caches will be kept at the output (9"),
        ("previews", 0, "only while the run needs them"),
        ("none", 0, "of anchor caches are never written to the output"),
    ],
)
def test_plan_tells_what_caches_take(tmp_path: Path, keep: str, kept: bool, words: str) -> None:
    """100 subjects with 50 scenes of an SDXL model that is not here: 9.5 GB of pictures, 550 GB of caches."""
    scenes = [f"a cat {number}" for number in range(50)]
    subjects = [
        {"id": f"cat-{number}", "concept": "cat", "anchors": [f"a cat {number} here"], "scenes": scenes}
        for number in range(100)
    ]
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"model": "some/sdxl", "subjects": subjects}))
    told = json.loads(call("plan", job, "-o", tmp_path / "out", "--keep-anchors", keep, "--json").stdout)
    assert told["cache_bytes"] > 200e9 and 8e9 < told["picture_bytes"] < 12e9
    assert told["kept_cache_bytes"] == (told["cache_bytes"] if kept else 0)
    shown = " ".join(call("plan", job, "-o", tmp_path / "out", "--keep-anchors", keep).stdout.split())
    assert words in shown, shown


def test_plan_keeps_the_caches_of_the_bundled_model(tmp_path: Path) -> None:
    told = json.loads(call("plan", QUICKSTART, "-o", tmp_path / "out", "--json").stdout)
    assert told["kept_cache_bytes"] == told["cache_bytes"] > 0
    assert "--keep-anchors previews keeps none" in " ".join(call("plan", QUICKSTART, "-o", tmp_path).stdout.split())


@pytest.mark.parametrize("command", ["validate", "plan", "status", "schema"])
def test_commands_that_start_quickly(job: Path, tmp_path: Path, command: str) -> None:
    """They need neither torch nor Ray."""
    argv = (
        [command] + ([] if command == "schema" else [str(job)]) + (["-o", str(tmp_path)] if command == "plan" else [])
    )
    code = f"""
import sys
from typer.testing import CliRunner
from consistory_ray import errors
from consistory_ray.cli.app import app
from consistory_ray.cli.common import exit_of
result = CliRunner().invoke(app, {argv!r})
assert result.exit_code == 0, result.output
assert not {{"torch", "ray", "diffusers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=tmp_path, env=_environment())


def test_schema_is_the_jobs() -> None:
    assert json.loads(call("schema").stdout) == RenderJob.model_json_schema()


def test_status_of_nothing(tmp_path: Path) -> None:
    result = call("status", tmp_path)
    assert result.exit_code == 2
    assert "nothing was rendered there" in result.stderr


@pytest.mark.parametrize(
    ("gone", "instead"),
    [
        ("--fail-fast", "--max-failures 0"),
        ("--only-failed", "retry"),
        ("--verbose", "--log-level"),
        ("-v", "--log-level"),
    ],
)
def test_an_option_that_is_gone_names_what_to_give(job: Path, tmp_path: Path, gone: str, instead: str) -> None:
    result = call("render", job, "-o", tmp_path / "out", gone)
    assert result.exit_code == 2 and f"No such option: {gone}" in result.stderr and instead in result.stderr
    assert not (tmp_path / "out").exists()


def test_help_is_in_groups() -> None:
    """All options of the commands that render stand in a group that says what they are about."""
    command = get_command(app).get_command(None, "render")  # type: ignore[arg-type, attr-defined]
    groups = {getattr(item, "rich_help_panel", None) for item in command.params if not getattr(item, "hidden", False)}
    assert {WHAT, WHERE, HOW_MANY, FAILURES, LOGS} <= groups
    assert all(group in call("render", "--help").stdout for group in (WHAT, WHERE, HOW_MANY, FAILURES, LOGS))


@pytest.mark.parametrize("given", ["0", "-1", "2.5", "many", "", "9" * 5000])
def test_batch_sizes_that_are_none(job: Path, tmp_path: Path, given: str) -> None:
    result = call("render", job, "-o", tmp_path / "out", "--batch-size", given)
    assert result.exit_code == 2 and "--batch-size" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_batch_size_that_adapts(job: Path, tmp_path: Path) -> None:
    result = render(job, tmp_path / "out", "--batch-size", "auto", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["rendered"] == 12


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_is_not_worse_for_a_gallery_that_cannot_be_built(job: Path, tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    (out / "gallery").symlink_to("/nowhere/at/all")
    result = render(job, out)
    assert result.exit_code == 0 and "complete" in result.stdout, result.output
    assert "the gallery was not built" in result.stderr and f"consistory-ray gallery {out}" in result.stderr


def test_a_renderer_that_is_none(job: Path, tmp_path: Path) -> None:
    result = call("render", job, "-o", tmp_path / "out", "--renderer", "consistory_ray.testing:Nobody")
    assert result.exit_code == 2
    assert "Nobody" in result.stderr


@pytest.mark.usefixtures("ray_cluster")
def test_render_status_and_plan_agree(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = render(job, out, faults={"cat-1/scene-2": "bad"})
    assert result.exit_code == 1, result.output
    assert "11 pictures made" in result.stdout and "images/cat-1/scene-2.png" in result.stdout
    assert (out / "gallery" / "index.html").is_file()

    told = json.loads(call("status", out, "--json").stdout)
    assert (told["state"], told["planned"], told["done"], told["failed"], told["todo"]) == ("failed", 12, 11, 1, 1)
    assert told == json.loads(call("status", job, "-o", out, "--json").stdout)
    assert "asked to fail" in call("status", out).stdout
    planned = json.loads(call("plan", job, "-o", out, "--json").stdout)
    assert (planned["done"], planned["todo"], planned["measured"]) == (11, 1, True)

    result = render(job, out, "--json", "--no-gallery")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["state"], told["found"], told["rendered"]) == ("complete", 11, 1)


def _environment() -> dict[str, str]:
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _start(job: Path, out: Path, **fake: Any) -> subprocess.Popen[str]:
    """A render in a process group of its own, past its first anchors."""
    import ray

    command = [sys.executable, "-m", "consistory_ray.cli", "render", str(job), "-o", str(out)]
    command += ["--address", ray.get_runtime_context().gcs_address, "--workers", "1", "--cpus-per-worker", "1"]
    command += ["--batch-size", "1", "--renderer", FAKE, "--renderer-options", json.dumps(fake)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=_environment())
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "anchors made" in line:
            return process
    raise AssertionError("".join(seen))


@pytest.mark.usefixtures("ray_cluster")
def test_ctrl_c_stops_cleanly_and_the_same_command_resumes(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _start(job, out, seconds=0.4)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, errors
    assert "resumes" in errors and "Traceback" not in errors
    table = read_index(str(out))
    assert 0 < table.num_rows < 12
    assert sorted(table["path"].to_pylist()) == sorted(
        str(path.relative_to(out)) for folder in ("images", "anchors") for path in (out / folder).rglob("*.png")
    )
    record = read_run_record(str(out))
    assert record is not None and record.state == "interrupted"

    result = render(job, out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["found"] == table.num_rows


@pytest.mark.usefixtures("ray_cluster")
def test_a_second_ctrl_c_leaves_at_once(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _start(job, out, seconds=10 * SOON, anchor_seconds=0)
    time.sleep(1)  # until a scene is being rendered
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, errors
    assert time.monotonic() - started < SOON
    assert read_index(str(out)).num_rows == 2  # the anchors
    assert render(job, out).exit_code == 0


def test_plan_tells_the_price_of_every_kind_or_of_one(tmp_path: Path) -> None:
    subject = {"id": "cat", "concept": "cat", "anchors": ["a cat here"], "scenes": ["a cat there"] * 9}
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"model": "some/sdxl", "subjects": [subject]}))
    price = json.loads(call("plan", job, "-o", tmp_path / "out", "--deadline", "1h", "--json").stdout)["price"]
    assert {one["basis"] for one in price["devices"]} == {"assumed"} and len(price["devices"]) > 4
    assert all(len(one["devices_for_deadline"]) == 3 for one in price["devices"])
    shown = call("plan", job, "-o", tmp_path / "out", "--accelerator-type", "L4", "--workers", 3).stdout
    assert "3 L4" in shown and "H100" not in shown and "assumed" in shown and "USD" in shown
    mine = tmp_path / "mine.yaml"
    mine.write_text("{version: 1, currency: EUR, gpus: {L4: {per_hour: 7.2, pictures: [{seconds: 5}]}}}")
    given = ("plan", job, "-o", tmp_path / "out", "--prices", mine, "--json")
    (only,) = json.loads(call(*given).stdout)["price"]["devices"]
    assert (only["kind"], only["basis"]) == ("L4", "measured") and only["cost"]["low"] < only["cost"]["high"]
    refused = call("plan", job, "--prices", mine, "--accelerator-type", "B200")
    assert refused.exit_code == 2 and "B200" in refused.stderr and "L4" in refused.stderr
    for wrong in (("--deadline", "soon"), ("--prices", tmp_path), ("--measured", tmp_path)):
        refused = call("plan", job, *wrong)
        assert refused.exit_code == 2 and wrong[0] in refused.stderr, refused.stderr


def test_a_limit_without_a_price_is_refused_before_anything_is_loaded(job: Path, tmp_path: Path) -> None:
    refused = render(job, tmp_path / "out", "--max-cost", 5)
    assert refused.exit_code == 2 and "--price-per-gpu-hour" in refused.stderr, refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_max_cost_has_an_exit_code_of_its_own(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    price = ("--price-per-gpu-hour", 3600, "--batch-size", 1)
    stopped = render(job, out, "--max-cost", 0.001, *price, seconds=1.0)
    assert stopped.exit_code == 76, stopped.output
    assert "as much again" in stopped.stdout and "so far, of a forecast of" in stopped.stdout
    assert "may cost as much again" in call("status", out).stdout
    assert call("status", out, "--watch").exit_code == 76
    assert render(job, out, *price).exit_code == 0
    shown = call("status", out).stdout
    assert "the forecast of" in shown and "device-hours" in shown
    measured = ("--measured", out, "--accelerator-type", "L4", "--json")
    (told,) = json.loads(call("plan", job, "-o", tmp_path / "other", *measured).stdout)["price"]["devices"]
    assert told["basis"] == "measured" and told["pictures"] == 12
    assert "--accelerator-type" in call("plan", job, "-o", tmp_path / "other", "--measured", out).stderr


def test_each_kind_of_error_has_its_exit_code() -> None:
    """The tree in errors.py says what the caller does next; so does the exit code."""
    found = {
        kind.__name__: exit_of(kind("why"))
        for kind in descendants(errors.ConsistoryError)
        if kind.__module__ == errors.__name__
    }
    assert {name for name, code in found.items() if code == 1} == {
        "AssetError",
        "PictureError",
        "RejectedError",
        "RunFailed",
    }
    assert {name for name, code in found.items() if code == 75} == {"RunInterrupted"}
    inputs = {"InputError", "JobError", "PromptError", "CacheMismatchError", "CheckpointError"}
    assert {name for name, code in found.items() if code == 2} == inputs
    assert {name for name, code in found.items() if code == 76} == {"MaxCostReached"}
    assert set(found.values()) == {1, 2, 3, 75, 76}


def descendants(kind: type) -> list[type]:
    """A class and all classes of the package below it."""
    return [kind, *(below for child in kind.__subclasses__() for below in descendants(child))]
