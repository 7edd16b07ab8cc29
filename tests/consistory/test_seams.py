"""The places where the method can be given something else: each tried with a second implementation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, SubjectResult, Trace
from consistory_ray.consistory.cache.anchor_cache import _LAYOUT_1
from consistory_ray.consistory.cache.codecs import CODECS, NONE
from consistory_ray.consistory.cache.recorder import CacheRecorder
from consistory_ray.consistory.cache.safetensors_file import deserialise, pack
from consistory_ray.consistory.inputs import make_batch, make_request, resolve_settings
from consistory_ray.consistory.method import attention
from consistory_ray.consistory.method.companions import Companions, LiveAnchors
from consistory_ray.consistory.method.latents import Noise, Schedule, seeded_noise
from consistory_ray.consistory.method.request import Additions
from consistory_ray.consistory.method.sampler import Sampler
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.errors import CacheMismatchError
from consistory_ray.settings import MethodSettings
from tests.consistory.second_backbone import SecondBackbone, SixLineDDIM

ANCHORS, SCENES = ["a photo of a cat in the garden", "a cat on the beach"], ["a cat in the snow", "a cat at night"]
QUICK = MethodSettings(num_inference_steps=6, freeu=None)


@pytest.fixture(scope="module")
def subject(pipe: ConsiStoryPipeline) -> SubjectResult:
    return pipe.create_subject(ANCHORS, "cat", [1, 2], settings=QUICK, output_type="latent")


@torch.no_grad()
def sampled(
    pipe: ConsiStoryPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    schedule: Schedule | None = None,
    additions: Additions | None = None,
    settings: MethodSettings = QUICK,
    companions: Callable[..., Companions] = Companions,
) -> Tensor:
    """Final latents of a batch under another schedule, or with something added to the trunks."""
    backbone = pipe.backbone
    resolved = resolve_settings(backbone, settings, None)
    batch = make_batch(backbone, prompts, seeds, None, ("cat",), resolved)
    with backbone.installed(None) as network:
        request = dataclasses.replace(make_request(backbone, batch, resolved), additions=additions)
        schedule = schedule or backbone.schedule(resolved)
        return Sampler(network, schedule, request, companions(request)).sample().latents


# Where latents come from, and noise ----------------------------------------------------------------------------------


@dataclasses.dataclass
class GivenPath(SixLineDDIM):
    """Latents that are known beforehand, whatever is predicted: path[s] are those after step s."""

    path: Sequence[Tensor] = ()

    def advance(self, prediction: Tensor, latents: Tensor, step: int, noise: Noise) -> Tensor:
        return self.path[step]


class Ancestral(SixLineDDIM):
    """New noise at every step; it counts its steps, as schedulers with a memory do."""

    count = 0

    def advance(self, prediction: Tensor, latents: Tensor, step: int, noise: Noise) -> Tensor:
        assert self.count == step, "a pass has gone on with the other one's state"
        self.count += 1
        return super().advance(prediction, latents, step, noise) + 0.1 * noise(step)

    def fork(self) -> Ancestral:
        other = Ancestral(self.steps)
        other.count = self.count
        return other


@pytest.fixture(scope="module")
def second() -> ConsiStoryPipeline:
    return ConsiStoryPipeline(SecondBackbone(), QUICK)


def test_anchors_whose_latents_are_given_end_where_the_path_does(second: ConsiStoryPipeline) -> None:
    trace = Trace()
    made = second.create_subject(ANCHORS, "cat", [1, 2], injection=False, output_type="latent", trace=trace)
    path = [trace.latents[Pass(1, step)] for step in range(6)]
    one_pass = QUICK.replace(injection=False)
    given = sampled(second, ANCHORS, [1, 2], GivenPath(6, path=path), settings=one_pass, companions=LiveAnchors)
    assert torch.equal(given, made.images)
    other = sampled(second, ANCHORS, [1, 2], GivenPath(6, path=[2 * each for each in path]), companions=LiveAnchors)
    assert torch.equal(other, 2 * path[-1])


def test_noise_of_steps_is_each_images_own_and_both_passes_see_it_from_their_own_state(
    second: ConsiStoryPipeline,
) -> None:
    together = sampled(second, ANCHORS, [1, 2], Ancestral(6), companions=LiveAnchors)
    again = sampled(second, ANCHORS, [1, 2], Ancestral(6), companions=LiveAnchors)
    assert torch.equal(together, again)
    plain = sampled(second, SCENES, [3, 4], Ancestral(6))
    alone = sampled(second, SCENES[1:], [4], Ancestral(6))
    torch.testing.assert_close(alone[0], plain[1], atol=1e-5, rtol=1e-5)
    assert (plain - sampled(second, SCENES, [3, 4], SixLineDDIM(6))).abs().max() > 1e-2


def test_noise_depends_on_seed_and_step_alone() -> None:
    draws = [seeded_noise(seed, (2000,), step) for seed in (1, 2) for step in (None, 0, 1)]
    assert torch.equal(draws[0], torch.randn(2000, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(draws[1], seeded_noise(1, (2000,), 0))
    likeness = torch.corrcoef(torch.stack(draws)).fill_diagonal_(0)
    assert likeness.abs().max() < 5 / 2000**0.5


# What is added to a trunk --------------------------------------------------------------------------------------------


def residuals(pipe: ConsiStoryPipeline, size: float) -> Additions:
    """As a ControlNet has them, for every trunk; the shapes are asked of the network once."""
    backbone, shapes = pipe.backbone, []

    def additions(sample: Tensor, timestep: Tensor, conditioning: Any, step: int, steps: int) -> Any:
        if not shapes:
            with backbone.installed(None) as network:
                trunk = network.begin(sample, timestep, conditioning, attention.AttentionCall())
            shapes.extend(tensor.shape for tensor in (*trunk.residuals, trunk.sample))
        *skips, mid = (torch.full(shape, size) for shape in shapes)
        return tuple(skips), mid

    return additions


def test_residuals_of_zero_change_nothing_and_others_do(pipe: ConsiStoryPipeline) -> None:
    plain, zero, other = (
        sampled(pipe, ANCHORS, [1, 2], additions=added, companions=LiveAnchors)
        for added in (None, residuals(pipe, 0.0), residuals(pipe, 0.05))
    )
    assert torch.equal(zero, plain)
    assert (other - plain).abs().max() > 1e-3


# How a cache's tensors are packed, and which tokens they are of ------------------------------------------------------


class Halved:
    """Float16, in two tensors: the signs apart."""

    name = "halved"

    def pack(self, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        return {name: tensor.abs().half(), f"{name}.negative": tensor < 0}

    def unpack(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        size = tensors[name].float()
        return torch.where(tensors[f"{name}.negative"], -size, size)


def test_a_codec_packs_what_scenes_read(
    pipe: ConsiStoryPipeline, subject: SubjectResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CODECS, Halved.name, Halved())
    packed: dict[str, Tensor] = {}
    for name, tensor in subject.cache.tensors.items():
        packed |= Halved().pack(name, tensor) if "shared." in name or "injected." in name else {name: tensor}
    halved = dataclasses.replace(subject.cache, tensors=packed, codec=Halved.name)
    loaded = AnchorCache.from_buffer(halved.to_buffer())
    exact = pipe.render(SCENES, subject, [3, 4], output_type="latent").images
    near = pipe.render(SCENES, loaded, [3, 4], output_type="latent").images
    assert 0 < (near - exact).square().mean().sqrt() < 1e-2
    monkeypatch.delitem(CODECS, Halved.name)
    with pytest.raises(CacheMismatchError, match="packed in another way"):
        AnchorCache.from_buffer(halved.to_buffer())


def test_the_recorder_packs_with_its_codec(pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "consistory_ray.consistory.method.companions.CacheRecorder"
    monkeypatch.setattr(module, lambda levels, codec, copies: CacheRecorder(levels, Halved(), copies))
    cache = pipe.create_subject(ANCHORS, "cat", [1, 2], settings=QUICK, output_type="latent").cache
    assert {"pass1.step001.shared.fine", "pass1.step001.shared.fine.negative"} <= set(cache.tensors)
    assert cache.tensors["pass2.step001.injected.fine"].dtype == torch.float16


def test_positions_are_those_of_the_kept_tokens(pipe: ConsiStoryPipeline) -> None:
    trace = Trace()
    settings = QUICK.replace(mask_dropout=0.0)
    cache = pipe.create_subject(ANCHORS, "cat", [1, 2], settings=settings, output_type="latent", trace=trace).cache
    for at in (Pass(1, 1), Pass(1, 4), Pass(2, 5)):
        positions = cache.positions(at)
        assert positions is not None
        for level, found in positions.items():
            before = trace.masks[Pass(at.number, at.step - 1)][level]
            assert found.dtype == torch.int32 and found.tolist() == before.flatten().nonzero()[:, 0].tolist()
            assert len(found) == cache.shared(at)[level].shape[2]


def version_1(cache: AnchorCache) -> np.ndarray[Any, Any]:
    """The file of a cache as version 1 of the format had it."""
    tensors = {name: tensor for name, tensor in cache.tensors.items() if ".positions." not in name}
    metadata = {
        "format": "consistory_ray anchor cache",
        "format_version": "1",
        "model_fingerprint": cache.fingerprint,
        "settings": json.dumps(cache.settings.to_dict()),
        "concepts": json.dumps(cache.concepts),
        "prompts": json.dumps(cache.prompts),
        "seeds": json.dumps(cache.seeds),
        "grids": json.dumps(cache.grids),
        "layout": _LAYOUT_1,
    }
    return pack(tensors, metadata)[0]


def test_files_of_version_1_render_the_same_and_are_written_as_they_were(
    pipe: ConsiStoryPipeline, subject: SubjectResult
) -> None:
    buffer = version_1(subject.cache)
    old = AnchorCache.from_buffer(buffer)
    assert old.positions(Pass(1, 1)) is None and old.codec == NONE.name and old.feature_level == "fine"
    assert old.to_buffer().tobytes() == buffer.tobytes()
    newer, older = (pipe.render(SCENES, cache, [3, 4], output_type="latent").images for cache in (subject.cache, old))
    assert torch.equal(newer, older)
    assert deserialise(subject.cache.to_buffer())[1]["format_version"] == "2"


def test_a_cache_can_be_brought_to_a_device(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    cache = subject.cache
    assert cache.device == torch.device("cpu") and cache.to("cpu") is cache
    moved = cache.to("meta")
    assert moved.device == torch.device("meta") and cache.device == torch.device("cpu")
    assert moved.tensors.keys() == cache.tensors.keys() and moved.settings == cache.settings


# Which kernel attends ------------------------------------------------------------------------------------------------


def test_every_attention_goes_through_one_door(second: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def written_out(query: Tensor, key: Tensor, value: Tensor, *, ragged: bool) -> Tensor:
        seen[ragged] = seen.get(ragged, 0) + 1
        return torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1) @ value

    seen: dict[bool, int] = {}
    expected = second.create_subject(ANCHORS, "cat", [1, 2], output_type="latent").images
    monkeypatch.setattr(attention, "attend", written_out)
    found = second.create_subject(ANCHORS, "cat", [1, 2], output_type="latent").images
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert seen[True] and seen[False]
