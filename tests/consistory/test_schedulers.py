"""Samplers: each goes where diffusers' own goes, from the picture's own noise, and the method's windows follow."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg
from torch import Tensor

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, Trace
from consistory_ray.consistory.method.denoiser import rescaled
from consistory_ray.consistory.method.latents import SchedulerSteps, SeededNoise, seeded_noise
from consistory_ray.consistory.method.noise_levels import expected_levels, level_of, position_of, reference_kept
from consistory_ray.consistory.method.steps import Pass, StepPlan
from consistory_ray.consistory.models.schedules import model_schedule
from consistory_ray.consistory.models.single_file import SingleFile, own_scheduler
from consistory_ray.errors import InputError
from consistory_ray.settings import MethodSettings, share_of
from tests.consistory.conftest import make_diffusers_pipeline

CPU = torch.device("cpu")
SDXL: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
DMD2 = (999, 749, 499, 249)
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "ddim trailing": {"timestep_spacing": "trailing"},
    "ddim noisy": {"eta": 0.7},
    "euler": {"scheduler": "euler"},
    "euler karras": {"scheduler": "euler", "sigma_schedule": "karras"},
    "euler trailing": {"scheduler": "euler", "timestep_spacing": "trailing"},
    "euler given": {"scheduler": "euler", "timesteps": DMD2},
    "euler_a": {"scheduler": "euler_a"},
    "dpmpp_2m": {"scheduler": "dpmpp_2m"},
    "dpmpp_2m karras": {"scheduler": "dpmpp_2m", "sigma_schedule": "karras"},
    "dpmpp_2m exponential": {"scheduler": "dpmpp_2m", "sigma_schedule": "exponential"},
    "dpmpp_2m given": {"scheduler": "dpmpp_2m", "timesteps": DMD2},
    "dpmpp_2m_sde": {"scheduler": "dpmpp_2m_sde"},
    "unipc": {"scheduler": "unipc"},
    "lcm": {"scheduler": "lcm", "num_inference_steps": 4},
    "lcm given": {"scheduler": "lcm", "timesteps": DMD2},
    "tcd": {"scheduler": "tcd", "num_inference_steps": 4, "eta": 0.3},
    "model": {"scheduler": "model"},
}
NOISY = ("ddim noisy", "euler_a", "dpmpp_2m_sde", "lcm", "tcd")


def own(**changes: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**{**SDXL, "clip_sample": False, "set_alpha_to_one": False, **changes})


def settings_of(name: str, **changes: Any) -> MethodSettings:
    return MethodSettings(**{"num_inference_steps": 8, "freeu": None, **SAMPLERS[name], **changes})


def predicted(shown: Tensor, timestep: Tensor) -> Tensor:
    """Stands for a network: anything that depends on both."""
    return torch.tanh(1.7 * shown.roll(1, -1)) * (0.5 + float(timestep) / 1000)


def noise_of(*seeds: int) -> SeededNoise:
    return SeededNoise(seeds, torch.stack([seeded_noise(seed, (4, 8, 8)) for seed in seeds]))


def walked(schedule: SchedulerSteps, noise: SeededNoise) -> Tensor:
    latents = noise(None) * schedule.noise_scale
    for step in range(len(schedule.timesteps)):
        latents = schedule.advance(predicted(*schedule.model_input(latents, step)), latents, step, noise)
    return latents


def walked_by_diffusers(scheduler: Any, noise: SeededNoise, eta: float) -> Tensor:
    """The loop of diffusers' pipelines, with the noise of each step drawn for it."""
    latents = noise(None) * scheduler.init_noise_sigma
    takes = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"eta": eta} if "eta" in takes else {}
    for step, timestep in enumerate(scheduler.timesteps):
        prediction = predicted(scheduler.scale_model_input(latents, timestep), timestep)
        extra |= {"generator": noise.generators(step)} if "generator" in takes else {}
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
    return latents


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_goes_where_diffusers_goes(name: str, kind: str) -> None:
    settings, noise = settings_of(name), noise_of(3, 4)
    schedule = model_schedule(own(prediction_type=kind), settings, CPU)
    scheduler = copy.deepcopy(schedule.scheduler)
    expected = walked_by_diffusers(scheduler, noise, settings.eta)
    found = walked(schedule, noise)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("timesteps", [(981, 961, 501, 261, 1), (999, 749, 499, 249)])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_through_given_timesteps_is_its_formula(timesteps: tuple[int, ...], eta: float) -> None:
    settings, noise = settings_of("ddim", timesteps=timesteps, eta=eta), noise_of(5)
    schedule = model_schedule(own(), settings, CPU)
    kept, latents = own().alphas_cumprod.double(), noise(None).double()
    for step, (timestep, following) in enumerate(zip(timesteps, (*timesteps[1:], 0), strict=True)):
        here, there = kept[timestep], kept[following]
        epsilon = predicted(latents.float(), torch.tensor(timestep)).double()
        clean = (latents - (1 - here).sqrt() * epsilon) / here.sqrt()
        sigma = eta * ((1 - there) / (1 - here) * (1 - here / there)).sqrt()
        latents = there.sqrt() * clean + (1 - there - sigma**2).sqrt() * epsilon + sigma * noise(step)
    torch.testing.assert_close(walked(schedule, noise).double(), latents, rtol=1e-3, atol=1e-3)


