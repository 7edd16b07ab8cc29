"""Checks reject pictures before they are kept: told, counted, not made again by a render, made again by a retry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.running import load, run_job
from consistory_ray.errors import InputError, JobError
from consistory_ray.guards.named_code import VARIABLE
from consistory_ray.output.gallery.pages import GALLERY_PAGE
from consistory_ray.output.index.index import read_index
from consistory_ray.testing import FakeRenderer, dark

DARK = "consistory_ray.testing:dark"


def job(*checks: str, id: str = "dragon") -> dict[str, Any]:
    places = ["in the forest", "on the beach", "in space", "in the snow", "in the rain", "at sunset"]
    subject = {"id": id, "concept": "dragon", "subject": "a dragon", "anchors": places[:2], "scenes": places[2:]}
    return {"name": "checked", "model": "fake", "subjects": [subject], "checks": list(checks)}


def test_a_job_names_only_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(InputError, match="not allowed to be named") as caught:
        load(job("os:system"))
    assert caught.value.problems[0].path == "checks[0]"
    with pytest.raises(JobError) as refused:
        load(job("os.system('x')"))
    assert "package.module:function" in refused.value.problems[0].fix
    monkeypatch.setenv(VARIABLE, "house.rules")
    assert load(job("house.rules:dark"))[1].checks == ("house.rules:dark",)


def test_checks_are_no_part_of_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "house.rules")
    ids = [[asset.asset_id for asset in load(one)[1].assets()] for one in (job(), job("house.rules:dark"))]
    assert ids[0] == ids[1]


def with_dark_scenes() -> tuple[str, set[str]]:
    """A subject whose anchors are bright, and the ids of some of its scenes that are not."""
    for number in range(200):
        (subject,) = load(job(id=f"dragon-{number}"))[1].subjects
        is_dark = {asset.asset_id for asset in subject.assets() if dark(FakeRenderer().picture(asset.asset_id))}
        scenes = {scene.asset_id for scene in subject.scenes}
        if is_dark and is_dark < scenes:
            return subject.subject_id, is_dark
    raise AssertionError("no subject of the fake's has bright anchors and a dark scene")


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_found_is_rejected_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, is_dark = with_dark_scenes()
    monkeypatch.setenv(VARIABLE, DARK)
    options = RunOptions(workers=1, cpus_per_worker=1, renderer=FakeRenderer.factory())
    out, count = str(tmp_path / "out"), len(is_dark)
    first = run_job(job(DARK, id=name), out, options)
    assert (first.state, first.failed, dict(first.failures_by_kind)) == ("failed", count, {"rejected": count})
    assert {failure.error for failure in first.failures} == {f"RejectedError: {DARK}: too dark"}
    rejected = {row["asset_id"]: row for row in read_index(out).to_pylist() if row["status"] == "rejected"}
    assert rejected.keys() == is_dark
    for row in rejected.values():
        assert row["path"] is None and row["fault"] == "rejected" and "too dark" in row["error"]
        assert not list((tmp_path / "out/images").rglob(f"{row['scene']}.png")), "it was written all the same"
    assert (tmp_path / "out" / GALLERY_PAGE).read_text().count("<strong>Rejected</strong>") == count
    again = run_job(job(DARK, id=name), out, options)
    assert (again.state, again.rendered, again.failed, again.found) == ("failed", 0, count, 6 - count)
    assert run_job(job(id=name), out, options).failed == count, "a rejection stays until somebody retries"
    retried = run_job(job(id=name), out, replace(options, only_failed=True))
    assert (retried.state, retried.rendered) == ("complete", count)
    assert {row["status"] for row in read_index(out).to_pylist()} == {"ok"}
