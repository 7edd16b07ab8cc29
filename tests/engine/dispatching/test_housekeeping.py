"""What is told about workers that wait, and for what: once, and in numbers that say what to do."""

from __future__ import annotations

from typing import Any

import pytest

from consistory_ray.engine.cluster.placement import WorkerShape
from consistory_ray.engine.dispatching import housekeeping
from consistory_ray.engine.dispatching.housekeeping import PATIENCE_SECONDS, SLOW_INTERVAL_SECONDS, Housekeeping
from consistory_ray.engine.events import Event, Notice, Pulse
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.engine.scheduling.state import SubjectWork
from consistory_ray.watch.progress import progress_line
from consistory_ray.watch.tally import Tally

GB = 10**9


class Pool:
    """Workers that are all there, on one machine; one more waits for a place."""

    def __init__(self, workers: int) -> None:
        self.shape = WorkerShape(workers, "cuda", 1.0, 1.0, 1)
        self.unplaced = 1

    def __len__(self) -> int:
        return self.shape.count + 1

    def resize(self, wanted: int) -> int:
        return 0

    def node_of(self, name: str) -> str:
        return "pod"


class House:
    """Eight subjects with caches of 5.5 GB, so many workers, and a machine with so much room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, workers: int, room: int, **options: Any) -> None:
        self.room = room
        monkeypatch.setattr(housekeeping, "cache_limits", lambda: {"pod": self.room})
        monkeypatch.setattr(housekeeping, "store_usage", lambda: (0, 0))
        monkeypatch.setattr(housekeeping, "places", lambda options, shape: shape.count)
        works = [
            SubjectWork(f"s{n}", (f"s{n}/a",), tuple(f"s{n}/{i}" for i in range(8)), 55 * GB // 10) for n in range(8)
        ]
        given = RunOptions(**options)
        self.events: list[Event] = []
        self.scheduler = Scheduler(works, batch_size=4, cache_budget=given.cache_budget, cache_limits={"pod": room})
        self.ready = [f"w{number}" for number in range(workers)]
        self.keeper = Housekeeping(given, self.scheduler, Pool(workers), self.events.append)  # type: ignore[arg-type]
        for name in self.ready:
            self.scheduler.add_worker(name, "pod")

    def look(self, seconds: float) -> None:
        """Once a second from now on."""
        for now in range(int(seconds)):
            self.keeper.look(self.now + now, self.ready)
            self.scheduler.assign()
        self.now += seconds

    now = 1000.0

    @property
    def notices(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]

    @property
    def pulse(self) -> Pulse:
        return [event for event in self.events if isinstance(event, Pulse)][-1]


def test_workers_that_wait_for_room_are_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, workers=8, room=12 * GB)
    house.look(PATIENCE_SECONDS - 1)
    assert not house.notices, "anchors that are just being made are no reason to complain"
    house.look(10 * PATIENCE_SECONDS)
    (notice,) = house.notices
    assert "6 workers wait for room for another anchor cache (budget 12.0 GB on a machine, one takes 5.5 GB)" in notice
    assert "raise" in notice and "cacheMemory" in notice
    assert (house.pulse.short_of_room, house.pulse.unplaced) == (6, 1)

    tally = Tally()
    tally.workers_wanted, tally.workers_ready, tally.planned = 9, 8, 72
    tally.take(house.pulse)
    assert "1 waiting for placement, 6 waiting for cache room" in progress_line(tally)


def test_a_larger_machine_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is read again as the cluster changes."""
    house = House(monkeypatch, workers=4, room=6 * GB)
    house.look(5)
    assert (house.scheduler.busy, house.pulse.short_of_room) == (1, 3)
    house.room = 60 * GB
    house.look(SLOW_INTERVAL_SECONDS + 2)
    assert (house.scheduler.busy, house.pulse.short_of_room) == (4, 0)
    assert not house.notices


def test_a_budget_that_was_given_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, workers=2, room=60 * GB, cache_budget=6 * GB)
    house.look(2 * PATIENCE_SECONDS)
    (notice,) = house.notices
    assert "1 worker waits" in notice and "budget 6.0 GB in all" in notice and "raise --cache-budget" in notice
