"""An output that is out of reach for a while: the run comes back to it by itself, or ends once its patience is over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistory_ray.engine.cluster.placement import WorkerShape, shape_workers
from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.dispatching import session
from consistory_ray.engine.events import (
    AssetDone,
    AssetFailed,
    Event,
    Notice,
    Paused,
    RunFinished,
    RunStarted,
    RunSummary,
    Stopping,
    WorkerLost,
    WorkersRequested,
)
from consistory_ray.engine.faults import Caps
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.outages import FIRST_DELAY, JITTER, LONGEST_DELAY, Outages
from consistory_ray.engine.stopping import StopRequest
from consistory_ray.errors import (
    ClusterLostError,
    ConsistoryError,
    InputError,
    OutageError,
    OutputBusyError,
    RunError,
    RunInterrupted,
    StorageError,
)
from consistory_ray.jobs.job import RenderJob
from consistory_ray.output.index.index import read_index
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.storage import open_output
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.testing import FakeRenderer, read_trace
from consistory_ray.watch.status import Status, read_status
from consistory_ray.watch.status_display import status_line
from tests.patience import PATIENCE

ERROR = StorageError("503")


class Time:
    """A clock that stands still while nobody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def policy(patience: float, clock: Time, events: list[Event], stop: StopRequest | None = None) -> Outages:
    return Outages(patience, stop or StopRequest(), events.append, clock, clock.sleep, draw=lambda: 0.0)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 3_000), max_size=60))
def test_it_waits_longer_each_time_and_never_longer_than_its_patience(patience: int, runs: list[int]) -> None:
    """``runs``: for how long each of the tries went well before it met the outage."""
    clock, events = Time(), list[Event]()
    outages = policy(patience, clock, events)
    since, delay = 0.0, 0.0
    for number, lasted in enumerate(runs):
        clock.now += lasted
        met = clock.now
        if anew := number == 0 or lasted > patience:
            since = met
        goes_on = outages.outlast(ERROR, lasted)
        assert goes_on == (met - since < patience)
        if not goes_on:
            assert clock.now == met and len(events) == number
            return
        told = events[-1]
        assert isinstance(told, Paused) and told.reason == "503"
        assert clock.now == pytest.approx(met + told.seconds)
        assert told.seconds <= min(LONGEST_DELAY, told.left) and told.left == pytest.approx(since + patience - met)
        expected = FIRST_DELAY if anew else min(2 * delay, LONGEST_DELAY)
        assert told.seconds == pytest.approx(min(expected, told.left))
        delay = expected


def test_runs_that_lost_one_storage_do_not_come_back_in_step() -> None:
    delays = []
    for _ in range(20):
        clock, events = Time(), list[Event]()
        assert Outages(1800, StopRequest(), events.append, clock, clock.sleep).outlast(ERROR, 0.0)
        (paused,) = events
        assert isinstance(paused, Paused)
        delays.append(paused.seconds)
    assert len(set(delays)) > 15 and all(FIRST_DELAY * (1 - JITTER) <= delay <= FIRST_DELAY for delay in delays)


def test_an_outage_without_end_is_given_up_when_patience_is_over() -> None:
    clock, events = Time(), list[Event]()
    outages = policy(1800, clock, events)
    while outages.outlast(ERROR, 0.0):
        clock.now += 10  # what a try takes that does not get as far as rendering
        assert clock.now <= 1920
    assert clock.now >= 1900
    assert 25 < len(events) < 35
    outages = policy(1e9, clock, events)
    for _ in range(2000):  # more doublings than a float has room for
        assert outages.outlast(ERROR, 0.0)


def test_a_stop_request_ends_the_waiting() -> None:
    clock, events, stop = Time(), list[Event](), StopRequest()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now > 102:
            stop.ask("SIGTERM")

    with pytest.raises(RunInterrupted, match="503"):
        Outages(1800, stop, events.append, clock, sleep).outlast(ERROR, 10.0)
    assert clock.now < 103
    with pytest.raises(RunInterrupted, match="503"):  # asked before: it does not even say that it waits
        policy(1800, clock, events, stop).outlast(ERROR, 10.0)
    assert [type(event) for event in events] == [Paused, Stopping]


