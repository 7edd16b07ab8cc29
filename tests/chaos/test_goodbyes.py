"""Coordinators and machines that are asked to go: SIGTERM, drained nodes, a cluster that shrinks to nothing and grows.

Beside the invariants of :mod:`tests.chaos.invariants` these hold, which a SIGKILL cannot grant: whoever was asked to go
finishes and tells what it has on its device, so nothing at all is rendered twice.
"""

from __future__ import annotations

import random
import time

import pytest

from consistory_ray.output.index.index import read_index
from consistory_ray.output.lease.holders import current_lease
from consistory_ray.output.run_record import read_run_record
from consistory_ray.testing import read_trace
from tests.chaos.conftest import NODES, PLACES, MakeRun
from tests.chaos.harness import Coordinator, Run, moments
from tests.chaos.invariants import Digests, Marks, check_complete, check_kept, check_rows, check_told, keepsakes
from tests.chaos.test_kills import let_it_begin
from tests.patience import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

GRACE = 200.0
AWAY = 10.0


def let_it_take_the_output(run: Run, coordinator: Coordinator) -> None:
    """Wait until it holds the lease: from now on it knows what to do about signals, whatever else it is at."""
    for _ in moments(PATIENCE):
        assert coordinator.wait(0) is None, coordinator.text()
        lease = current_lease(run.store)
        if lease is not None and lease.process.pid == coordinator.pid:
            return
    raise AssertionError(f"it has not taken the lease:\n{coordinator.text()}")


def check_once(run: Run) -> None:
    """Every picture of the plan was rendered once, whichever process did it."""
    spans = read_trace(run.folder / "trace")
    made = {kind: sum(span.assets for span in spans if span.kind == kind) for kind in ("anchors", "scenes")}
    assert made == {"anchors": run.plan.anchor_count, "scenes": run.plan.scene_count}


def test_coordinators_are_asked_to_stop(make_run: MakeRun, undisturbed: Digests, full: bool) -> None:
    """6 coordinators get SIGTERM, 3 without ``--full``, every third of them while it resumes or joins the cluster: each
    ends with 75 within the grace, every picture has its row, and the next one goes on from there.
    """
    chance = random.Random(9)
    run = make_run(seconds=0.2, jitter=0.5)
    run.workers, run.arguments = 2, ("--grace", f"{GRACE:.0f}")
    plan, kept = run.plan, Marks()
    for number in range(6 if full else 3):
        coordinator = run.start()
        if number % 3 == 0:
            let_it_take_the_output(run, coordinator)
        else:
            assert let_it_begin(run, coordinator, chance.randrange(2, 5)) is None, coordinator.text()
        assert coordinator.wait(chance.uniform(0, 1)) is None, coordinator.text()
        assert coordinator.terminate(GRACE) == 75, coordinator.text()
        record = read_run_record(run.store)
        assert record is not None and record.state == "interrupted", record
        run.cluster.wait_until_gone()
        check_rows(run.store, plan, undisturbed)
        check_told(run.store, plan)
        check_kept(run.store, kept)
        kept |= keepsakes(run.store, plan)
    assert 0 < len(kept) < len(undisturbed)
    run.finish(seconds=0.0)
    check_complete(run.store, plan, undisturbed)
    check_kept(run.store, kept)
    check_once(run)


def test_drained_nodes_are_left_in_order(make_run: MakeRun, undisturbed: Digests) -> None:
    """3 machines are announced to go: their workers finish what they have, others take over, nothing is lost."""
    chance = random.Random(10)
    run = make_run(seconds=0.3, jitter=0.5, cache_bytes=1 << 20)
    run.workers = NODES * PLACES
    coordinator = run.start()
    for _ in range(3):
        assert let_it_begin(run, coordinator, chance.randrange(3, 6)) is None, coordinator.text()
        run.cluster.drain_node(seed=chance.randrange(100), seconds=120)
    assert coordinator.wait(PATIENCE) == 0, coordinator.text()
    run.cluster.remove_drained()
    assert coordinator.log.read_text().count("finishes its batch and leaves") >= 3, coordinator.text()
    check_complete(run.store, run.plan, undisturbed)
    check_once(run)


def test_nodes_are_terminated(make_run: MakeRun, undisturbed: Digests) -> None:
    """4 raylets get SIGTERM without any notice: the same run goes on elsewhere and blames no asset."""
    chance = random.Random(11)
    run = make_run(seconds=0.3, jitter=0.5, cache_bytes=1 << 20)
    run.workers = NODES * PLACES
    coordinator = run.start()
    for _ in range(4):
        assert let_it_begin(run, coordinator, chance.randrange(1, 4)) is None, coordinator.text()
        run.cluster.terminate_node(seed=chance.randrange(100))
    assert coordinator.wait(PATIENCE) == 0, coordinator.text()
    check_complete(run.store, run.plan, undisturbed)


def test_the_last_node_goes_and_others_come(make_run: MakeRun, undisturbed: Digests) -> None:
    """For ten seconds there is no machine at all; the same run waits and goes on where it was."""
    run = make_run(seconds=0.2, jitter=0.5, cache_bytes=1 << 20)
    run.workers = NODES * PLACES
    plan = run.plan
    coordinator = run.start()
    assert let_it_begin(run, coordinator, 6) is None, coordinator.text()
    gone = 0
    try:
        for gone in range(1, NODES + 1):
            if gone % 2:
                run.cluster.kill_node(seed=0, replace=False)
            else:
                run.cluster.terminate_node(seed=0, replace=False)
        nobody_since = time.monotonic()
        run.cluster.wait_until_gone()
        assert coordinator.wait(AWAY) is None, coordinator.text()
        rows = check_rows(run.store, plan, undisturbed)
        told = {row["path"] for row in rows}
        assert 0 < len(told) < len(undisturbed)
        kept = {path: mark for path, mark in keepsakes(run.store, plan).items() if path in told}
        assert coordinator.wait(max(0.0, AWAY - (time.monotonic() - nobody_since))) is None, coordinator.text()
    finally:
        for _ in range(gone):
            run.cluster.add_node()
    assert coordinator.wait(PATIENCE) == 0, coordinator.text()
    check_complete(run.store, plan, undisturbed)
    check_kept(run.store, kept)
    before = {row["asset_id"]: row for row in rows if row["path"] in kept}  # anchors without a cache are made again
    assert {row["asset_id"]: row for row in read_index(run.store).to_pylist()}.items() >= before.items(), "rows changed"
