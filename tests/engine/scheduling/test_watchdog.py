"""Silence is judged by what a call should take."""

from __future__ import annotations

from consistory_ray.engine.scheduling.state import Call
from consistory_ray.engine.scheduling.watchdog import Watchdog
from consistory_ray.engine.workers.renderer import PhaseClock


def call(number: int, worker: str = "w", assets: int = 2, kind: str = "scenes") -> Call:
    return Call(number, worker, kind, "cat", tuple(f"a{index}" for index in range(assets)))  # type: ignore[arg-type]


def test_before_anything_is_known_only_the_long_limit_counts() -> None:
    dog = Watchdog(factor=3, floor=1, unknown=100)
    dog.submitted(call(1), 0.0)
    assert dog.stuck(99.0) == []
    assert dog.stuck(101.0) == [("w", 101.0)]


def test_a_call_may_take_a_multiple_of_the_median_for_its_pictures() -> None:
    dog = Watchdog(factor=3, floor=1, unknown=100)
    now = 0.0
    for number in range(5):  # two pictures in 4 s: 2 s each
        dog.submitted(call(number), now)
        now += 4.0
        dog.returned(call(number), now)
    dog.submitted(call(9, assets=4), now)
    assert dog.stuck(now + 23.9) == []
    assert [name for name, _ in dog.stuck(now + 24.1)] == ["w"]


def test_a_call_in_the_queue_is_timed_from_when_the_one_before_it_came_back() -> None:
    dog = Watchdog(factor=2, floor=1, unknown=100)
    dog.submitted(call(0), 0.0)
    dog.submitted(call(1), 0.0)
    dog.returned(call(0), 10.0)
    assert dog.stuck(29.0) == []
    assert [name for name, _ in dog.stuck(30.5)] == ["w"]
    dog.returned(call(1), 31.0)
    assert dog.stuck(1000.0) == []


def test_failed_calls_say_nothing_about_time_and_lost_workers_are_forgotten() -> None:
    dog = Watchdog(factor=2, floor=1, unknown=50)
    dog.submitted(call(0), 0.0)
    dog.returned(call(0), 0.01, counts=False)
    dog.submitted(call(1), 0.0)
    assert dog.stuck(49.0) == []
    dog.forget("w")
    assert dog.stuck(1000.0) == []
    dog.returned(call(1), 60.0)  # too late, and not counted


def test_kinds_of_call_are_timed_apart() -> None:
    dog = Watchdog(factor=2, floor=1, unknown=50)
    dog.submitted(call(0, kind="anchors"), 0.0)
    dog.returned(call(0, kind="anchors"), 1.0)
    dog.submitted(call(1), 1.0)
    assert dog.stuck(40.0) == []


def test_phases_are_split_at_the_end_of_each_pass() -> None:
    waits: list[int] = []
    clock = PhaseClock(3, lambda: waits.append(1))
    for done in range(1, 6):
        clock.tick(done, 5)
    phases = clock.phases()
    assert list(phases) == ["pass1", "pass2", "decode"]
    assert len(waits) == 2, "the device is waited for only where a phase ends"
    assert all(seconds >= 0 for seconds in phases.values())

    clock = PhaseClock(3, lambda: None)
    for done in range(1, 4):
        clock.tick(done, 3)
    assert list(clock.phases()) == ["pass1", "decode"]

    clock = PhaseClock(3, lambda: None, "scene")
    for done in range(1, 4):
        clock.tick(done, 3)
    assert list(clock.phases()) == ["scene", "decode"], "scenes of one pass, as most profiles have"
