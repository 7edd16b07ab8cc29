"""How many workers are asked for, when some machines are of no use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from consistory_ray.engine.cluster.placement import WorkerShape
from consistory_ray.engine.faults import Caps, Failure, Fault
from consistory_ray.engine.options import RunOptions
from consistory_ray.output.storage import open_output
from consistory_ray.testing import FakeRenderer

if TYPE_CHECKING:
    from consistory_ray.engine.dispatching.pool import WorkerPool

pytestmark = pytest.mark.usefixtures("ray_cluster")

DIED = Failure(Fault.WORKER_DIED, "ActorDiedError", "gone")
CAPS = Caps(worker_deaths=2, crashes=1, exhausted_seconds=60.0, worker_errors=2)


@pytest.fixture
def time() -> list[float]:
    """A clock moved by hand."""
    return [0.0]


@pytest.fixture
def pool(tmp_path: Path, time: list[float]) -> Iterator[WorkerPool]:
    """At most three workers, of which none needs a CPU."""
    from consistory_ray.engine.dispatching.pool import WorkerPool

    options = RunOptions(workers=3, renderer=FakeRenderer.factory(), caps=CAPS)
    shape = WorkerShape(3, "cpu", 0.0, 0.0, 1)
    pool = WorkerPool(shape, "fake", "auto", open_output(tmp_path), options, clock=lambda: time[0])
    yield pool
    pool.close()


def test_a_place_that_is_given_up_is_not_taken_from_the_others(pool: WorkerPool, time: list[float]) -> None:
    pool.resize(3)
    assert pool.lost("worker-0", DIED) and not pool.lost("worker-0", DIED)
    assert len(pool) == 2 and not pool.exhausted
    pool.resize(1)
    assert len(pool) == 1, "there is work for one, and it may be done"
    pool.resize(9)
    assert len(pool) == 2
    time[0] = 61.0
    pool.resize(9)
    assert len(pool) == 3, "its machine may long have been replaced"


def test_only_deaths_of_its_own_count(pool: WorkerPool) -> None:
    pool.resize(1)
    for _ in range(5):
        assert pool.lost("worker-0", Failure(Fault.NODE_DIED, "NodeDiedError", "gone"))
        assert pool.lost("worker-0", DIED, own_fault=False)
    assert pool.deaths("worker-0") == 0
    assert pool.lost("worker-0", DIED) and pool.deaths("worker-0") == 1
    pool.acquit({"worker-0", "somebody else"})
    assert pool.deaths("worker-0") == 0


def test_errors_in_a_row_condemn_a_worker(pool: WorkerPool) -> None:
    pool.resize(1)
    assert not pool.erred("worker-0", "a")
    assert pool.erred("worker-0", "b"), "two subjects"
    pool.succeeded("worker-0")
    assert [pool.erred("worker-0", "a") for _ in range(4)] == [False, False, False, True], "one subject may be at fault"


def test_nothing_is_started_while_the_first_workers_are_of_no_use(pool: WorkerPool) -> None:
    pool.held = True
    assert pool.resize(3) == 0 and len(pool) == 0
    pool.held = False
    assert pool.resize(3) == 3
