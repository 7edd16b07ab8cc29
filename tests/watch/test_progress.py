"""What people see while a run goes on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from consistory_ray.engine.events import (
    AssetDone,
    AssetFailed,
    Event,
    Paused,
    RunStarted,
    SubjectProgress,
    WorkerReady,
    WorkersRequested,
)
from consistory_ray.jobs.job import RenderJob
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.watch.progress import LiveProgress, PlainProgress, Tally, duration, size, watcher


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def plan(make_job: Callable[..., RenderJob]) -> Plan:
    return make_plan(make_job(subjects=2, scenes=3))


def story(plan: Plan, clock: Clock) -> Iterator[Event]:
    """A run of ten pictures, one per second, one of which fails."""
    subjects = tuple(SubjectProgress(subject.subject_id, 5, 0) for subject in plan.subjects)
    yield RunStarted("test", "/out", subjects, 10, 0, 0)
    yield WorkersRequested(2, "cpu")
    yield WorkerReady("worker-0", "here/1", 3.0)
    for number, asset in enumerate(plan.assets()):
        clock.now += 1
        yield AssetFailed(asset, "too dark") if number == 7 else AssetDone(asset, 1.0, "worker-0")


def test_rate_and_time_left(plan: Plan) -> None:
    clock = Clock()
    tally = Tally(clock)
    assert tally.rate is None and tally.seconds_left is None
    for event in story(plan, clock):
        tally.take(event)
        if clock.now == 5:
            assert (tally.done, tally.left) == (5, 5)
            assert tally.rate == pytest.approx(1.0)
            assert tally.seconds_left == pytest.approx(5.0)
    assert (tally.done, tally.failed, tally.left) == (9, 1, 0)
    clock.now += 1e6
    assert tally.rate is None


def test_plain_lines(plan: Plan) -> None:
    clock, text = Clock(), io.StringIO()
    with PlainProgress(Console(file=text, width=200), clock) as watch:
        for event in story(plan, clock):
            watch(event)
    lines = text.getvalue().splitlines()
    assert lines[0] == "test: 10 pictures, 10 to make, into /out"
    assert "cat-0: all 5 pictures done" in lines
    assert "failed: images/cat-1/scene-0.png: too dark" in lines
    assert lines[-1].startswith("9/10 pictures (90 %), 1 failed")
    assert len(lines) < 12


def test_an_outage_and_what_comes_after_it(plan: Plan) -> None:
    clock, text = Clock(), io.StringIO()
    events = list(story(plan, clock))
    with PlainProgress(Console(file=text, width=200), clock) as watch:
        for event in [*events, Paused("StorageError: 503", 5.0, 1800.0), events[0]]:
            watch(event)
        lines = text.getvalue().splitlines()
        assert lines[-2] == "storage is out of reach, trying again in 5.0 s, for up to 30 min 0 s: StorageError: 503"
        assert lines[-1] == "test: 10 pictures, 10 to make, into /out"
        clock.now += 20
        watch(next(event for event in events if isinstance(event, AssetDone)))
    last = text.getvalue().splitlines()[-1]
    assert last.startswith("1/10 pictures") and "failed" not in last, "what failed before is tried again"


def test_live_bars(plan: Plan) -> None:
    clock, text = Clock(), io.StringIO()
    with LiveProgress(Console(file=text, width=100, force_terminal=True)) as watch:
        for event in story(plan, clock):
            watch(event)
    shown = text.getvalue()
    assert "too dark" in shown and "9/10" in shown and "cat-1" in shown


def test_the_display_fits_the_console() -> None:
    assert isinstance(watcher(Console(file=io.StringIO())), PlainProgress)
    assert isinstance(watcher(Console(file=io.StringIO(), force_terminal=True)), LiveProgress)


def test_units() -> None:
    assert [duration(seconds) for seconds in (4.21, 59.6, 190, 18_120)] == [
        "4.2 s",
        "1 min 0 s",
        "3 min 10 s",
        "5 h 2 min",
    ]
    assert [size(count) for count in (12, 17_300_000, 5.6e9, 3e12)] == ["12 B", "17.3 MB", "5.6 GB", "3.0 TB"]
