"""What workers cost while they are there: counted, compared with the forecast, and stopped in time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.events import (
    BatchDone,
    Event,
    Notice,
    Paused,
    Pulse,
    RunSummary,
    WorkerLost,
    WorkerReady,
    WorkerReleased,
    WorkersRequested,
)
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.spending import Spending
from consistory_ray.engine.stopping import EXIT_MAX_COST, StopRequest
from consistory_ray.errors import InputError, MaxCostReached
from consistory_ray.jobs.job import RenderJob
from consistory_ray.output.index.index import read_index
from consistory_ray.output.run_record import SAME_AGAIN, read_run_record
from consistory_ray.output.storage import open_output
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.plan.pricing import Rate
from consistory_ray.testing import FakeRenderer
from consistory_ray.watch.status import read_status

MakeJob = Callable[..., RenderJob]
HOUR = 3600.0


class Told:
    """Spending under a clock that is set by hand."""

    def __init__(self, max_cost: float | None = None, **options: Any) -> None:
        self.now, self.stop = 0.0, StopRequest()
        given = {"rate": Rate(per_hour=HOUR, currency="EUR"), "max_cost": max_cost} | options  # 1 EUR a second
        self.spending = Spending(RunOptions(**given), self.stop, lambda: self.now)

    def at(self, now: float, *events: Event) -> float:
        self.now = now
        for event in events:
            self.spending.take(event)
        return self.spending.device_hours * HOUR


def pulse(requested: int = 0, unplaced: int = 0) -> Pulse:
    return Pulse(queued=9, workers=0, busy=0, requested=requested, live_cache_bytes=0, unplaced=unplaced)


def test_a_worker_counts_from_when_it_has_a_place_until_it_goes() -> None:
    told = Told()
    assert told.at(10, WorkersRequested(3, "cpu"), pulse(requested=3, unplaced=3)) == 0
    assert told.at(20, pulse(requested=3, unplaced=1)) == 0
    assert told.at(30, WorkerReady("worker-0", "a/1", 5.0)) == 2 * 10
    assert told.at(40, WorkerLost("worker-0", "why", True), pulse(requested=1)) == 2 * 20
    assert told.at(45, WorkerReady("worker-1", "a/2", 5.0)) == 45
    assert told.at(50, Paused("why", 1.0, 2.0)) == 50
    assert told.at(500, WorkerReady("worker-2", "a/3", 5.0)) == 50
    assert told.at(501, WorkerReleased("worker-2", "why")) == 51
    assert told.at(900) == 51 and told.spending.cost == pytest.approx(51)
    assert told.spending.to_record() == pytest.approx({"device_hours": 51 / HOUR, "cost": 51}, abs=1e-6)


def test_a_share_of_a_gpu_is_paid_for_as_such() -> None:
    told = Told(gpus_per_worker=0.25)
    told.at(0, WorkersRequested(1, "cuda"), WorkerReady("worker-0", "a/1", 1.0))
    assert told.at(100) == 25
    assert Told(rate=Rate()).spending.to_record() == {"device_hours": 0.0}, "no price, no cost"


def test_it_asks_for_the_stop_while_one_more_call_can_be_paid() -> None:
    told = Told(max_cost=100.0)
    told.at(0, WorkersRequested(2, "cpu"), *(WorkerReady(f"worker-{n}", "a/1", 1.0) for n in range(2)))
    told.at(10, BatchDone("worker-0", "scenes", 4, {"scenes": 8.0, "write": 2.0}))
    told.at(39, pulse())
    assert not told.stop and not told.spending.reached
    told.at(40, pulse())  # 80 are spent, and each of two workers may take 10 s more
    assert told.stop and told.spending.reached and told.stop.reason == "--max-cost 100 EUR"
    told.at(60, pulse())
    assert not told.stop.at_once, "it asks once"


def test_whom_somebody_else_has_stopped_it_does_not_stop() -> None:
    told = Told(max_cost=1.0)
    told.stop.ask("SIGTERM")
    told.at(100, WorkerReady("worker-0", "a/1", 1.0))
    told.at(200, pulse())
    assert not told.spending.reached and not told.stop.at_once


@pytest.mark.parametrize("rate", [Rate(), Rate(per_hour=0.0)])
def test_a_limit_needs_a_price(rate: Rate) -> None:
    with pytest.raises(InputError, match="price of an hour"):
        RunOptions(max_cost=5.0, rate=rate)
    with pytest.raises(InputError, match="max_cost"):
        RunOptions(max_cost=0.0, rate=Rate(per_hour=1.0))


def run(plan: Plan, url: Path, events: list[Event], *, seconds: float = 0.1, **options: Any) -> RunSummary:
    given = {"workers": 1, "cpus_per_worker": 1, "batch_size": 1, "rate": Rate("CPU", HOUR, "EUR")} | options
    renderer = FakeRenderer.factory(seconds=seconds, anchor_seconds=0.0)
    return run_plan(plan, str(url), RunOptions(**given, renderer=renderer), events.append)


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_stops_in_order_and_goes_on_later(make_job: MakeJob, tmp_path: Path) -> None:
    plan, events = make_plan(make_job(subjects=1, scenes=40)), list[Event]()
    first = run(plan, tmp_path, events, seconds=1.0, max_cost=15.0, submission="mine")
    assert (first.state, first.max_cost_reached) == ("interrupted", True)
    assert 0 < first.outcome["cost"] < 22 and 0 < first.rendered < 30
    assert read_index(str(tmp_path)).num_rows == first.rendered, "every picture has its row"
    assert any("--max-cost is 15: it will be stopped" in event.message for event in events if isinstance(event, Notice))
    with pytest.raises(MaxCostReached):
        first.raise_for_state()
    record = read_run_record(str(tmp_path))
    assert record is not None and (record.state, record.exit_code) == ("interrupted", EXIT_MAX_COST)
    assert record.forecast["pictures"] == 42 and record.totals["cost"] == pytest.approx(first.outcome["cost"], abs=2)
    with pytest.raises(MaxCostReached, match="submit it anew"):
        run(plan, tmp_path, [], max_cost=12.0, submission="mine")
    assert EXIT_MAX_COST in SAME_AGAIN

    second = run(plan, tmp_path, [], seconds=0.0)
    assert (second.state, second.max_cost_reached, second.rendered) == ("complete", False, 42 - first.rendered)
    status = read_status(plan, open_output(str(tmp_path)))
    assert status.forecast["pictures"] == second.rendered and not status.max_cost_reached
    assert status.outcome == pytest.approx(second.outcome, abs=1) and status.currency == "EUR"


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_is_done_before_its_limit_is_complete(make_job: MakeJob, tmp_path: Path) -> None:
    summary = run(make_plan(make_job(subjects=1, scenes=2)), tmp_path, [], max_cost=1e6)
    assert (summary.state, summary.max_cost_reached) == ("complete", False)
    assert summary.forecast["device_hours_low"] < summary.forecast["device_hours_high"]
    assert 0 < summary.outcome["device_hours"] == pytest.approx(summary.outcome["cost"] / HOUR, abs=1e-6)