def test_evenly_given_timesteps_are_ddims_own() -> None:
    noise = noise_of(1)
    trailing = model_schedule(own(), settings_of("ddim trailing"), CPU)
    given = model_schedule(own(), settings_of("ddim", timesteps=tuple(map(int, trailing.timesteps))), CPU)
    torch.testing.assert_close(walked(trailing, noise), walked(given, noise))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_fork_goes_its_own_way_with_what_was_remembered(name: str) -> None:
    schedule, noise = model_schedule(own(), settings_of(name), CPU), noise_of(1, 2)
    latents = noise(None) * schedule.noise_scale
    for step in range(2):
        latents = schedule.advance(predicted(*schedule.model_input(latents, step)), latents, step, noise)
    ends = []
    for branch, factor in ((schedule.fork(), 1.0), (schedule, 2.0), (schedule.fork(), 1.0)):
        there = latents
        for step in range(2, len(schedule.timesteps)):
            # looking elsewhere in between leaves nothing behind
            branch.jump(there, there, step, len(schedule.timesteps) - 1)
            branch.model_input(there, len(schedule.timesteps) - 1)
            there = branch.advance(factor * predicted(*branch.model_input(there, step)), there, step, noise)
            if branch is schedule:
                break
        ends.append(there)
    assert torch.isfinite(ends[0]).all() and not torch.equal(ends[0], ends[1])
    fresh = model_schedule(own(), settings_of(name), CPU)
    assert torch.equal(ends[0], walked(fresh, noise))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_jump_along_the_right_prediction_is_the_noised_picture(name: str) -> None:
    schedule = model_schedule(own(), settings_of(name), CPU)
    clean, noise = noise_of(1, 2)(None), noise_of(3, 4)(None)
    for step, ahead in ((0, 1), (1, 3)):
        found = schedule.jump(noise, schedule.noised(clean, noise, step), step, ahead)
        torch.testing.assert_close(found, schedule.noised(clean, noise, ahead), rtol=1e-3, atol=2e-3)
    shown = schedule.model_input(schedule.noised(clean, noise, 1), 1)[0]
    kept = schedule.kept[1]
    torch.testing.assert_close(shown, kept**0.5 * clean + (1 - kept) ** 0.5 * noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if "karras" not in name and "exponential" not in name])
def test_models_without_signal_at_the_last_timestep_work_under_every_sampler(name: str) -> None:
    """As the marker keys of single files say it."""
    marked = own_scheduler(own(), SingleFile(v_prediction=True, zero_snr=True))
    schedule, noise = model_schedule(marked, settings_of(name), CPU), noise_of(1, 2)
    assert schedule.scheduler.config.prediction_type == "v_prediction"
    assert schedule.scheduler.config.rescale_betas_zero_snr
    assert schedule.timesteps[0] == 999 and schedule.kept[0] < 1e-6
    assert schedule.levels is not None and schedule.levels[0] == 999
    assert torch.isfinite(walked(schedule, noise)).all()


