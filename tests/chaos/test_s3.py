"""An S3 that fails, stays away, comes back and dies between two requests; coordinators and workers that die with it.

The invariants are those of :mod:`tests.chaos.test_storage`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from consistory_ray.output.index.index import list_parts
from tests.chaos.conftest import MakeRun, write_job
from tests.chaos.harness import FACTS, KILLS, Run, moments
from tests.chaos.hosts import Host
from tests.chaos.invariants import Digests, check_complete, check_rows
from tests.chaos.test_kills import let_it_begin
from tests.patience import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(scope="module")
def s3() -> Iterator[Host]:
    """The failing S3 server, well-behaved at first."""
    server = Host("storage_host.py", "5")
    yield server
    server.close()


def s3_run(make_run: MakeRun, server: Host, folder: str) -> Run:
    """A run into that server."""
    run = make_run(f"s3://chaos/{folder}", seconds=0.05)
    run.job = write_job(run.folder / "small.yaml", subjects=3)
    run.storage = {
        "endpoint_url": server.hello["endpoint"],
        "key": "test",
        "secret": "test",
        "config_kwargs": {"read_timeout": 2, "connect_timeout": 2, "retries": {"max_attempts": 1}},
    }
    run.store.fs.makedirs("chaos", exist_ok=True)
    return run


def test_s3_fails(make_run: MakeRun, undisturbed: Digests, s3: Host, full: bool) -> None:
    """Errors, late and lost answers, one request in eight, while 6 coordinators and up to 15 workers die (2 and 5
    without ``--full``).
    """
    deaths, workers = (6, 15) if full else (2, 5)
    run = s3_run(make_run, s3, "failing")
    chance, plan, before = random.Random(6), run.plan, KILLS.copy()
    while KILLS["coordinators"] - before["coordinators"] < deaths:
        s3.ask(do="rates", error=6, lost=4, slow=2)
        coordinator = run.start()
        while KILLS["workers"] - before["workers"] < workers and let_it_begin(run, coordinator, 2) is None:
            if run.kill_worker(chance) and chance.random() < 0.4:
                break
        code = coordinator.wait(chance.uniform(1, 6))
        if code is not None or not coordinator.kill():
            assert code in (0, 1, 3, None), coordinator.text()
        s3.ask(do="rates")
        check_rows(run.store, plan, undisturbed)
        if code == 0:
            check_complete(run.store, plan, undisturbed, released=False)
            run.into_another_output()
    met = s3.ask(do="rates")["met"]
    run.finish()
    check_complete(run.store, plan, undisturbed)
    FACTS.append(f"requests to S3: {met}")


def test_a_storage_that_stays_away_stops_the_run(make_run: MakeRun, undisturbed: Digests, s3: Host) -> None:
    """Every request fails from the middle of a run on: out of patience it ends, says why, and the next one goes on."""
    run = s3_run(make_run, s3, "away")
    run.arguments = ("--outage-seconds", "3")
    coordinator = run.start()
    let_it_begin(run, coordinator, 3)
    s3.ask(do="rates", error=100)
    code = coordinator.wait(PATIENCE)
    s3.ask(do="rates")
    assert code == 3, coordinator.text()
    assert "out of reach" in coordinator.text(), coordinator.text()
    check_rows(run.store, run.plan, undisturbed)
    run.finish()
    check_complete(run.store, run.plan, undisturbed)


def test_a_storage_that_comes_back_is_waited_for(make_run: MakeRun, undisturbed: Digests, s3: Host) -> None:
    """Twice every request fails until the run has noticed and for a while after: it comes back by itself each time.

    The first time a worker dies as well.
    """
    run, chance = s3_run(make_run, s3, "back"), random.Random(16)
    coordinator = run.start(seconds=0.2)
    for outage in (1, 2):
        let_it_begin(run, coordinator, 3)
        s3.ask(do="rates", error=100)
        if outage == 1:
            run.kill_worker(chance)
        for _ in moments(PATIENCE):
            assert coordinator.wait(0) is None, coordinator.text()
            if coordinator.text().count("storage is out of reach") >= outage:
                break
        else:
            raise AssertionError(f"the outage was not noticed:\n{coordinator.text()}")
        time.sleep(4)
        s3.ask(do="rates")
    assert coordinator.wait(PATIENCE) == 0, coordinator.text()
    check_complete(run.store, run.plan, undisturbed)
    calls, most = run.calls(), len(list(run.plan.assets()))
    run.finish()
    assert run.calls() == calls <= most, "something was rendered again"


def test_index_merges_are_cut_short(make_run: MakeRun, undisturbed: Digests, s3: Host) -> None:
    """2 coordinators die between writing the merged part and deleting the others; then merging meets a bad storage."""
    run = s3_run(make_run, s3, "merging")
    plan = run.plan
    for _ in range(2):
        s3.ask(do="hold", method="DELETE", where="/index/")
        coordinator = run.start(seconds=0.2)  # long enough for several parts
        for _ in moments(PATIENCE):
            assert coordinator.wait(0) is None, coordinator.text()
            if s3.ask(do="is held")["held"]:
                break
        else:
            raise AssertionError(f"nothing was merged:\n{coordinator.text()}")
        assert coordinator.kill()
        assert len(list_parts(run.store)) > 2
        rows = check_rows(run.store, plan, undisturbed)
        assert len(rows) == len(list(plan.assets())), "the merged part is written before anything is deleted"
        s3.ask(do="let go", carry_out=1)
        check_rows(run.store, plan, undisturbed)
    calls = run.calls()
    run.arguments = ("--outage-seconds", "10")
    s3.ask(do="rates", where="/index/", error=20, lost=10, slow=10)
    coordinator = run.start()
    code = coordinator.wait(PATIENCE)
    s3.ask(do="rates")
    assert code in (0, 3), coordinator.text()
    check_rows(run.store, plan, undisturbed)
    run.finish()
    check_complete(run.store, plan, undisturbed)
    assert run.calls() == calls, "something was rendered again"
