"""Storage that fills up, loses and corrupts; leases of the dead and of the living.

The invariants of :mod:`tests.chaos.invariants` have to hold after every run, whether it could finish or not: every
planned asset exactly once in the index or failed with a reason; every row's file present with its SHA-256; no row
without a plan; pictures identical to those of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from consistory_ray.output.index.parts import list_parts
from consistory_ray.output.lease.processes import Process
from consistory_ray.output.lease.record import LeaseRecord, generations, lease_path
from consistory_ray.output.storage import OutputStore
from tests.chaos.conftest import MakeRun
from tests.chaos.invariants import Digests, check_complete, check_kept, check_rows, keepsakes
from tests.chaos.test_kills import let_it_begin
from tests.patience import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

FULL = 300  # kilobytes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few hundred kilobytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FULL}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_run(make_run: MakeRun, undisturbed: Digests, small_disk: Path) -> None:
    """ENOSPC in the middle of a run: it ends with the reason, and once there is room the next one completes it."""
    run = make_run(str(small_disk / "out"), seconds=0.0)
    text = run.finish(expect=3)
    assert "No space left" in text, text
    check_rows(run.store, run.plan, undisturbed)
    half_written = [path for path in small_disk.rglob("*.png") if path.stat().st_size == 0]
    assert not half_written
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    run.finish()
    check_complete(run.store, run.plan, undisturbed)


def damage(store: OutputStore, chance: random.Random, paths: list[str]) -> dict[str, str]:
    """Cut, flip, empty and remove some of these files; returns what was done to which."""
    done = {}
    for path in chance.sample(paths, 12):
        data = bytearray(store.read(path))
        kind = chance.choice(("cut", "flipped", "emptied", "removed"))
        if kind == "removed":
            store.delete(path)
        else:
            middle = len(data) // 2
            data[middle] ^= 0xFF
            kept = {"cut": middle, "flipped": len(data), "emptied": 0}[kind]
            Path(store.join(path)).write_bytes(data[:kept])
        done[path] = kind
    return done


def test_damaged_pictures_are_found_and_made_again(make_run: MakeRun, undisturbed: Digests) -> None:
    """Bit rot, cut, emptied and lost files: ``verify`` finds all, and the next run makes those and no others."""
    run = make_run(seconds=0.0)
    plan = run.plan
    run.finish()
    done = damage(run.store, random.Random(7), [scene.path for subject in plan.subjects for scene in subject.scenes])
    code, text = run.other_command("verify", run.url, "--repair", "--json")
    assert code == 0, text
    found = json.loads(text[text.index("{\n") :])
    assert {item["path"] for item in found["listed"]} == set(done), (done, text)
    check_rows(run.store, plan, undisturbed)
    calls = run.calls()
    run.finish()
    check_complete(run.store, plan, undisturbed)
    assert run.calls() - calls <= len(done)


def test_a_truncated_index_part_is_set_aside_and_survived(make_run: MakeRun, undisturbed: Digests) -> None:
    """A cut part is moved away by the next run, which says so and finds its pictures again without rendering."""
    run = make_run(seconds=0.0)
    run.finish()
    part = list_parts(run.store)[0]
    cut = run.store.read(part)[:-10]
    Path(run.store.join(part)).write_bytes(cut)
    calls, kept = run.calls(), keepsakes(run.store, run.plan)
    text = run.finish()
    assert part.rsplit("/", 1)[-1] in text.replace("\n", ""), text
    moved = [file.path for file in run.store.list_files("damaged")]
    assert [path.rsplit("/", 1)[-1] for path in moved] == [part.rsplit("/", 1)[-1]]
    assert run.store.read(moved[0]) == cut
    assert run.calls() == calls
    check_kept(run.store, kept)
    check_complete(run.store, run.plan, undisturbed)


def test_a_second_coordinator_is_refused(make_run: MakeRun, undisturbed: Digests) -> None:
    """While one renders, another one that comes to the same output goes away, and the first is none the worse."""
    run = make_run(seconds=0.1)
    first = run.start()
    let_it_begin(run, first, 2)
    text = run.finish(expect=3)
    assert "held" in text or "another run" in text, text
    assert first.wait(PATIENCE) == 0, first.text()
    check_complete(run.store, run.plan, undisturbed)


def write_lease(store: OutputStore, age: float, ttl: float) -> str:
    """A lease of somebody on another machine, last renewed ``age`` seconds ago; returns its path."""
    moment = time.time() - age
    process = Process("elsewhere", "another-machine/1", 4242, "17")
    record = LeaseRecord(uuid.uuid4().hex, "somebody", process, moment, moment, ttl)
    path = lease_path(max(generations(store), default=0) + 1)
    assert store.create_exclusive(path, record.encode())
    return path


def test_leases_of_the_dead_run_out(make_run: MakeRun, undisturbed: Digests) -> None:
    """A lease that was not renewed for long is taken over at once, a recent one after it has run out."""
    run = make_run(seconds=0.0)
    write_lease(run.store, age=36000, ttl=PATIENCE)
    started = time.monotonic()
    run.finish()
    write_lease(run.store, age=0, ttl=6)
    run.store.delete(run.plan.subjects[0].scenes[0].path)
    between = time.monotonic()
    run.finish()
    check_complete(run.store, run.plan, undisturbed)
    assert time.monotonic() - between >= 6, "a lease that may be alive was not waited for"
    assert between - started < PATIENCE, "a lease that is hours old was waited for"


def test_a_coordinator_that_lost_its_lease_stops(make_run: MakeRun, undisturbed: Digests) -> None:
    """Somebody else has taken over: it writes no more rows, says so and ends; what it made is not made again."""
    run = make_run(seconds=2.0)
    coordinator = run.start()
    let_it_begin(run, coordinator, 2)
    path = write_lease(run.store, age=0, ttl=5)
    assert coordinator.wait(PATIENCE) == 3, coordinator.text()
    assert "taken over" in coordinator.text().replace("\n", " "), coordinator.text()
    check_rows(run.store, run.plan, undisturbed)
    run.store.delete(path)
    run.finish(seconds=0.0)
    check_complete(run.store, run.plan, undisturbed)
