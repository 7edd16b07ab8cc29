"""What plans are expected to take: calls of each profile, and what was measured of some pictures."""

from __future__ import annotations

from typing import Any

import pytest

from consistory_ray.consistory.method.call_counts import anchor_calls, scene_calls
from consistory_ray.jobs.job import parse_job
from consistory_ray.plan.forecast import Forecast, forecast
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.settings import PROFILES, MethodSettings

ANCHORS, SCENES = 2, 6


def plan(**settings: Any) -> Plan:
    scenes = [f"a cat in place {number}" for number in range(SCENES)]
    subject = {"id": "cat", "concept": "cat", "anchors": ["a cat here", "a cat there"], "scenes": scenes}
    return make_plan(parse_job({"model": "acme/xl", "settings": settings, "subjects": [subject]}))


def expected(planned: Plan, done: set[str] | None = None, seconds: dict[str, float] | None = None) -> Forecast:
    return forecast(planned, "out", done or set(), seconds or {}, device="cuda")


def calls(profile: str, anchors: int = ANCHORS, scenes: int = SCENES) -> float:
    settings = MethodSettings(**PROFILES[profile])
    return anchors * anchor_calls(settings) + scenes * scene_calls(settings)


@pytest.mark.parametrize("name", PROFILES)
def test_time_follows_the_profile(name: str) -> None:
    exact, found = expected(plan()), expected(plan(profile=name))
    assert found.profile == name
    assert found.seconds == pytest.approx(exact.seconds * calls(name) / calls("exact"), abs=0.2)
    by_name = {item.profile: item for item in found.profiles}
    assert list(by_name) == list(PROFILES)
    assert by_name[name].seconds == found.seconds and by_name[name].cache_bytes == found.cache_bytes
    costs = [item.scene_cost for item in exact.profiles]
    assert costs[0] == 1.98 and costs == sorted(costs, reverse=True)
    assert by_name["fast"].cache_bytes < by_name["exact"].cache_bytes / 2


def test_settings_of_its_own_stand_beside_the_profiles() -> None:
    found = expected(plan(profile="fast", reuse_deep=None))
    assert found.profile is None and found.profiles[-1].profile is None
    assert found.profiles[1].scene_cost < found.profiles[-1].scene_cost < found.profiles[0].scene_cost


def test_anchors_tell_how_long_scenes_will_take() -> None:
    """An anchor takes more than twice the calls of a fast scene: its seconds are no scene's."""
    planned = plan(profile="fast")
    anchors, scenes = planned.subjects[0].anchors, planned.subjects[0].scenes
    seconds = {anchor.asset_id: anchor_calls(MethodSettings()) for anchor in anchors}  # one second for each call
    seconds[scenes[0].asset_id] = 2 * scene_calls(planned.subjects[0].settings)
    found = expected(planned, set(seconds), seconds)
    assert found.measured and found.seconds == pytest.approx(calls("fast", 0, SCENES - 1), abs=0.2)
    assert not expected(planned, set(), dict(list(seconds.items())[:2])).measured
