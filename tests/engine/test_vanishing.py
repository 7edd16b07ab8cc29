"""An output that vanishes while a run goes on, as a whole or in parts: nobody is told that it is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.events import AssetDone, Event, Paused, RunFinished, RunStarted, RunSummary
from consistory_ray.engine.faults import Caps
from consistory_ray.engine.options import RunOptions
from consistory_ray.errors import ConsistoryError, OutageError, RunError, StorageError
from consistory_ray.jobs.job import RenderJob
from consistory_ray.output.index.index import read_index
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.verify import verify
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.testing import FakeRenderer

PICTURES = 14


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch, ray_cluster: object) -> None:
    """Half a second in place of five, also between the tries of one request."""
    monkeypatch.setattr("consistory_ray.engine.outages.FIRST_DELAY", 0.5)


@pytest.fixture
def plan(make_job: Callable[..., RenderJob]) -> Plan:
    return make_plan(make_job(subjects=1, scenes=12))


def options(**given: Any) -> RunOptions:
    known: dict[str, Any] = {"outage_seconds": 60.0, "workers": 1, "cpus_per_worker": 1, "batch_size": 2}
    known |= {"caps": Caps(storage_attempts=1)}
    fake = {key: given.pop(key) for key in ("seconds",) if key in given}
    return RunOptions(**(known | given), renderer=FakeRenderer.factory(**fake))


@dataclass
class Mishap:
    """Does something at the first event of a kind, and something else at the first pause."""

    happens: Callable[[], object]
    after: Callable[[Event], bool]
    mended: Callable[[], object] = lambda: None
    events: list[Event] = field(default_factory=list)
    happened: bool = False

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not self.happened and self.after(event):
            self.happened = True
            self.happens()
        if isinstance(event, Paused) and len(self.heard(Paused)) == 1:
            self.mended()

    def heard(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def scene(number: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, AssetDone) and event.asset.scene_id == f"scene-{number}"


def check_complete(plan: Plan, out: Path, summary: RunSummary) -> None:
    """All that the run says is there is there, and sound."""
    assert (summary.state, summary.found + summary.rendered, summary.failed) == ("complete", PICTURES, 0)
    table = read_index(str(out))
    assert sorted(table["asset_id"].to_pylist()) == sorted(asset.asset_id for asset in plan.assets())
    found = verify(str(out))
    assert found.is_sound and found.rows == PICTURES and not found.orphans, found.lines()
    record = read_run_record(str(out))
    assert record is not None and (record.state, record.error) == ("complete", None)


def check_refused(caught: ConsistoryError, watched: Mishap, out: Path) -> None:
    """It said why, called nothing complete, and left nothing in the output's place."""
    assert isinstance(caught, (OutageError, RunError, StorageError))
    assert not watched.heard(RunFinished)
    assert not list(out.rglob("*.png")) and not list(out.rglob("*.parquet")) and not (out / "run.json").exists()


def further(*cases: Any) -> list[Any]:
    """Cases of what another one shows already."""
    return [pytest.param(case, marks=[pytest.mark.slow, pytest.mark.full]) for case in cases]


def deleted(out: Path) -> None:
    gone = out.with_name("gone")
    out.rename(gone)  # at once: workers write while a folder is being deleted
    shutil.rmtree(gone)


def emptied(out: Path) -> None:
    deleted(out)
    out.mkdir()


def moved(out: Path) -> None:
    out.rename(out.with_name("elsewhere"))


def replaced(out: Path) -> None:
    """By what is left of it in an older copy, without a word of this run."""
    moved(out)
    (out / "images").mkdir(parents=True)


@pytest.mark.parametrize("how", [deleted, *further(emptied, moved, replaced)])
@pytest.mark.parametrize("moment", [3, 11])
def test_an_output_that_vanished_is_never_complete(
    plan: Plan, tmp_path: Path, how: Callable[[Path], None], moment: int
) -> None:
    """In the middle of a run, and after its last picture, when no renewal is due any more."""
    out = tmp_path / "out"
    watched = Mishap(lambda: how(out), scene(moment))
    with pytest.raises(ConsistoryError) as caught:
        run_plan(plan, str(out), options(outage_seconds=1.0, lease_seconds=2.0), watched)
    check_refused(caught.value, watched, out)
    assert str(out) in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("patience", [0.0, 1.0])
def test_how_long_it_waits_is_up_to_the_user(plan: Plan, tmp_path: Path, patience: float) -> None:
    out = tmp_path / "out"
    watched = Mishap(lambda: moved(out), scene(3))  # at once: a deletion races with what workers write
    with pytest.raises(ConsistoryError):
        run_plan(plan, str(out), options(outage_seconds=patience, lease_seconds=2.0), watched)
    assert bool(watched.heard(Paused)) == bool(patience)
    assert not out.exists()


