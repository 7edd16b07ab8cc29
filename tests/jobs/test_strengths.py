"""Strengths in job files, in models' files and in calls: what they set, what wins over them, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consistory_ray.consistory.inputs import changed_settings, scene_settings
from consistory_ray.errors import InputError, JobError
from consistory_ray.guards.problems import FIXES
from consistory_ray.jobs.job import parse_job
from consistory_ray.jobs.render_settings import RenderSettings
from consistory_ray.plan.plan import make_plan
from consistory_ray.settings import SCENE_SETTINGS, STRENGTHS, MethodSettings

STRONG = MethodSettings().with_strength("strong")


def method(**settings: Any) -> MethodSettings:
    return RenderSettings.model_validate(settings).for_model("acme/xl")


def ids(**settings: Any) -> list[str]:
    subject = {"id": "cat", "concept": "cat", "anchors": ["a cat here"], "scenes": ["a cat at sea", "a cat at home"]}
    job = {"name": "test", "model": "acme/xl", "settings": settings, "subjects": [subject]}
    return [asset.asset_id for asset in make_plan(parse_job(job)).assets()]


def test_a_strength_is_all_of_its_settings_beneath_single_ones() -> None:
    assert method(strength="paper") == method() == MethodSettings() != STRONG
    assert method(strength="strong") == STRONG
    window = (0.2, 0.4)
    assert method(injection_window=window, strength="strong") == STRONG.replace(injection_window=window)
    assert method(strength="strong", profile="fast") == STRONG.with_profile("fast")
    assert STRONG.with_strength("paper") == MethodSettings()


def test_strengths_set_the_same_settings_and_none_that_scenes_have_alone() -> None:
    assert STRENGTHS["paper"].keys() == STRENGTHS["strong"].keys()
    assert not STRENGTHS["strong"].keys() & set(SCENE_SETTINGS)


def test_another_strength_is_other_pictures_and_paper_is_what_there_was() -> None:
    assert ids() == ids(strength="paper")
    assert not set(ids()) & set(ids(strength="strong"))


def test_a_model_may_bring_a_strength(tmp_path: Path) -> None:
    (tmp_path / "consistory.json").write_text('{"strength": "strong", "mask_dropout": 0.3}')
    assert RenderSettings().for_model(str(tmp_path)) == STRONG.replace(mask_dropout=0.3)
    assert RenderSettings(strength="paper").for_model(str(tmp_path)) == MethodSettings(mask_dropout=0.3)


@pytest.mark.parametrize("value", ["stronger", None, 1, ["strong"]])
def test_a_bad_one_is_named_with_what_to_write(value: object) -> None:
    with pytest.raises(JobError) as caught:
        ids(strength=value)
    assert [(problem.path, problem.fix) for problem in caught.value.problems] == [
        ("settings.strength", FIXES["strength"])
    ]
    if value is not None:
        with pytest.raises(InputError, match=r"strength.*use one of paper, strong"):
            changed_settings(MethodSettings(), {"strength": value})


def test_calls_take_one_for_subjects_and_scenes_have_their_subjects() -> None:
    assert changed_settings(MethodSettings(), {"strength": "strong", "mask_dropout": 0.1}) == STRONG.replace(
        mask_dropout=0.1
    )
    with pytest.raises(InputError, match=r"strength.*make the subject with it"):
        scene_settings(MethodSettings(), None, {"strength": "strong"})
