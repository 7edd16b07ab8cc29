"""Profiles: what they leave as it is, what they call, what their caches hold, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, ControlHint, SubjectResult
from consistory_ray.consistory.method.steps import Pass, StepPlan
from consistory_ray.consistory.models.split_unet import SplitUNet
from consistory_ray.errors import CacheMismatchError, InputError
from consistory_ray.settings import PROFILES, SCENE_SETTINGS, MethodSettings
from tests.consistory.conftest import make_diffusers_pipeline
from tests.consistory.models.test_control import hint_picture, make_net

ANCHORS, SCENES, SEEDS = (
    ["a photo of a cat in the garden", "a cat on the beach"],
    ["a cat in the snow", "a cat"],
    [3, 4],
)
STEPS = 12


@pytest.fixture(scope="module")
def subjects(pipe: ConsiStoryPipeline) -> dict[str, SubjectResult]:
    return {profile: made(pipe, profile=profile) for profile in PROFILES}


def made(pipe: ConsiStoryPipeline, **changes: Any) -> SubjectResult:
    changes = {"num_inference_steps": STEPS, **changes}
    return pipe.create_subject(ANCHORS, "cat", [1, 2], output_type="latent", **changes)


def scenes(pipe: ConsiStoryPipeline, subject: SubjectResult, **changes: Any) -> Tensor:
    latents: Tensor = pipe.render(SCENES, subject, SEEDS, output_type="latent", **changes).images
    return latents


class Calls:
    """Counts what is called of the network while it is entered, with the rows of each call."""

    NAMES = ("begin", "finish", "features", "shallow", "vanilla_queries")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[str, list[int]] = {name: [] for name in self.NAMES}
        for name in self.NAMES:
            monkeypatch.setattr(SplitUNet, name, self._counting(name, getattr(SplitUNet, name)))

    def _counting(self, name: str, method: Any) -> Any:
        def counted(network: SplitUNet, first: Any, *arguments: Any, **named: Any) -> Any:
            self.rows[name].append(len(first if isinstance(first, Tensor) else first.sample))
            return method(network, first, *arguments, **named)

        return counted

    def count(self, name: str) -> int:
        return len(self.rows[name])


def test_anchors_are_the_same_in_every_profile(subjects: dict[str, SubjectResult]) -> None:
    for subject in subjects.values():
        assert torch.equal(subject.images, subjects["exact"].images)
        assert all(torch.equal(mask, subjects["exact"].masks[level]) for level, mask in subject.masks.items())


def steps_with(cache: AnchorCache, kind: str) -> set[Pass]:
    return {Pass(int(name[4]), int(name[10:13])) for name in cache.tensors if kind in name and name.startswith("pass")}


def test_a_cache_holds_what_its_profile_reads(pipe: ConsiStoryPipeline) -> None:
    held = {}
    for name, changes in {**{profile: {"profile": profile} for profile in PROFILES}, "live": LIVE}.items():
        cache = made(pipe, **changes, cache_codec="none").cache
        plan = StepPlan.from_settings(cache.settings)
        steps = {Pass(int(name[4]), int(name[10:13])) for name in cache.tensors if ".shared." in name}
        live = {
            Pass(int(name[4]), int(name[10:13])) for name in cache.tensors if ".features." in name and "step" in name
        }
        assert (steps, live) == (plan.reads, set(plan.live_features))
        held[name] = cache.nbytes
    assert held["turbo"] < held["fast"] < 0.5 * held["exact"] and held["turbo"] < held["live"]


def test_an_exact_cache_gives_the_fast_cache_s_pictures(
    pipe: ConsiStoryPipeline, subjects: dict[str, SubjectResult]
) -> None:
    fast = made(pipe, profile="fast", cache_codec="none")
    assert torch.equal(scenes(pipe, fast), scenes(pipe, subjects["exact"], profile="fast"))
    assert torch.equal(scenes(pipe, fast), scenes(pipe, fast, profile="fast"))
    settings = subjects["exact"].cache.settings.with_profile("fast")
    assert torch.equal(scenes(pipe, fast), scenes(pipe, subjects["exact"], settings=settings))
    assert not torch.equal(scenes(pipe, fast), scenes(pipe, subjects["exact"]))


LIVE = {"first_pass": "live", "reuse_deep": (0.35, 3), "scene_blending": False}


@pytest.mark.parametrize(
    ("made_for", "asked", "named"),
    [
        ("fast", {"profile": "exact"}, "exact"),
        ("turbo", {"profile": "exact"}, "exact"),
        ("turbo", {"profile": "fast"}, "fast"),
        ("exact", LIVE, "these settings"),
    ],
)
def test_a_profile_that_the_cache_lacks_tensors_for(
    made_for: str, asked: dict[str, Any], named: str, pipe: ConsiStoryPipeline, subjects: dict[str, SubjectResult]
) -> None:
    with pytest.raises(CacheMismatchError) as caught:
        scenes(pipe, subjects[made_for], **asked)
    assert named in str(caught.value) and made_for in str(caught.value)


@pytest.mark.parametrize("profile", ["fast", "turbo"])
def test_a_scene_is_the_same_alone_and_in_a_batch(
    profile: str, pipe: ConsiStoryPipeline, subjects: dict[str, SubjectResult]
) -> None:
    together = scenes(pipe, subjects[profile])
    alone = pipe.render(SCENES[1:], subjects[profile], SEEDS[1:], output_type="latent").images
    assert (together[1:] - alone).abs().max() < 1e-3
    reloaded = AnchorCache.from_buffer(subjects[profile].cache.to_buffer())
    assert torch.equal(pipe.render(SCENES, reloaded, SEEDS, output_type="latent").images, together)


def test_what_fast_calls(pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve steps: the fork at 1 is computed twice; from step 4 on each second is shallow."""
    subject = made(pipe, profile="fast", lookahead=(651, 451, 251))
    calls = Calls(monkeypatch)
    scenes(pipe, subject)
    full = [0, 1, 2, 3, 4, 6, 8, 10]
    assert calls.rows["shallow"] == [4] * 4
    assert calls.rows["features"] == [2]  # the last look-ahead: the conditional half
    assert calls.count("vanilla_queries") == 1  # at step 1, for look-ahead and picture
    assert calls.count("finish") == len(full) + 1 + 2 + 1  # the fork again, two look-aheads, the vanilla call
    assert calls.count("begin") == len(full) + 1 + 3