class Attempt:
    """A try of a run that ends as it is told to, after so many seconds of pictures."""

    def __init__(self, ending: ConsistoryError | RunSummary, seconds: float = 0.0) -> None:
        self._ending = ending
        self.seconds = seconds
        self.recorded: list[tuple[str, ConsistoryError]] = []

    def execute(self) -> RunSummary:
        if isinstance(self._ending, ConsistoryError):
            raise self._ending
        return self._ending

    def starts_ray_again(self, error: ConsistoryError) -> bool:
        return isinstance(error, ClusterLostError)

    def met_outage(self, error: ConsistoryError) -> bool:
        return isinstance(error, StorageError)

    def record_end(self, state: str, error: ConsistoryError) -> None:
        self.recorded.append((state, error))


COMPLETE = RunSummary("job", "/out", "complete", 1, 0, 1, 0, 1.0)


def test_a_run_is_begun_again_until_it_ends_by_itself() -> None:
    clock, events = Time(), list[Event]()
    tries = [Attempt(ERROR), Attempt(ClusterLostError("gone")), Attempt(ERROR, 5.0), Attempt(COMPLETE)]
    left = iter(tries)
    assert policy(1800, clock, events).keep_trying(lambda: next(left)) is COMPLETE
    assert [type(event) for event in events] == [Paused, Paused], "for another Ray nobody waits"
    assert not any(one.recorded for one in tries) and clock.now > 105


@pytest.mark.parametrize(
    ("endings", "patience", "recorded"),
    [
        ([InputError("no")], 1800.0, []),  # never was an outage: whoever ran it has recorded it
        ([ERROR], 0.0, ["failed"]),
        ([ERROR, InputError("no")], 1800.0, ["failed"]),
        ([ERROR] * 40, 600.0, ["failed"]),
    ],
)
def test_what_ends_it_is_raised_and_recorded_after_an_outage(
    endings: list[ConsistoryError], patience: float, recorded: list[str]
) -> None:
    clock, begun = Time(), list[Attempt]()

    def begin() -> Attempt:
        begun.append(Attempt(endings[len(begun)]))
        return begun[-1]

    with pytest.raises(ConsistoryError) as raised:
        policy(patience, clock, []).keep_trying(begin)
    assert raised.value is endings[len(begun) - 1]
    assert [state for state, _ in begun[-1].recorded] == recorded
    assert not any(one.recorded for one in begun[:-1]) and clock.now <= 100 + patience


def test_a_stop_while_it_is_away_is_recorded_as_that() -> None:
    clock, stop, away = Time(), StopRequest(), Attempt(ERROR)
    stop.ask("SIGTERM")
    with pytest.raises(RunInterrupted, match="503"):
        policy(1800, clock, [], stop).keep_trying(lambda: away)
    assert away.recorded == [("interrupted", ERROR)]


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch, ray_cluster: object) -> None:
    """Half a second in place of five."""
    monkeypatch.setattr("consistory_ray.engine.outages.FIRST_DELAY", 0.5)
    monkeypatch.setattr("consistory_ray.engine.outages.JITTER", 0.0)


