"""Workers, nodes and coordinators die by SIGKILL, at moments that a seed chooses.

After every death of a coordinator, and at the end, :mod:`tests.chaos.invariants` has to hold: every planned asset
exactly once in the index or failed with a reason; every row's file present with its SHA-256; no row without a plan;
pictures identical to those of an undisturbed run; nothing rendered again that was there; no worker outlives its run.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from consistory_ray.plan.plan import Plan
from consistory_ray.testing import read_trace
from tests.chaos.conftest import NODES, PLACES, MakeRun, write_job
from tests.chaos.harness import FACTS, KILLS, Coordinator, Run, moments
from tests.chaos.invariants import Digests, Marks, check_accounted, check_complete, check_kept, check_rows, keepsakes
from tests.patience import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

STAGES = {0: "anchors", 4: "starting", 7: "joining"}
"""At which stage the coordinators die of every ten that begin an output; the others after a few calls."""


def let_it_begin(run: Run, coordinator: Coordinator, calls: int) -> int | None:
    """Wait until ``calls`` more calls are finished; the exit code if the coordinator is over before."""
    wanted = run.calls() + calls
    for _ in moments(PATIENCE):
        if (code := coordinator.wait(0.05)) is not None or run.calls() >= wanted:
            return code
    raise AssertionError(f"{calls} more calls took more than {PATIENCE:.0f} s:\n{coordinator.text()}")


def settle(run: Run, plan: Plan, undisturbed: Digests) -> None:
    """Render what is left, undisturbed, and go on with another output."""
    run.finish(seconds=0.0)
    check_complete(run.store, plan, undisturbed)
    run.cluster.wait_until_gone()
    run.into_another_output()


def let_it_reach(run: Run, coordinator: Coordinator, stage: str) -> int | None:
    """Wait until it is at this stage, or past it; the exit code if it is over before."""
    order = ("starting", "joining", "anchors", "scenes")
    for _ in moments(PATIENCE):
        if (code := coordinator.wait(0)) is not None or order.index(run.stage(coordinator)) >= order.index(stage):
            return code
    raise AssertionError(f"it has not come to {stage} in {PATIENCE:.0f} s:\n{coordinator.text()}")


def let_one_be_at(run: Run, coordinator: Coordinator, word: str) -> int | None:
    """Wait until some worker is at this; the exit code if the coordinator is over before."""
    for _ in moments(PATIENCE):
        if (code := coordinator.wait(0)) is not None or any(run.at(word)):
            return code
    raise AssertionError(f"no worker was at {word} in {PATIENCE:.0f} s:\n{coordinator.text()}")


def test_coordinators_die(make_run: MakeRun, undisturbed: Digests, full: bool) -> None:
    """30 coordinators die, 10 without ``--full``: some while they start or resume, most while pictures come in; rows
    hold after each death.

    After every other death the next coordinator starts while workers of the dead one may still be there; else, and
    after the last, they are seen to go, and what lies on storage then is not rendered by any coordinator after that.
    """
    chance, before, deaths = random.Random(1), KILLS["coordinators"], 30 if full else 10
    run = make_run(seconds=0.15, anchor_seconds=0.3, jitter=0.5)
    run.workers = 2  # each coordinator starts its own
    if not full:
        run.job = write_job(run.folder / "small.yaml", subjects=3)
    plan, kept, most, longest, number = run.plan, Marks(), 0, 0.0, 0
    while KILLS["coordinators"] - before < deaths:
        coordinator = run.start()
        stage, number = STAGES.get(number % 10), number + 1
        if stage is None:
            code = let_it_begin(run, coordinator, chance.randrange(1, 4))
        else:
            code = let_it_reach(run, coordinator, stage)
        if code is None:
            code = coordinator.wait(chance.uniform(0, 1.5 if stage is None else 0.1))
        if code is not None or not run.kill(coordinator):
            assert code in (0, None), coordinator.text()
            settle(run, plan, undisturbed)
            kept.clear()
            number = 0
        elif chance.random() < 0.5 or KILLS["coordinators"] - before == deaths:
            longest = max(longest, run.cluster.wait_until_gone())
            check_kept(run.store, kept)
            kept |= keepsakes(run.store, plan)
            most = max(most, len(kept))
        check_rows(run.store, plan, undisturbed)
    run.finish(seconds=0.0)
    check_complete(run.store, plan, undisturbed)
    check_kept(run.store, kept)
    assert most > len(list(plan.assets())) / 4, "too little was there to be rendered again"
    run.check_met("coordinator", "starting", "joining", "anchors", "scenes")
    FACTS.append(f"the last worker of a killed coordinator was gone after {longest:.1f} s at most")


def test_workers_die(make_run: MakeRun, undisturbed: Digests, full: bool) -> None:
    """140 workers die, 40 without ``--full``: one after every few calls that all of them together have finished,
    whatever they are at.

    An asset that was alone on two workers that died is taken for a killer and fails with that reason, and where too
    many die in one place it is left empty: such runs end with 1 or 3, and what they lack is rendered without killing.
    """
    chance, before, deaths = random.Random(2), KILLS["workers"], 140 if full else 40
    run = make_run(seconds=0.1, anchor_seconds=0.3, jitter=0.5)
    run.workers = NODES * PLACES
    plan = run.plan
    while KILLS["workers"] - before < deaths:
        coordinator = run.start()
        for _ in range(2):  # anchors are soon made, few calls later there are none to die at
            if let_it_reach(run, coordinator, "anchors") is None:
                run.kill_worker(chance, "anchors")
        while KILLS["workers"] - before < deaths:
            if let_it_begin(run, coordinator, chance.randrange(1, 4)) is not None:
                break
            run.kill_worker(chance, chance.choice(("starting", "loaded", "anchors", "scenes", "writing")))
        check_rows(run.store, plan, undisturbed)
        code = coordinator.wait(PATIENCE)
        assert code in (0, 1, 3), f"{code}: {coordinator.text()}"
        for row in check_accounted(run.store, plan, undisturbed) if code == 1 else []:
            assert "died each time" in row["error"], row
        settle(run, plan, undisturbed)
    run.check_met("worker", "starting", "anchors", "scenes", "writing")


def test_nodes_die(make_run: MakeRun, undisturbed: Digests, full: bool) -> None:
    """10 nodes die, 4 without ``--full``, with all that is on them, anchor caches included, and are replaced; no asset
    is blamed for it.
    """
    chance, before, deaths = random.Random(3), KILLS["nodes"], 10 if full else 4
    run = make_run(seconds=0.4, anchor_seconds=0.8, jitter=0.5, cache_bytes=1 << 20)
    run.workers = NODES * PLACES
    plan = run.plan
    while KILLS["nodes"] - before < deaths:
        coordinator = run.start()
        for _ in range(deaths - KILLS["nodes"] + before):
            if run.met["node at anchors"]:
                code = let_it_begin(run, coordinator, chance.randrange(1, 5))
            else:  # soon there are none to die at
                code = let_one_be_at(run, coordinator, "anchors")
            if code is not None:
                break
            run.kill_node(chance, "anchors")
        assert coordinator.wait(PATIENCE) == 0, coordinator.text()
        check_complete(run.store, plan, undisturbed)
        run.into_another_output()
    run.check_met("node", "anchors", "scenes")


def test_everything_dies(make_run: MakeRun, undisturbed: Digests, full: bool) -> None:
    """Coordinators, workers and nodes die while batches run out of memory; 40 deaths in all, 16 without ``--full``."""
    chance, before, deaths = random.Random(4), sum(KILLS.values()), 40 if full else 16
    run = make_run(seconds=0.15, jitter=1.0, cache_bytes=1 << 18, max_batch=3)
    run.workers = NODES * PLACES
    plan = run.plan
    while sum(KILLS.values()) - before < deaths:
        coordinator = run.start()
        for _ in range(chance.randrange(1, 8)):
            code = let_it_begin(run, coordinator, chance.randrange(0, 3))
            if code is not None:
                break
            if chance.random() < 0.1:
                run.kill_node(chance)
            else:
                run.kill_worker(chance)
        code = coordinator.wait(chance.uniform(0, 1))
        if code is not None or not run.kill(coordinator):
            assert code in (0, 1, 3, None), coordinator.text()
            settle(run, plan, undisturbed)
        check_rows(run.store, plan, undisturbed)
    settle(run, plan, undisturbed)
    assert {where.split()[0] for where, times in run.met.items() if times} == {"coordinator", "node", "worker"}


def test_a_run_dies_beside_another(make_run: MakeRun, undisturbed: Digests, tmp_path: Path) -> None:
    """Two runs share the cluster: one loses a worker and its coordinator, the other one loses and repeats nothing."""
    chance = random.Random(5)
    doomed = make_run(seconds=0.1)
    doomed.workers = 1
    doomed.job = write_job(tmp_path / "small.yaml", subjects=2)
    spared = Run(
        doomed.cluster, tmp_path / "spared", doomed.job, str(tmp_path / "spared" / "out"), {"seconds": 0.1}, workers=1
    )
    one, other = doomed.start(), spared.start()
    assert let_it_begin(doomed, one, 3) is None and let_it_begin(spared, other, 3) is None
    theirs = doomed.experienced()
    (worker,) = [worker for worker in doomed.cluster.workers() if worker.pid in theirs]
    worker.kill()
    KILLS["workers"] += 1
    assert let_it_begin(doomed, one, chance.randrange(1, 4)) is None
    assert one.kill()
    doomed.cluster.wait_until_gone(pids=doomed.experienced())
    kept = keepsakes(doomed.store, doomed.plan)
    assert other.wait(PATIENCE) == 0, other.text()
    check_complete(spared.store, spared.plan, undisturbed)
    spans = [span for span in read_trace(spared.folder / "trace") if span.kind == "scenes"]
    assert sum(span.assets for span in spans) == spared.plan.scene_count, "no scene was rendered twice"
    assert not doomed.experienced() & spared.experienced(), "no worker served both"
    check_rows(doomed.store, doomed.plan, undisturbed)
    doomed.finish(seconds=0.0)
    check_complete(doomed.store, doomed.plan, undisturbed)
    check_kept(doomed.store, kept)