def test_what_live_correspondences_call(pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = made(pipe, **LIVE)
    calls = Calls(monkeypatch)
    scenes(pipe, subject)
    assert (calls.count("finish"), calls.count("shallow")) == (7, 5)  # steps 0 to 4, 7 and 10 are full
    assert calls.count("vanilla_queries") == calls.count("features") == 0


def test_vanilla_pictures_obey_reuse_and_guidance(pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = MethodSettings(num_inference_steps=STEPS, freeu=None)
    plain = pipe.render_vanilla(SCENES, SEEDS, settings=settings, output_type="latent").images
    calls = Calls(monkeypatch)
    fast = settings.with_profile("fast").replace(guidance_interval=(0.0, 0.5))
    thrifty = pipe.render_vanilla(SCENES, SEEDS, settings=fast, output_type="latent").images
    assert calls.rows["finish"] == [4] * 5 + [2] * 3 and calls.rows["shallow"] == [4, 2, 2, 2]
    assert 1e-4 < (thrifty - plain).abs().max() < plain.abs().max()


def test_guidance_that_begins_late_calls_in_full_there(pipe: ConsiStoryPipeline) -> None:
    settings = MethodSettings(num_inference_steps=STEPS, freeu=None, reuse_deep=(0.0, 4), guidance_interval=(0.5, 1.0))
    assert StepPlan.from_settings(settings).full_calls == [0, 4, 6, 8]
    assert pipe.render_vanilla(SCENES, SEEDS, settings=settings, output_type="latent").images.isfinite().all()


@pytest.mark.parametrize("changes", [{"profile": "fast"}, {"profile": "turbo"}, LIVE], ids=["fast", "turbo", "live"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9, 31])
def test_any_number_of_steps(changes: dict[str, Any], steps: int, pipe: ConsiStoryPipeline) -> None:
    subject = made(pipe, num_inference_steps=steps, **changes)
    assert scenes(pipe, subject).isfinite().all()


@pytest.mark.parametrize("changes", [{"profile": "fast"}, LIVE], ids=["fast", "live"])
def test_given_pictures(changes: dict[str, Any], pipe: ConsiStoryPipeline) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in ANCHORS]
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    subject = pipe.create_subject(
        ANCHORS, "cat", images=images, masks=[mask, mask], num_inference_steps=STEPS, **changes
    )
    exact = pipe.create_subject(ANCHORS, "cat", images=images, masks=[mask, mask], num_inference_steps=STEPS)
    assert subject.cache.nbytes < exact.cache.nbytes
    assert scenes(pipe, subject).isfinite().all()


def test_hints_lead_full_calls_and_reach_shallow_ones(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers_pipe = make_diffusers_pipeline(tmp_path)
    net = make_net(diffusers_pipe.unet, 5)
    pipe = ConsiStoryPipeline(diffusers_pipe, controlnets=[net])
    subject = made(pipe, profile="fast", lookahead=(651, 451, 251), freeu=None)
    called: list[int] = []
    net.register_forward_hook(lambda *_: called.append(1))
    hint = ControlHint(hint_picture(1))
    led = scenes(pipe, subject, controls=[hint, None])
    assert len(called) == 8 + 1 + 3  # full calls, the fork again, look-aheads: no shallow one
    free = scenes(pipe, subject)
    assert (led[0] - free[0]).abs().max() > 1e-2 and (led[1] - free[1]).abs().max() < 1e-3
    monkeypatch.setattr(SplitUNet, "shallow", _without_residuals(SplitUNet.shallow))
    assert (scenes(pipe, subject, controls=[hint, None])[0] - led[0]).abs().max() > 1e-3


def _without_residuals(shallow: Any) -> Any:
    return lambda network, sample, timestep, conditioning, deep, residuals=None: shallow(
        network, sample, timestep, conditioning, deep
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"profile": "quick"}, "profile"),
        ({"num_inference_steps": 5}, "num_inference_steps"),
        ({"mask_dropout": 0.1, "shared_every": 2}, "mask_dropout"),
        ({"lookahed": (251,)}, "lookahed"),
        ({"lookahead": (251, 651)}, "lookahead"),
        ({"reuse_deep": (0.5, 0)}, "reuse_deep"),
        ({"first_pass": "none"}, "first_pass"),
        ({"guidance_interval": (0.7, 0.2)}, "guidance_interval"),
    ],
)
def test_what_scenes_cannot_be_rendered_with(
    changes: dict[str, Any], named: str, pipe: ConsiStoryPipeline, subjects: dict[str, SubjectResult]
) -> None:
    with pytest.raises(InputError) as caught:
        scenes(pipe, subjects["exact"], **changes)
    assert [problem.path for problem in caught.value.problems] == [named]


def test_settings_and_profiles() -> None:
    settings = MethodSettings(mask_dropout=0.3)
    assert set(PROFILES["exact"]) == {*SCENE_SETTINGS, "cache_codec"}
    assert all(set(values) == set(PROFILES["exact"]) for values in PROFILES.values())
    assert settings.to_dict().keys().isdisjoint(PROFILES["exact"]), "exact settings keep their identity"
    fast = settings.with_profile("fast")
    assert (settings.profile, fast.profile, fast.replace(shared_every=3).profile) == ("exact", "fast", None)
    assert fast.exact == settings and fast.mask_dropout == 0.3
    assert MethodSettings.from_dict(fast.to_dict()) == fast and fast.digest() != settings.digest()
