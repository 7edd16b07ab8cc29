"""Running jobs from Python: what README shows, what ``run_job`` takes, tells and raises."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

import consistory_ray
from consistory_ray import (
    AssetDone,
    AssetFailed,
    Event,
    InputError,
    JobError,
    Notice,
    RenderJob,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunOptions,
    RunStarted,
    StopRequest,
    run_job,
)
from consistory_ray.testing import FakeRenderer

ROOT = Path(__file__).parent.parent
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def options(**fake: Any) -> RunOptions:
    return RunOptions(workers=1, cpus_per_worker=1, renderer=FakeRenderer.factory(**fake))


@pytest.mark.usefixtures("ray_cluster")
def test_the_readmes_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """As it stands there, with a renderer that needs no model; Ray was begun by this process before."""
    (program,) = [text for text in PROGRAMS if "run_job(" in text]
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    monkeypatch.chdir(tmp_path)
    fake = partial(RunOptions, cpus_per_worker=1, renderer=FakeRenderer.factory())
    monkeypatch.setattr(consistory_ray, "RunOptions", fake)
    names: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), names)
    summary = names["summary"]
    assert (summary.state, summary.planned, summary.rendered, summary.gallery) == (
        "complete",
        30,
        30,
        "gallery/index.html",
    )
    assert (tmp_path / "out" / "quickstart" / summary.gallery).is_file()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(list((tmp_path / "out").rglob("images/*/*.png"))) + 6 == 30


def test_the_readmes_calls_of_the_pipeline_are_ones_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and arguments only: rendering it takes a quarter of a minute on a CPU."""
    (program,) = [text for text in PROGRAMS if "from_pretrained(" in text]
    kind = create_autospec(consistory_ray.ConsiStoryPipeline)
    pipe = kind.from_pretrained.return_value = create_autospec(consistory_ray.ConsiStoryPipeline, instance=True)
    monkeypatch.setattr(consistory_ray, "ConsiStoryPipeline", kind)
    exec(compile(program, "README.md", "exec"), {})
    assert pipe.create_subject.call_count == pipe.render.call_count == 1


@pytest.mark.usefixtures("ray_cluster")
def test_events_in_order_and_a_job_in_every_form(tmp_path: Path, make_job: Callable[..., RenderJob]) -> None:
    job = make_job(subjects=1, scenes=2)
    events: list[Event] = []
    threads = set()

    def listen(event: Event) -> None:
        events.append(event)
        threads.add(threading.current_thread())

    odd = job.model_dump(mode="json", exclude_unset=True) | {"settings": {"num_inference_steps": 2}}
    failing = options(faults={"scene-1": "bad"})
    summary = run_job(odd, tmp_path / "out", failing, on_event=listen)
    assert isinstance(events[0], Notice) and "num_inference_steps" in events[0].message
    told = [event for event in events if isinstance(event, RunStarted | AssetDone | AssetFailed | RunFinished)]
    assert [type(event) for event in (*told[:3], told[-1])] == [RunStarted, AssetDone, AssetDone, RunFinished]
    assert {type(event) for event in told[3:-1]} == {AssetDone, AssetFailed} and len(told) == 6
    assert isinstance(events[-1], RunFinished) and threads == {threading.current_thread()}
    assert (summary.state, summary.rendered, summary.failed) == ("failed", 3, 1)
    with pytest.raises(RunFailed, match="asked to fail"):
        summary.raise_for_state()

    path = tmp_path / "job.json"
    path.write_text(RenderJob.model_validate(odd).model_dump_json(exclude_unset=True))
    again = run_job(path, str(tmp_path / "out"), options(), gallery=False)
    assert (again.state, again.found, again.rendered, again.gallery) == ("complete", 3, 1, "")
    again = run_job(RenderJob.model_validate(odd), tmp_path / "out", options(), gallery=False)
    assert (again.state, again.found, again.rendered) == ("complete", 4, 0), "each form is the same job"


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_listener_raises_ends_the_run_and_the_same_call_goes_on(tmp_path: Path, make_job: Any) -> None:
    def listen(event: Event) -> None:
        if isinstance(event, AssetDone) and event.asset.kind == "scene":
            raise LookupError("enough")

    job = make_job(subjects=1, scenes=3)
    with pytest.raises(LookupError, match="enough"):
        run_job(job, tmp_path / "out", options(), on_event=listen)
    assert run_job(job, tmp_path / "out", options()).found >= 3


@pytest.mark.usefixtures("ray_cluster")
def test_outside_of_the_main_thread_a_stop_is_asked_for(tmp_path: Path, make_job: Any) -> None:
    stop, found = StopRequest(), []

    def listen(event: Event) -> None:
        if isinstance(event, AssetDone):
            stop.ask("enough")

    job = make_job(subjects=1, scenes=30)
    thread = threading.Thread(
        target=lambda: found.append(run_job(job, tmp_path / "out", options(seconds=0.05), on_event=listen, stop=stop))
    )
    thread.start()
    thread.join(60)
    (summary,) = found
    assert summary.state == "interrupted" and 0 < summary.rendered < 32
    assert not (tmp_path / "out" / "gallery").exists()
    with pytest.raises(RunInterrupted):
        summary.raise_for_state()


def test_what_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path, make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(JobError, match="subjects"):
        run_job({"name": "none"}, out)
    with pytest.raises(JobError, match="cannot be read"):
        run_job(tmp_path / "none.yaml", out)
    monkeypatch.setenv("CONSISTORY_ALLOWED_URLS", str(tmp_path / "open"))
    job = make_job().model_copy(update={"model": "miniature"})
    with pytest.raises(InputError, match="output: use a place under"):
        run_job(job, out)
    with pytest.raises(InputError, match="job: use a place under"):
        run_job(tmp_path / "job.yaml", tmp_path / "open" / "out")
    with pytest.raises(InputError, match="model: use a place under"):
        run_job(make_job(), tmp_path / "open" / "out")
    assert not out.exists()