def test_an_output_that_comes_back_is_gone_on_with(plan: Plan, tmp_path: Path) -> None:
    out, aside = tmp_path / "out", tmp_path / "elsewhere"
    watched = Mishap(lambda: moved(out), scene(3), lambda: aside.rename(out))
    summary = run_plan(plan, str(out), options(lease_seconds=2.0, seconds=0.05), watched)
    check_complete(plan, out, summary)
    assert len(watched.heard(RunStarted)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("part", ["images", *further("anchors", "lease")])
@pytest.mark.parametrize("moment", [3, *further(11)])
def test_a_part_of_an_output_that_was_deleted_is_made_again(plan: Plan, tmp_path: Path, part: str, moment: int) -> None:
    out = tmp_path / "out"

    def delete() -> None:
        (out / part).rename(tmp_path / "deleted")  # at once, as nobody deletes so slowly as to be told apart

    watched = Mishap(delete, scene(moment))
    summary = run_plan(plan, str(out), options(lease_seconds=4.0), watched)
    check_complete(plan, out, summary)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 10)


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()
    path.rmdir()


@pytest.mark.parametrize(
    "harm",
    [Path.unlink, *further(truncated, grown, folder_in_its_place)],
)
def test_single_pictures_that_were_harmed_are_made_again(
    plan: Plan, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    anchor = next(asset for asset in plan.assets() if asset.kind == "anchor")

    def both() -> None:
        harm(out / "images/cat-0/scene-1.png")
        harm(out / anchor.path)

    watched = Mishap(both, scene(11))
    check_complete(plan, out, run_plan(plan, str(out), options(), watched))
    (pause,) = watched.heard(Paused)
    assert "2 of 14 pictures" in pause.reason and "images/cat-0/scene-1.png" in pause.reason


def test_what_is_missing_is_told_when_there_is_no_patience(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    watched = Mishap(lambda: [(out / f"images/cat-0/scene-{n}.png").unlink() for n in range(1, 9)], scene(11))
    with pytest.raises(OutageError, match=r"8 of 14 pictures .* and 3 more"):
        run_plan(plan, str(out), options(outage_seconds=0.0), watched)
    record = read_run_record(str(out))
    assert record is not None and record.state == "failed" and "8 of 14" in str(record.error)
    check_complete(plan, out, run_plan(plan, str(out), options()))


def test_rows_that_were_lost_are_found_without_a_pause(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    watched = Mishap(lambda: shutil.rmtree(out / "index"), scene(11))
    check_complete(plan, out, run_plan(plan, str(out), options(seconds=0.3), watched))
    assert not watched.heard(Paused)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["previews", "none"])
def test_anchors_that_nobody_needs_are_not_missed(plan: Plan, tmp_path: Path, keep: Any) -> None:
    watched = Mishap(lambda: None, scene(3))
    summary = run_plan(plan, str(tmp_path / "out"), options(keep_anchors=keep), watched)
    assert summary.state == "complete" and not watched.heard(Paused)


def test_failed_pictures_are_not_missing(plan: Plan, tmp_path: Path) -> None:
    given = options()
    renderer = FakeRenderer.factory(faults={"scene-3": "bad"})
    watched = Mishap(lambda: None, scene(3))
    summary = run_plan(plan, str(tmp_path / "out"), RunOptions(workers=1, renderer=renderer, caps=given.caps), watched)
    assert (summary.state, summary.failed, summary.rendered) == ("failed", 1, 13) and not watched.heard(Paused)


@pytest.mark.slow
def test_an_older_state_of_the_storage_is_not_taken_for_the_output(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below a mount, or from a backup; a second run there meanwhile is told as well.

    The run is about to commit its last rows before its lease is renewed again, and looks once more.
    """
    monkeypatch.setattr("consistory_ray.engine.coordinator.SECONDS_PER_PART", 60.0)
    out, aside, older = tmp_path / "out", tmp_path / "aside", tmp_path / "older"
    run_plan(plan, str(older), options())
    record = (older / "run.json").read_text()
    (older / "run.json").write_text(re.sub(r'"started_at": "\d{4}', '"started_at": "2020', record))
    before = sorted(path.relative_to(older) for path in older.rglob("*.*"))

    def put_back() -> None:
        out.rename(aside)
        older.rename(out)

    watched = Mishap(put_back, scene(3))
    with pytest.raises(ConsistoryError, match="not the storage that the run was begun in"):
        run_plan(plan, str(out), options(outage_seconds=1.0, lease_seconds=2.0, seconds=0.05), watched)
    assert sorted(path.relative_to(out) for path in out.rglob("*.*")) == before, "something was written there"
    shutil.rmtree(out)
    aside.rename(out)
    check_complete(plan, out, run_plan(plan, str(out), options()))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.mark.parametrize("below", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nothing_is_written_into_a_bare_mount_point(plan: Plan, mounted: Path, below: bool) -> None:
    """``umount -l`` in the middle of a run; where the output is the mount point itself, and where it lies below it."""
    out = mounted / "out" if below else mounted
    watched = Mishap(lambda: subprocess.run(["umount", "-l", str(mounted)], check=True), scene(3))
    with pytest.raises(ConsistoryError):
        run_plan(plan, str(out), options(outage_seconds=1.0, lease_seconds=2.0, seconds=0.1), watched)
    assert not list(mounted.iterdir()), "it was written to"