def test_guidance_is_rescaled_as_in_diffusers_and_picture_by_picture() -> None:
    guided, text = 3 * noise_of(1, 2, 3)(None), noise_of(4, 5, 6)(None)
    found = rescaled(guided, text, 0.7)
    torch.testing.assert_close(found, rescale_noise_cfg(guided, text, guidance_rescale=0.7))
    torch.testing.assert_close(rescaled(guided[1:2], text[1:2], 0.7), found[1:2])
    assert rescaled(guided, text, 0.0) is guided and float(found.std()) < 0.6 * float(guided.std())


# Windows --------------------------------------------------------------------------------------------------------------


def test_noise_levels_are_timesteps_of_sdxl() -> None:
    table = own().alphas_cumprod
    torch.testing.assert_close(torch.tensor(reference_kept()), table, rtol=1e-4, atol=1e-7)
    assert [round(level_of(float(table[timestep]))) for timestep in (0, 1, 261, 501, 999)] == [0, 1, 261, 501, 999]
    assert level_of(0.0) == 999 and level_of(1.0) == 0 and level_of(2**-24) == 999
    assert [position_of(level) for level in (999, 981, 874, 749, 261, 1, 0)] == [0, 0, 5, 12, 36, 49, 49]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 20, 25, 50, 77, 100])
def test_ddim_as_it_was_has_shares_of_its_steps(steps: int) -> None:
    settings = MethodSettings(num_inference_steps=steps)
    assert model_schedule(own(), settings, CPU).levels is None and expected_levels(settings) is None
    plan = StepPlan.from_settings(settings)
    assert plan.positions is None and plan.window == 20
    assert plan.injected == range(share_of(steps, 1 / 10), min(share_of(steps, 1 / 3) + 1, steps))
    assert plan.blended == range(min(share_of(steps, 1 / 10), steps - 1) + 1)


def test_the_reference_steps_by_their_noise_levels_are_what_they_are_by_shares() -> None:
    for changes in ({}, {"reuse_deep": (0.35, 2)}, {"guidance_interval": (0.1, 0.7)}):
        settings = MethodSettings(**changes)  # type: ignore[arg-type]
        shares, levels = (StepPlan.from_settings(settings, each) for each in (None, range(981, 0, -20)))
        for name in ("steps", "blended", "injected", "window", "guided", "masked"):
            assert getattr(shares, name) == getattr(levels, name), name
        assert list(shares.full_calls) == list(levels.full_calls)
        assert [shares.blend_weight(step) for step in range(50)] == [levels.blend_weight(step) for step in range(50)]


WINDOWS = {
    "8 trailing": ({"timestep_spacing": "trailing"}, [0, 1], [874, 749]),
    "DMD2": ({"scheduler": "lcm", "timesteps": DMD2}, [0], [749]),
    "Euler 25": ({"scheduler": "euler", "num_inference_steps": 25}, [0, 1, 2], [881, 841, 801, 761, 721, 681]),
    "two steps": ({"scheduler": "euler", "timesteps": (999, 499)}, [0], []),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_few_steps_do_what_reference_steps_of_their_noise_do(case: str) -> None:
    changes, blended, injected = WINDOWS[case]
    settings = MethodSettings(**{"num_inference_steps": 8, **changes})
    schedule = model_schedule(own(), settings, CPU)
    plan = StepPlan.from_settings(settings, schedule.levels)
    assert list(plan.blended) == blended
    assert [schedule.timesteps[step] for step in plan.injected] == injected
    assert len(plan.masked) >= 1 and (plan.fork is None) == (not injected)


@pytest.mark.parametrize("steps", [4, 8, 20, 25])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "model"])
def test_estimates_have_the_windows_of_the_schedule(name: str, steps: int) -> None:
    settings = settings_of(name, num_inference_steps=steps)
    known = StepPlan.from_settings(settings, model_schedule(own(), settings, CPU).levels)
    guessed = StepPlan.from_settings(settings)
    assert guessed.steps == known.steps and guessed.positions == known.positions


# Pictures -------------------------------------------------------------------------------------------------------------

SCENE = ["a cat in the snow"]


