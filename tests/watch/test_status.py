"""Following an output from storage alone: what is read again, what is shown, when it ends."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from rich.console import Console

from consistory_ray.errors import InputError, StorageError
from consistory_ray.jobs.job import RenderJob
from consistory_ray.output.assets import WrittenAsset, asset_parameters
from consistory_ray.output.index.index import compact
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.lease.holders import is_silent
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.lease.processes import Process
from consistory_ray.output.run_record import RunRecord, write_run_record
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.plan.plan import Asset, Plan, make_plan
from consistory_ray.watch.reports import print_status
from consistory_ray.watch.status import IndexFollower, Status, StatusFollower, StatusReader, SubjectStatus
from consistory_ray.watch.status_display import STORAGE_TRIES, status_line, watch_status

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=timezone.utc)


@dataclass(frozen=True)
class CountingStore(OutputStore):
    """An output that writes down which files were read."""

    reads: list[str] = field(default_factory=list)

    def read(self, path: str) -> bytes:
        self.reads.append(path)
        return OutputStore.read(self, path)

    def take(self) -> list[str]:
        """What was read since this was last asked."""
        taken = [path for path in self.reads if path.startswith("index/")]
        self.reads.clear()
        return taken


@pytest.fixture
def job(make_job: Callable[..., RenderJob]) -> RenderJob:
    return make_job(subjects=2, scenes=4)


@pytest.fixture
def plan(job: RenderJob) -> Plan:
    return make_plan(job)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    output = open_output(tmp_path)
    return CountingStore(output.fs, output.root)


def row(plan: Plan, asset: Asset, *, when: datetime = NOW, error: str = "", fault: str = "error") -> IndexRow:
    subject = next(subject for subject in plan.subjects if subject.subject_id == asset.subject_id)
    parameters = asset_parameters(asset, subject, model=plan.model, model_fingerprint="f")
    if error:
        return replace(IndexRow.failed(parameters, error, fault=fault), created_at=when)
    written = WrittenAsset(asset.path, 100, "0" * 64)
    return replace(IndexRow.rendered(parameters, written, (8, 8), seconds=1.0), created_at=when)


def begin(store: OutputStore, job: RenderJob, state: str = "running") -> None:
    record = RunRecord(job.name, job.model, job.model_dump(mode="json", exclude_unset=True))
    started = (NOW - timedelta(minutes=10)).isoformat()
    write_run_record(store, replace(record.update(state=state), started_at=started))


def append(store: OutputStore, *rows: IndexRow) -> None:
    """A part without merging, as a run in progress writes them."""
    writer = IndexWriter(store)
    writer.extend(rows)
    writer.flush()


def test_unchanged_parts_are_not_read_again(plan: Plan, store: CountingStore) -> None:
    assets = list(plan.assets())
    follower = IndexFollower(store)
    assert follower.read().num_rows == 0
    append(store, row(plan, assets[0]), row(plan, assets[1]))
    assert follower.read().num_rows == 2
    assert len(store.take()) == 1
    assert follower.read().num_rows == 2
    assert store.take() == []
    append(store, row(plan, assets[2], error="too dark"))
    assert follower.read().num_rows == 3
    assert len(store.take()) == 1, "only the new part"
    append(store, row(plan, assets[2], when=NOW + timedelta(seconds=1)))
    assert sorted(follower.read()["status"].to_pylist()) == ["ok"] * 3
    store.take()

    compact(store, drop=[assets[0].asset_id])
    store.take()
    assert follower.read().num_rows == 2, "rows that were dropped on purpose are gone"
    assert len(store.take()) == 1


def test_a_status_counts_by_subject_and_fault(job: RenderJob, plan: Plan, store: CountingStore) -> None:
    begin(store, job)
    assets = list(plan.assets())
    moved = replace(row(plan, assets[7]), path="images/elsewhere.png")
    append(
        store,
        *(row(plan, asset, when=NOW - timedelta(seconds=10 - number)) for number, asset in enumerate(assets[:6])),
        row(plan, assets[6], error="AssetError: too dark", fault="bad-asset"),
        moved,
        replace(row(plan, assets[8]), asset_id="of an earlier version of the job"),
    )
    status = StatusReader(plan, store).read(None, NOW)
    assert (status.state, status.planned, status.done, status.failed, status.todo) == ("new", 12, 6, 1, 6)
    assert status.rate is None
    status = StatusFollower(store).read()
    assert status.subjects == (SubjectStatus("cat-0", 6, 6, 0), SubjectStatus("cat-1", 6, 0, 1))
    assert status.failure_kinds == {"bad-asset": 1}
    assert status.failures[0]["path"] == assets[6].path and status.failures[0]["fault"] == "bad-asset"


def test_speed_and_time_left_come_from_the_rows(job: RenderJob, plan: Plan, store: CountingStore) -> None:
    from consistory_ray.output.run_record import read_run_record

    begin(store, job)
    record = read_run_record(store)
    assets = list(plan.assets())
    reader = StatusReader(plan, store)
    assert reader.read(record, NOW).rate is None
    append(store, row(plan, assets[0], when=NOW - timedelta(days=1)))  # of an earlier run
    recovered = replace(row(plan, assets[1]), seconds=None)
    recent = [row(plan, asset, when=NOW - timedelta(seconds=10 * number)) for number, asset in enumerate(assets[2:7])]
    append(store, recovered, *recent)
    status = reader.read(record, NOW)
    assert status.rate == pytest.approx(4 / 40)
    assert status.seconds_left == pytest.approx(5 / 0.1)
    assert status.newest_at == NOW.isoformat()
    stalled = reader.read(record, NOW + timedelta(seconds=160))
    assert stalled.rate == pytest.approx(4 / 200), "a run that makes nothing gets slower"
    assert reader.read(record, NOW + timedelta(hours=1)).rate is None


def test_a_new_job_in_the_same_output_is_noticed(
    make_job: Callable[..., RenderJob], job: RenderJob, store: CountingStore
) -> None:
    follower = StatusFollower(store)
    with pytest.raises(InputError, match="nothing was rendered there"):
        follower.read()
    begin(store, job)
    assert follower.read().planned == 12
    begin(store, make_job(subjects=1, scenes=1))
    assert follower.read().planned == 3


def test_a_run_whose_coordinator_fell_silent_says_so(job: RenderJob, plan: Plan, store: CountingStore) -> None:
    begin(store, job)
    elsewhere = Process("gpu-7", "", 4711, "")
    lease = Lease.acquire(store, "a run", process=elsewhere)
    told = StatusFollower(store).read()
    assert told.heard_at and not told.silent
    assert not is_silent(lease.record, lease.record.renewed_at + 2 * lease.record.ttl_seconds)
    assert is_silent(lease.record, lease.record.renewed_at + 4 * lease.record.ttl_seconds)
    lease.release()
    told = StatusFollower(store).read()
    assert told.silent and "run the same command again" in status_line(told)
    begin(store, job, "interrupted")
    told = StatusFollower(store).read()
    assert told.heard_at is None and not told.silent, "a run that is over has said so"


def test_why_a_run_could_not_go_on(job: RenderJob, plan: Plan, store: CountingStore) -> None:
    record = RunRecord(job.name, job.model, job.model_dump(mode="json", exclude_unset=True))
    write_run_record(store, record.update(state="failed", error="RunError: no worker is left"))
    text = io.StringIO()
    print_status(Console(file=text, width=200), StatusFollower(store).read())
    assert "it could not go on: RunError: no worker is left" in text.getvalue()


def status(state: str, done: int, **more: object) -> Status:
    subjects = (SubjectStatus("cat-0", 6, done, 0), SubjectStatus("cat-1", 6, 0, 0))
    values = {"name": "book", "output": "/out", "updated_at": None, "planned": 12, "failed": 0, "failures": ()}
    return Status(**{**values, "state": state, "done": done, "todo": 12 - done, "subjects": subjects, **more})  # type: ignore[arg-type]


def test_a_watch_prints_what_changes_and_ends_with_the_run() -> None:
    story = [
        status("running", 0),
        status("running", 0),
        status("running", 2, rate=0.5, seconds_left=20.0),
        status("failed", 4, failed=2, failure_kinds={"bad-asset": 2}),
        status("running", 0),
    ]
    text, slept = io.StringIO(), []
    last = watch_status(iter(story).__next__, Console(file=text, width=200), 5.0, sleep=slept.append)
    assert last.state == "failed" and slept == [5.0] * 3
    assert text.getvalue().splitlines() == [
        "book: running, 0/12 pictures (0 %), no picture yet",
        "book: running, 2/12 pictures (16 %), 0.50 pictures/s, about 20 s left",
        "book: failed, 4/12 pictures (33 %), 2 failed (2 bad-asset)",
    ]


def test_a_watch_without_news_says_so_once_a_minute() -> None:
    times = iter(range(0, 10_000, 10))
    text = io.StringIO()
    story = iter([status("running", 1)] * 12 + [status("complete", 12)])
    watch_status(story.__next__, Console(file=text), 1, sleep=lambda _: None, clock=lambda: float(next(times)))
    assert 3 <= len(text.getvalue().splitlines()) <= 6


def test_a_terminal_gets_bars() -> None:
    text = io.StringIO()
    story = iter([status("running", 2, rate=0.5, seconds_left=20.0), status("complete", 12)])
    watch_status(story.__next__, Console(file=text, width=100, force_terminal=True), 1, sleep=lambda _: None)
    assert "cat-0" in text.getvalue() and "12/12" in text.getvalue() and "about 20 s left" in text.getvalue()


def test_a_storage_that_stutters_is_asked_again_and_one_that_is_gone_is_not() -> None:
    tries = iter(range(100))

    def flaky() -> Status:
        if next(tries) < STORAGE_TRIES - 1:
            raise StorageError("timed out")
        return status("complete", 12)

    def gone() -> Status:
        raise StorageError("no such bucket")

    text = io.StringIO()
    assert watch_status(flaky, Console(file=text), 1, sleep=lambda _: None).state == "complete"
    assert text.getvalue().count("timed out (trying again)") == STORAGE_TRIES - 1
    with pytest.raises(StorageError, match="no such bucket"):
        watch_status(gone, Console(file=io.StringIO()), 1, sleep=lambda _: None)


def test_a_line() -> None:
    line = status_line(status("running", 6, newest_at="2026-01-01T12:00:00+00:00"))
    assert line == "book: running, 6/12 pictures (50 %), newest picture at 2026-01-01T12:00:00+00:00"
