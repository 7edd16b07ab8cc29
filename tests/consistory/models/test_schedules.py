"""Schedulers of models: DDIM samples unless another one is asked for, which is told, and some models are refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers.schedulers as schedulers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.method.latents import seeded_noise
from consistory_ray.errors import CheckpointError, InputError
from consistory_ray.settings import MethodSettings
from tests.consistory.conftest import make_diffusers_pipeline

FEW = MethodSettings(num_inference_steps=3, freeu=None)
CALLS: dict[str, Any] = {
    "create_subject": lambda pipe, subject: pipe.create_subject(["a cat"], "cat", [1], settings=FEW),
    "render": lambda pipe, subject: pipe.render(["a cat"], subject, [1]),
    "render_vanilla": lambda pipe, subject: pipe.render_vanilla(["a cat"], [1], settings=FEW),
}


@pytest.fixture
def model(tmp_path: Path) -> StableDiffusionXLPipeline:
    return make_diffusers_pipeline(tmp_path)


def swapped(model: StableDiffusionXLPipeline, name: str, **changes: Any) -> Any:
    return getattr(schedulers, name).from_config(model.scheduler.config, **changes)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_same_noise_levels_need_no_word(model: StableDiffusionXLPipeline, name: str) -> None:
    model.scheduler = swapped(model, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = ConsiStoryPipeline(model)
        pipe.render_vanilla(["a cat"], [1], settings=FEW)
    assert pipe.notices == []


NOTICED = [
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "goes through other noise levels"),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}, "goes through other noise levels"),
    ("EulerAncestralDiscreteScheduler", {}, "draws new noise"),
    ("DDPMScheduler", {}, "draws new noise"),
    ("LCMScheduler", {}, "draws new noise"),
    ("TCDScheduler", {}, "is for distilled models"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "draws new noise"),
]


@pytest.mark.parametrize(("name", "changes", "why"), NOTICED)
def test_what_ddim_only_stands_in_for_is_told_once(
    model: StableDiffusionXLPipeline, name: str, changes: dict[str, Any], why: str
) -> None:
    model.scheduler = swapped(model, name, **changes)
    with pytest.warns(UserWarning, match=f"sampled by DDIM .* {name}, {why}.*scheduler: model takes it"):
        pipe = ConsiStoryPipeline(model)
    assert len(pipe.notices) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.render_vanilla(["a cat"], [1], settings=FEW)


@pytest.mark.parametrize("call", CALLS)
def test_a_swap_after_construction_is_told_and_changes_no_picture(model: StableDiffusionXLPipeline, call: str) -> None:
    pipe = ConsiStoryPipeline(model)
    subject = pipe.create_subject(["a cat"], "cat", [1], settings=FEW)
    before = pipe.render_vanilla(["a cat"], [1], settings=FEW, output_type="latent").images
    own = model.scheduler
    model.scheduler = swapped(model, "EulerAncestralDiscreteScheduler")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            try:
                CALLS[call](pipe, subject)
            except Exception as error:  # its configuration is part of the fingerprint
                assert "another model" in str(error)
    assert [each.category for each in told if "EulerAncestral" in str(each.message)] == [UserWarning]
    assert torch.equal(pipe.render_vanilla(["a cat"], [1], settings=FEW, output_type="latent").images, before)
    model.scheduler = own
    pipe.render(["a cat"], subject, [1])


REFUSED = [
    ("EDMEulerScheduler", {}, "EDM"),
    ("EDMDPMSolverMultistepScheduler", {}, "EDM"),
    ("FlowMatchEulerDiscreteScheduler", {}, "flow-matching"),
    ("FlowMatchHeunDiscreteScheduler", {}, "flow-matching"),
    ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, "flow-matching"),
    ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, "flow-matching"),
    ("IPNDMScheduler", {}, "no beta_schedule"),
    ("DDPMScheduler", {"beta_schedule": "sigmoid"}, "must be one of linear, scaled_linear"),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "v_prediction"),
]


@pytest.mark.parametrize(("name", "changes", "why"), REFUSED)
def test_others_are_refused_at_once_and_at_each_call(
    model: StableDiffusionXLPipeline, name: str, changes: dict[str, Any], why: str
) -> None:
    pipe = ConsiStoryPipeline(model)
    subject = pipe.create_subject(["a cat"], "cat", [1], settings=FEW)
    known = {} if name.startswith(("EDM", "Flow", "IPNDM")) else dict(model.scheduler.config)
    model.scheduler = getattr(schedulers, name).from_config(known, **changes)
    with pytest.raises(CheckpointError, match=why):
        ConsiStoryPipeline(model)
    for call in CALLS.values():
        with pytest.raises(CheckpointError, match=why):
            call(pipe, subject)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("DPMSolverMultistepScheduler", {}),
        ("DEISMultistepScheduler", {}),
    ],
)
def test_the_models_own_scheduler_samples_where_it_is_asked_for(
    model: StableDiffusionXLPipeline, name: str, changes: dict[str, Any]
) -> None:
    model.scheduler = swapped(model, name, **changes)
    settings = FEW.replace(scheduler="model", num_inference_steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = ConsiStoryPipeline(model)
    found = pipe.render_vanilla(["a cat"], [1], settings=settings, output_type="latent").images
    latents = seeded_noise(1, (4, 16, 16))[None]
    expected = model(["a cat"], latents=latents, num_inference_steps=5, guidance_scale=5.0, output_type="latent").images
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    ddim = pipe.render_vanilla(["a cat"], [1], settings=settings.replace(scheduler="ddim"), output_type="latent").images
    assert not torch.allclose(ddim, found, atol=1e-2)


def test_a_scheduler_that_calls_the_network_twice_a_step_is_refused(model: StableDiffusionXLPipeline) -> None:
    model.scheduler = swapped(model, "HeunDiscreteScheduler")
    with pytest.raises(InputError, match="calls the network 5 times in 3 steps"):
        ConsiStoryPipeline(model).render_vanilla(["a cat"], [1], settings=FEW.replace(scheduler="model"))