class Disturbance:
    """Takes a folder of the output away at the first event of a kind, and gives it back at the first pause."""

    def __init__(self, output: Path, folder: str, after: Callable[[Event], bool], pauses: int = 1) -> None:
        self.events: list[Event] = []
        self._place, self._aside, self._after = output / folder, output / f"{folder}-aside", after
        self._pauses = pauses

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not self._aside.exists() and self._after(event) and not self.heard(Paused):
            self._place.mkdir(exist_ok=True)
            self._place.rename(self._aside)
            self._place.symlink_to("/nowhere/at/all")  # as a mount that is gone: nothing can be written in there
        if isinstance(event, Paused) and len(self.heard(Paused)) == self._pauses:
            self._place.unlink()
            self._aside.rename(self._place)

    def heard(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def options(**given: Any) -> RunOptions:
    known: dict[str, Any] = {"outage_seconds": 60.0, "workers": 1, "cpus_per_worker": 1, "batch_size": 2}
    known |= {"caps": Caps(storage_attempts=1)}
    fake = {key: given.pop(key) for key in ("seconds", "trace", "faults") if key in given}
    return RunOptions(**(known | given), renderer=FakeRenderer.factory(**fake))


def scene(number: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, AssetDone) and event.asset.scene_id == f"scene-{number}"


def check(plan: Plan, out: Path, summary: RunSummary, watched: Disturbance) -> None:
    """The run made everything, as one run."""
    assert (summary.state, summary.found, summary.rendered, summary.failed) == ("complete", 0, 14, 0)
    table = read_index(str(out))
    assert sorted(table["asset_id"].to_pylist()) == sorted(asset.asset_id for asset in plan.assets())
    assert set(table["status"].to_pylist()) == {"ok"}
    record, status = read_run_record(str(out)), read_status(plan, open_output(str(out)))
    assert record is not None and record.error is None
    assert (record.totals["found"], record.totals["rendered"]) == (0, 14)
    assert (status.state, status.done, status.failed) == ("complete", 14, 0)
    assert [event.summary for event in watched.heard(RunFinished)] == [summary]
    assert watched.heard(RunStarted)[0].done == 0 and len(watched.heard(RunStarted)) == 2


@pytest.mark.usefixtures("short_pauses")
def test_pictures_that_cannot_be_written_are_written_once_they_can(
    make_job: Callable[..., RenderJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = make_plan(make_job(subjects=1, scenes=12)), tmp_path / "out"
    (trace := tmp_path / "trace").mkdir()
    shapes: list[WorkerShape] = []

    def shape(given: RunOptions) -> WorkerShape:
        shapes.append(shape_workers(given))
        return shapes[-1]

    monkeypatch.setattr(session, "shape_workers", shape)
    watched = Disturbance(out, "images", scene(3))
    summary = run_plan(plan, str(out), options(trace=str(trace)), watched)
    assert len(shapes) == 1, "what is asked of the cluster is not decided again by what an outage has left of it"
    check(plan, out, summary, watched)
    (pause,) = watched.heard(Paused)
    assert "out of the workers' reach" in pause.reason and pause.seconds == 0.5
    spans = read_trace(trace)
    assert sum(span.assets for span in spans if span.kind == "anchors") == 2, "the cache was still there"
    done = [event.asset.asset_id for event in watched.heard(AssetDone)]
    assert len(done) == len(set(done)) >= 12, "what a worker wrote and could not report any more was found"


@pytest.mark.usefixtures("short_pauses")
def test_a_lease_that_ran_out_is_taken_again(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    plan, out = make_plan(make_job(subjects=1, scenes=12)), tmp_path / "out"
    watched = Disturbance(out, "lease", scene(1))
    summary = run_plan(plan, str(out), options(lease_seconds=1.0, seconds=0.3), watched)
    check(plan, out, summary, watched)
    (pause,) = watched.heard(Paused)
    assert "the lease on" in pause.reason and "not renewed" in pause.reason


@pytest.mark.slow
@pytest.mark.usefixtures("short_pauses")
def test_who_has_taken_the_output_over_meanwhile_keeps_it(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    plan, out = make_plan(make_job(subjects=1, scenes=12)), tmp_path / "out"
    other: list[Lease] = []

    def listen(event: Event) -> None:
        watched(event)
        if isinstance(event, Paused):
            other.append(Lease.acquire(str(out), "somebody else", ttl_seconds=60))

    watched = Disturbance(out, "images", scene(3))
    with pytest.raises(OutputBusyError, match="somebody else"):
        run_plan(plan, str(out), options(), listen)
    assert len(watched.heard(Paused)) == 1
    other[0].release()


@pytest.mark.slow
@pytest.mark.usefixtures("short_pauses")
def test_patience_is_over_and_the_next_run_goes_on(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    plan, out = make_plan(make_job(subjects=1, scenes=12)), tmp_path / "out"
    watched = Disturbance(out, "images", scene(3), pauses=99)
    with pytest.raises((OutageError, StorageError)):
        run_plan(plan, str(out), options(outage_seconds=2), watched)
    assert 1 <= len(watched.heard(Paused)) <= 3
    status, record = read_status(plan, open_output(str(out))), read_run_record(str(out))
    assert status.state == "failed" and status.error, "it says so itself"
    assert record is not None and record.model_fingerprint and record.totals["rendered"] >= 2
    (out / "images").unlink()
    (out / "images-aside").rename(out / "images")
    summary = run_plan(plan, str(out), options())
    assert (summary.state, summary.failed) == ("complete", 0) and summary.found >= 4


@pytest.mark.usefixtures("short_pauses")
def test_workers_that_never_reached_the_output_are_no_outage(
    make_job: Callable[..., RenderJob], tmp_path: Path
) -> None:
    """As without credentials: one load of the model, and the message names the output and the cause."""
    plan, out = make_plan(make_job(subjects=1, scenes=12)), tmp_path / "out"
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, WorkersRequested):
            out.rename(tmp_path / "aside")
            out.symlink_to("out")  # nothing in it can be looked at, which is not the same as missing

    with pytest.raises(InputError, match=r"the workers cannot reach the output[^$]*Too many levels of symbolic links"):
        run_plan(plan, str(out), options(), listen)
    assert not [event for event in events if isinstance(event, Paused | WorkerLost)]


@pytest.mark.usefixtures("short_pauses")
def test_what_does_not_go_away_by_itself_is_not_waited_for(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    """Workers meet a link out of the output where their folder should be, as they would meet missing permissions."""
    plan, out = make_plan(make_job(subjects=1, scenes=12)), tmp_path / "out"
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if scene(3)(event):
            (out / "images").rename(out / "images-aside")
            (tmp_path / "elsewhere").mkdir()
            (out / "images").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(RunError, match="leads out of the output") as caught:
        run_plan(plan, str(out), options(), listen)
    assert not isinstance(caught.value, OutageError)
    assert not [event for event in events if isinstance(event, Paused)]


@pytest.mark.usefixtures("short_pauses")
def test_another_storage_in_its_place_is_not_taken_for_the_output(
    make_job: Callable[..., RenderJob], tmp_path: Path
) -> None:
    """A mount goes, and below it is an empty folder that can be written to."""
    plan, out = make_plan(make_job(subjects=1, scenes=12)), tmp_path / "out"
    pauses: list[Paused] = []

    def listen(event: Event) -> None:
        watched(event)
        if isinstance(event, Paused):
            pauses.append(event)
            if len(pauses) == 1:
                out.rename(tmp_path / "mounted")
                out.mkdir()
            else:
                assert not list(out.iterdir()), "it was written to"
                out.rmdir()
                (tmp_path / "mounted").rename(out)

    watched = Disturbance(out, "images", scene(3))
    summary = run_plan(plan, str(out), options(), listen)
    check(plan, out, summary, watched)
    assert len(pauses) == 2 and "not the storage" in pauses[1].reason


@pytest.mark.slow
@pytest.mark.usefixtures("short_pauses")
def test_another_run_that_came_and_went_meanwhile_is_not_undone(
    make_job: Callable[..., RenderJob], tmp_path: Path
) -> None:
    """Of an edited job, in the same places."""
    plan, other, out = make_plan(make_job(subjects=1, scenes=12)), make_plan(make_job(subjects=1)), tmp_path / "out"
    done: list[RunSummary] = []

    def listen(event: Event) -> None:
        watched(event)
        if isinstance(event, Paused):
            done.append(run_plan(other, str(out), options()))

    watched = Disturbance(out, "images", scene(3))
    with pytest.raises(RunError, match=r"another run, of .*, has been at"):
        run_plan(plan, str(out), options(), listen)
    assert [summary.state for summary in done] == ["complete"] and len(watched.heard(Paused)) == 1
    status = read_status(other, open_output(str(out)))
    assert (status.state, status.todo, status.error) == ("complete", 0, None)


@pytest.mark.slow
@pytest.mark.usefixtures("short_pauses")
def test_a_run_that_was_given_up_is_only_finished(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    """The first failure ends it, and its row cannot be written: what failed is not tried again, and is told."""
    plan, out = make_plan(make_job(subjects=1, scenes=12)), tmp_path / "out"
    (trace := tmp_path / "trace").mkdir()
    failed: list[int] = []

    def listen(event: Event) -> None:
        watched(event)
        if isinstance(event, Paused):
            failed.append(len(read_trace(trace)))

    watched = Disturbance(out, "index", lambda event: isinstance(event, AssetFailed))
    given = options(max_failures=0, faults={"scene-3": "bad"}, trace=str(trace))
    summary = run_plan(plan, str(out), given, listen)
    assert len(watched.heard(Paused)) == 1 and len(read_trace(trace)) == failed[0], "nothing was rendered after it"
    assert (summary.state, summary.failed) == ("failed", 1) and "--max-failures is 0" in summary.stopped
    assert [failure.path for failure in summary.failures] == ["images/cat-0/scene-3.png"]
    assert dict(summary.failures_by_kind) == {"bad-asset": 1}


@pytest.mark.slow
@pytest.mark.usefixtures("short_pauses")
def test_a_failure_before_an_outage_counts_once(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    plan, out = make_plan(make_job(subjects=1, scenes=12)), tmp_path / "out"
    watched = Disturbance(out, "images", scene(3))
    summary = run_plan(plan, str(out), options(max_failures=1, faults={"scene-0": "bad"}), watched)
    assert len(watched.heard(Paused)) == 1
    assert (summary.state, summary.rendered, summary.failed, summary.stopped) == ("failed", 13, 1, "")


@pytest.mark.usefixtures("short_pauses")
def test_a_stop_while_it_waits(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    plan, out = make_plan(make_job(subjects=1, scenes=12)), tmp_path / "out"
    stop, told = StopRequest(), list[Status]()

    def listen(event: Event) -> None:
        watched(event)
        if isinstance(event, Paused):
            told.append(read_status(plan, open_output(str(out))))
            stop.ask("SIGTERM")

    watched = Disturbance(out, "images", scene(3))
    with pytest.raises(RunInterrupted, match="the same command resumes"):
        run_plan(plan, str(out), options(outage_seconds=10 * PATIENCE), listen, stop=stop)
    assert (told[0].state, told[0].silent) == ("running", False), "it will come back"
    assert told[0].error and "out of the workers' reach" in told[0].error
    assert "waiting for its output" in status_line(told[0])
    after = read_status(plan, open_output(str(out)))
    assert (after.state, after.silent) == ("interrupted", False)
    assert run_plan(plan, str(out), options()).state == "complete"


def test_an_output_that_was_never_in_reach_is_no_outage(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lease").symlink_to("/nowhere/at/all")
    events: list[Event] = []
    with pytest.raises(StorageError):
        run_plan(make_plan(make_job(subjects=1, scenes=1)), str(tmp_path / "out"), options(), events.append)
    assert not [event for event in events if not isinstance(event, Notice)]


def test_a_run_whose_record_cannot_be_written_has_not_begun(
    make_job: Callable[..., RenderJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise StorageError("503")

    monkeypatch.setattr("consistory_ray.engine.history.write_run_record", fail)
    events: list[Event] = []
    with pytest.raises(StorageError, match="503"):
        run_plan(make_plan(make_job(subjects=1, scenes=1)), str(tmp_path / "out"), options(), events.append)
    assert not events


def test_errors_that_waiting_does_not_mend_end_the_run(make_job: Callable[..., RenderJob], tmp_path: Path) -> None:
    """A retry of nothing, and a patience that is none."""
    plan = make_plan(make_job(subjects=1, scenes=1))
    with pytest.raises(InputError, match="nothing to retry"):
        run_plan(plan, str(tmp_path / "out"), options(only_failed=True))
    assert not list(tmp_path.rglob("*.json")), "nothing was written"
    for seconds in (-1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="outage_seconds"):
            options(outage_seconds=seconds)
