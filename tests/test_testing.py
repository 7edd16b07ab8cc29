"""The fake renderer: as deterministic as it says, and as faulty as it is asked to be."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.errors import AssetError, CacheMismatchError, InputError
from consistory_ray.jobs.job import RenderJob
from consistory_ray.plan.plan import SubjectPlan, make_plan
from consistory_ray.testing import FakeRenderer, read_trace


@pytest.fixture
def subject(make_job: Callable[..., RenderJob]) -> SubjectPlan:
    return make_plan(make_job(subjects=1, scenes=200)).subjects[0]


def cache_of(renderer: FakeRenderer, subject: SubjectPlan) -> dict[str, str]:
    return renderer.load_cache(renderer.make_subject(subject).cache_buffer)


@pytest.mark.parametrize("size", [10, 4096, 1 << 20])
def test_a_cache_of_any_size_says_whose_it_is(subject: SubjectPlan, size: int) -> None:
    renderer = FakeRenderer(cache_bytes=size)
    made = renderer.make_subject(subject)
    assert made.cache_buffer.nbytes >= size
    assert renderer.load_cache(made.cache_buffer)["subject"] == subject.subject_id
    with pytest.raises(CacheMismatchError):
        FakeRenderer(version=2).load_cache(made.cache_buffer)


def test_rates_befall_the_same_assets_every_time(subject: SubjectPlan) -> None:
    def hit() -> set[str]:
        renderer = FakeRenderer(rates={"error": 0.2, "bad": 0.1})
        cache, found = cache_of(FakeRenderer(), subject), set()
        for scene in subject.scenes:
            try:
                renderer.render([scene], cache)
            except (RuntimeError, AssetError) as error:
                found.add(f"{scene.scene_id} {type(error).__name__}")
        return found

    first = hit()
    assert first == hit()
    assert 25 < sum("RuntimeError" in name for name in first) < 56
    assert 8 < sum("AssetError" in name for name in first) < 35


def test_delays_and_jitter_take_their_time(subject: SubjectPlan) -> None:
    renderer = FakeRenderer(seconds=0.02, jitter=0.5, delays={"scene-3": 0.2})
    cache = cache_of(FakeRenderer(), subject)
    started = time.perf_counter()
    renderer.render(subject.scenes[:4], cache)
    assert time.perf_counter() - started >= 0.2 + 4 * 0.01
    assert renderer.phases["pass1"] >= 0.24


def test_memory_runs_out(subject: SubjectPlan) -> None:
    renderer = FakeRenderer(memory={"capacity": 100, "model": 40, "picture": 20})
    cache = cache_of(renderer, subject)
    assert renderer.fitting_batch(None, None) == 3
    assert len(renderer.render(subject.scenes[:3], cache)) == 3
    assert renderer.peak_memory == 100
    with pytest.raises(MemoryError, match="120 bytes"):
        renderer.render(subject.scenes[:4], cache)
    assert FakeRenderer().fitting_batch(None, None) is None


def test_the_trace_tells_who_did_what_when(subject: SubjectPlan, tmp_path: Path) -> None:
    renderer = FakeRenderer(seconds=0.01, trace=str(tmp_path), load_seconds=0.02)
    renderer.render(subject.scenes[:3], cache_of(renderer, subject))
    with (next(tmp_path.iterdir())).open("a") as file:
        file.write('{"pid": 1, "ki')  # killed while it wrote
    load, anchors, scenes = read_trace(tmp_path)
    assert [span.kind for span in (load, anchors, scenes)] == ["load", "anchors", "scenes"]
    assert (anchors.assets, scenes.assets, scenes.subject) == (2, 3, subject.subject_id)
    assert load.end - load.start >= 0.02 and scenes.end - scenes.start >= 0.03
    assert load.end <= anchors.start <= anchors.end <= scenes.start


@pytest.mark.parametrize(
    "options",
    [
        {"faults": {"scene-1": "explode"}},
        {"rates": {"explode": 0.1}},
        {"rates": {"error": 0.7, "bad": 0.7}},
        {"jitter": 2.0},
        {"memory": {"capacity": 1}},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="fake renderer cannot be made"):
        FakeRenderer(**options)
