"""Samplers in jobs: what does not go together is an error before any model is loaded, what finds no step a warning."""

from __future__ import annotations

from typing import Any

import pytest

from consistory_ray.errors import JobError
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.plan.plan import make_plan
from consistory_ray.plan.sampling import refuse_sampling, sampling_advice
from consistory_ray.settings import MethodSettings

SUBJECT = {"concept": "cat", "subject": "a cat", "anchors": ["in snow", "at night"], "scenes": ["on the beach"]}


def job(**settings: Any) -> RenderJob:
    return parse_job({"subjects": [SUBJECT], "settings": settings})


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"scheduler": "lcm", "sigma_schedule": "karras"}, "sigma_schedule"),
        ({"timesteps": [999, 499], "timestep_spacing": "trailing"}, "timestep_spacing"),
        ({"scheduler": "unipc", "eta": 0.3}, "eta"),
        ({"scheduler": "tcd", "num_inference_steps": 51}, "num_inference_steps"),
    ],
)
def test_settings_that_do_not_go_together_are_no_job(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(JobError, match=field):
        job(**settings)


def test_what_only_the_models_settings_decide_is_refused_by_the_plan() -> None:
    with pytest.raises(JobError, match=r"settings\.sigma_schedule"):
        make_plan(job(sigma_schedule="karras"))  # DDIM is the model's
    with pytest.raises(JobError, match=r"settings\.eta"):
        refuse_sampling(MethodSettings(scheduler="euler", eta=0.1))


def test_a_sampler_is_part_of_every_pictures_identity() -> None:
    plans = [make_plan(job(**changes)) for changes in ({}, {"scheduler": "euler"}, {"scheduler": "euler_a"})]
    ids = [{asset.asset_id for asset in plan.assets()} for plan in plans]
    assert not ids[0] & ids[1] and not ids[1] & ids[2]
    given = make_plan(job(timesteps=[999, 749, 499, 249])).subjects[0].settings
    assert given.num_inference_steps == 4


def test_windows_that_find_no_step_are_told() -> None:
    two = MethodSettings(scheduler="lcm", timesteps=(999, 499))
    assert [name for name, _, _ in sampling_advice(two)] == ["injection_window"]
    assert "881 to 661" in next(sampling_advice(two))[2]
    assert not list(sampling_advice(MethodSettings(scheduler="lcm", timesteps=(999, 749, 499, 249))))
    assert not list(sampling_advice(MethodSettings(num_inference_steps=1)))
    early = MethodSettings(scheduler="euler", reuse_deep=(0.2, 2))
    assert [name for name, _, _ in sampling_advice(early)] == ["reuse_deep"]