@pytest.mark.parametrize("name", ["euler", "euler karras", "dpmpp_2m karras", "unipc", "ddim trailing"])
def test_vanilla_pictures_are_those_of_diffusers(tmp_path: Any, name: str) -> None:
    theirs: StableDiffusionXLPipeline = make_diffusers_pipeline(tmp_path)
    settings = settings_of(name, num_inference_steps=4)
    pipe = ConsiStoryPipeline(theirs)
    found = pipe.render_vanilla(SCENE, [3], settings=settings, output_type="latent").images
    latents = seeded_noise(3, (4, 16, 16))[None]
    theirs.scheduler = model_schedule(theirs.scheduler, settings, CPU).scheduler
    expected = theirs(
        SCENE, latents=latents, num_inference_steps=4, guidance_scale=settings.guidance_scale, output_type="latent"
    ).images
    assert float((found - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))


def test_a_model_without_signal_at_the_last_timestep_as_in_diffusers(tmp_path: Any) -> None:
    trailing = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    theirs = make_diffusers_pipeline(tmp_path, **trailing)
    settings = MethodSettings(num_inference_steps=4, freeu=None, guidance_rescale=0.7)
    found = ConsiStoryPipeline(theirs).render_vanilla(SCENE, [3], settings=settings, output_type="latent").images
    latents, told = seeded_noise(3, (4, 16, 16))[None], {"guidance_scale": 5.0, "guidance_rescale": 0.7}
    expected = theirs(SCENE, latents=latents, num_inference_steps=4, output_type="latent", **told).images
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_networks_that_take_the_guidance_as_an_input(tmp_path: Any) -> None:
    theirs = make_diffusers_pipeline(tmp_path)
    public = {name: value for name, value in theirs.unet.config.items() if not name.startswith("_")}
    changed = UNet2DConditionModel.from_config({**public, "time_cond_proj_dim": 8})
    with torch.no_grad():
        changed.load_state_dict(theirs.unet.state_dict(), strict=False)
        changed.time_embedding.cond_proj.weight.normal_(generator=torch.Generator().manual_seed(0))
    theirs.register_modules(unet=changed.eval().requires_grad_(False))
    pipe, found = ConsiStoryPipeline(theirs), []
    for guidance in (8.0, 2.0):
        settings = settings_of("euler", num_inference_steps=4, guidance_scale=guidance)
        found.append(pipe.render_vanilla(SCENE, [3], settings=settings, output_type="latent").images)
        theirs.scheduler = model_schedule(theirs.scheduler, settings, CPU).scheduler
        latents = seeded_noise(3, (4, 16, 16))[None]
        expected = theirs(
            SCENE, latents=latents, num_inference_steps=4, guidance_scale=guidance, output_type="latent"
        ).images
        torch.testing.assert_close(found[-1], expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    made = pipe.create_subject(["a cat"], "cat", [1], settings=settings_of("lcm given"), output_type="latent")
    assert torch.isfinite(pipe.render(SCENE, made, [3], output_type="latent").images).all()


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_the_pictures_own(pipe: ConsiStoryPipeline, name: str) -> None:
    settings = settings_of(name, num_inference_steps=4)
    prompts, seeds = ["a cat in the snow", "a dog at night", "a red hat"], [3, 4, 5]
    together = pipe.render_vanilla(prompts, seeds, settings=settings, output_type="latent").images
    for prompt, seed, expected in zip(prompts, seeds, together, strict=True):
        alone = pipe.render_vanilla([prompt], [seed], settings=settings, output_type="latent").images
        torch.testing.assert_close(alone[0], expected, rtol=1e-3, atol=1e-3)


UNDER = [
    ("euler_a", "exact"),
    ("euler karras", "fast"),
    ("dpmpp_2m karras", "fast"),
    ("lcm given", "turbo"),
    ("ddim trailing", "turbo"),
]


@pytest.mark.parametrize(("name", "profile"), UNDER)
def test_the_method_under_a_sampler(pipe: ConsiStoryPipeline, tmp_path: Any, name: str, profile: str) -> None:
    settings = settings_of(name).with_profile(profile)
    made = pipe.create_subject(
        ["a cat in the garden", "a cat at night"], "cat", [1, 2], settings=settings, output_type="latent"
    )
    scene = pipe.render(SCENE, made, [3], output_type="latent").images
    vanilla = pipe.render_vanilla(SCENE, [3], settings=settings, output_type="latent").images
    assert torch.isfinite(scene).all() and not torch.equal(scene, vanilla)
    made.cache.save(tmp_path / "cache.safetensors")
    taken = AnchorCache.load(tmp_path / "cache.safetensors")
    assert taken.levels == made.cache.levels is not None
    assert torch.equal(pipe.render(SCENE, taken, [3], output_type="latent").images, scene)


@pytest.mark.parametrize("name", ["euler_a", "dpmpp_2m_sde", "dpmpp_2m karras"])
def test_both_passes_see_the_same_noise_and_remember_the_same(pipe: ConsiStoryPipeline, name: str) -> None:
    """Where injection changes nothing, and nothing is dropped, pass 2 goes where pass 1 went."""
    quiet = {"injection_alpha": 0.0, "mask_dropout": 0.0, "num_inference_steps": 10}
    trace, settings = Trace(), settings_of(name, **quiet)
    pipe.create_subject(["a cat"], "cat", [1], settings=settings, output_type="latent", trace=trace)
    fork = min(at.step for at in trace.latents if at.number == 2)
    assert 0 < fork < 5
    for step in range(fork, 10):
        torch.testing.assert_close(trace.latents[Pass(2, step)], trace.latents[Pass(1, step)], rtol=1e-4, atol=1e-4)


def test_a_subject_that_no_step_injects_is_told(pipe: ConsiStoryPipeline) -> None:
    settings = MethodSettings(scheduler="lcm", timesteps=(999, 499), freeu=None)
    with pytest.warns(UserWarning, match="none of the 2 steps is as noisy"):
        made = pipe.create_subject(["a cat"], "cat", [1], settings=settings, output_type="latent")
    assert any("881 to 661" in notice for notice in pipe.notices)
    pipe.notices.clear()
    assert torch.isfinite(pipe.render(SCENE, made, [3], output_type="latent").images).all()


@pytest.mark.parametrize("name", ["euler karras", "lcm given"])
def test_given_pictures_have_the_samplers_noise(pipe: ConsiStoryPipeline, name: str) -> None:
    picture = np.full((32, 32, 3), 200, np.uint8)
    picture[8:24, 8:24] = [200, 30, 30]
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    settings = settings_of(name)
    made = pipe.create_subject(["a cat"], "cat", [1], images=[picture], masks=[mask], settings=settings)
    assert torch.isfinite(pipe.render(SCENE, made, [3], output_type="latent").images).all()
    reads = StepPlan.from_settings(settings, made.cache.levels).reads
    assert reads and all(made.cache.has(at, "shared") for at in reads)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sigma_schedule": "karras"}, "sigma_schedule"),
    ({"scheduler": "euler", "sigma_schedule": "karras", "timesteps": DMD2}, "sigma_schedule"),
    ({"timestep_spacing": "trailing", "timesteps": DMD2}, "timestep_spacing"),
    ({"scheduler": "lcm", "timestep_spacing": "trailing"}, "timestep_spacing"),
    ({"scheduler": "euler", "eta": 0.5}, "eta"),
    ({"scheduler": "tcd", "num_inference_steps": 60}, "num_inference_steps"),
    ({"scheduler": "euler_a", "sigma_schedule": "exponential"}, "sigma_schedule"),
    ({"scheduler": "heun"}, "scheduler"),
    ({"timesteps": (5, 7)}, "timesteps"),
]


@pytest.mark.parametrize(("changes", "field"), REFUSED)
def test_settings_that_do_not_go_together_are_refused(
    pipe: ConsiStoryPipeline, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InputError, match=field):
        pipe.render_vanilla(SCENE, [3], settings=MethodSettings(**changes))


def test_every_step_and_every_seed_has_noise_of_its_own() -> None:
    noise = SeededNoise((1, 2), torch.zeros(2, 4, 8, 8))
    drawn = torch.cat([noise(3), noise(4)])
    correlations = torch.corrcoef(drawn.flatten(1)) - torch.eye(4)
    assert correlations.abs().max() < 0.3 and torch.equal(noise(3), drawn[:2])
    again = [torch.randn(4, 8, 8, generator=one) for one in noise.generators(4)]
    assert torch.equal(torch.stack(again), drawn[2:])
