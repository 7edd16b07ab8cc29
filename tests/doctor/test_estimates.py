"""From a few measured steps to a whole picture and to a job."""

from __future__ import annotations

from typing import Any

import pytest

from consistory_ray.doctor.diagnosis import ANCHORS, VANILLA, Speeds, Timing
from consistory_ray.doctor.estimates import calls_of, job_forecast, largest_batch, profile_of, seconds_of
from consistory_ray.jobs.job import parse_job
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.settings import PROFILES, MethodSettings

SETTINGS = MethodSettings()
FEW = SETTINGS.replace(num_inference_steps=10)
A_CALL = 0.1
SIZE = (1024, 1024)


def timing(way: str, batch: int, seconds: float | None) -> Timing:
    return Timing(way, batch, 10, calls_of(way, FEW), calls_of(way, SETTINGS), seconds, tflops=30.0)


def measured() -> list[Timing]:
    """A machine where a call takes a tenth of a second, and less in batches of four."""
    ways = [VANILLA, ANCHORS, *PROFILES]
    alone = [timing(way, 1, A_CALL * calls_of(way, FEW)) for way in ways]
    return [*alone, timing("exact", 4, 0.5 * A_CALL * calls_of("exact", FEW)), timing("exact", 8, None)]


def plan(takes: int = 1, **settings: Any) -> Plan:
    subject = {"concept": "cat", "anchors": ["a cat", "a cat up"], "scenes": ["a cat in snow", "a cat at sea"]}
    job = {"name": "cats", "model": "some/model", "takes": takes, "settings": settings, "subjects": [subject]}
    return make_plan(parse_job(job))


def test_calls_of_every_way() -> None:
    vanilla, anchors, exact, fast, turbo = (
        calls_of(way, SETTINGS) for way in (VANILLA, ANCHORS, "exact", "fast", "turbo")
    )
    assert vanilla == pytest.approx(50, rel=0.02)
    assert anchors == exact == pytest.approx(1.98 * 50, rel=0.02)
    assert turbo < fast < vanilla


def test_seconds_follow_calls_and_not_steps() -> None:
    found = seconds_of(measured(), "fast", 1, calls_of("fast", SETTINGS))
    assert found == pytest.approx(A_CALL * calls_of("fast", SETTINGS))
    assert found < 5 * A_CALL * calls_of("fast", FEW), "look-ahead calls do not rise with the steps"
    assert seconds_of(measured(), "exact", 8, 99.0) is None and seconds_of(measured(), "fast", 4, 40.0) is None


def test_the_share_of_the_device() -> None:
    speeds = Speeds(100.0, {})
    assert timing("exact", 1, 0.6).mfu(speeds) == pytest.approx(0.5)
    assert timing("exact", 1, None).mfu(speeds) is None and timing("exact", 1, 1.0).mfu(None) is None


def test_batches_are_those_that_were_measured() -> None:
    assert largest_batch(measured(), "exact", None) == largest_batch(measured(), "exact", 6) == 4
    assert largest_batch(measured(), "exact", 3) == largest_batch(measured(), "fast", None) == 1


def test_settings_of_their_own_are_like_the_nearest_profile() -> None:
    assert [profile_of(SETTINGS.with_profile(name)) for name in PROFILES] == list(PROFILES)
    assert profile_of(SETTINGS.replace(shared_every=3)) == "exact"
    assert profile_of(SETTINGS.with_profile("fast").replace(shared_every=3)) == "fast"
    assert profile_of(SETTINGS.with_profile("turbo").replace(shared_every=3)) == "turbo"


def test_a_job() -> None:
    found = job_forecast(plan(), measured(), SIZE, 1)
    assert found is not None
    whole = calls_of("exact", SETTINGS)
    assert found.seconds == pytest.approx(A_CALL * (2 * whole + 2 * 0.5 * whole))
    assert (found.anchors, found.scenes, found.profiles, found.batch, found.scaled) == (2, 2, {"exact": 2}, 4, False)


def test_takes_take_as_long_as_scenes() -> None:
    found = job_forecast(plan(takes=3), measured(), SIZE, 1)
    assert found is not None and (found.scenes, found.profiles) == (6, {"exact": 6})
    assert found.seconds == pytest.approx(A_CALL * calls_of("exact", SETTINGS) * (2 + 6 * 0.5))


def test_a_job_of_other_sizes_steps_and_batches_on_more_devices() -> None:
    settings = {"height": 512, "width": 1024, "num_inference_steps": 30, "batch_size": 1}
    found = job_forecast(plan(**settings), measured(), SIZE, 2)
    assert found is not None and found.scaled and found.batch == 1 and found.workers == 2
    calls = calls_of("exact", SETTINGS.replace(num_inference_steps=30))
    assert found.seconds == pytest.approx(A_CALL * 4 * calls / 2 / 2)


def test_nothing_is_forecast_from_what_was_not_measured() -> None:
    assert job_forecast(plan(), [timing for timing in measured() if timing.way != ANCHORS], SIZE, 1) is None
