"""A scheduler that repeats whatever fails: what would end the same way is not done again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.events import Event, RunStarted
from consistory_ray.engine.options import RunOptions
from consistory_ray.errors import InputError, RunFailed
from consistory_ray.jobs.job import RenderJob
from consistory_ray.output.run_record import RunRecord, ended_the_same, read_run_record
from consistory_ray.plan.plan import make_plan
from consistory_ray.testing import FakeRenderer

pytestmark = pytest.mark.usefixtures("ray_cluster")


def render(job: RenderJob, out: Path, submission: str | None, **given: object) -> tuple[str, bool]:
    """How it ended, and whether it began."""
    events: list[Event] = []
    renderer = FakeRenderer.factory(faults={"scene-1": "bad"})
    options = RunOptions(workers=1, cpus_per_worker=1, renderer=renderer, submission=submission, **given)  # type: ignore[arg-type]
    try:
        summary = run_plan(make_plan(job), str(out), options, events.append, job=job.model_dump(mode="json"))
        ended = summary.state
    except RunFailed as error:
        ended = f"refused: {error}"
    return ended, any(isinstance(event, RunStarted) for event in events)


def test_a_run_with_failed_pictures_is_not_repeated_by_its_scheduler(
    make_job: Callable[..., RenderJob], tmp_path: Path
) -> None:
    job, other = make_job(subjects=1, scenes=3), make_job(subjects=1, scenes=4)
    assert render(job, tmp_path, "rayjob-1") == ("failed", True)
    record = read_run_record(str(tmp_path))
    assert record is not None and (record.submission, record.exit_code) == ("rayjob-1", 1)
    ended, begun = render(job, tmp_path, "rayjob-1")
    assert "would end the same way: 1 pictures failed" in ended and not begun
    assert read_run_record(str(tmp_path)) == record
    assert render(job, tmp_path, "rayjob-1", only_failed=True) == ("failed", True), "a retry tries again"
    assert render(job, tmp_path, "rayjob-2") == ("failed", True)
    assert render(other, tmp_path, "rayjob-2") == ("failed", True), "the job has changed"
    assert render(other, tmp_path, None) == ("failed", True), "a person tries again"


def test_a_model_that_cannot_be_used_is_not_loaded_again(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    plan = make_plan(make_job(subjects=1, scenes=1))
    (scratch := tmp_path / "scratch").mkdir()
    renderer = FakeRenderer.factory(bad_loads=range(100), scratch=str(scratch))
    for again in (False, True):
        with pytest.raises(InputError) as caught:
            run_plan(
                plan, str(tmp_path / "out"), RunOptions(workers=1, cpus_per_worker=1, renderer=renderer, submission="a")
            )
        assert ("has run already" in str(caught.value)) == again


def test_only_what_ends_the_same_is_refused() -> None:
    begun = RunRecord("cats", "fake", {"model": "https://me:secret@host/x"}, submission="a")
    ended = begun.update(state="failed", exit_code=1, job={"model": "https://host/x"})
    assert ended_the_same(begun, None) is None
    assert ended_the_same(begun, begun) is None, "it was killed"
    assert ended_the_same(begun, begun.update(state="failed")) is None, "storage or workers failed"
    assert ended_the_same(begun, ended.update(versions={"torch": "1"})) is None
    assert ended_the_same(begun, ended.update(submission="b")) is None
    assert ended_the_same(begun, begun.update(state="complete")) is None
