"""ControlNets: the same pictures as diffusers' own pipelines, whatever the batch; and nothing where nothing leads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    MultiControlNetModel,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from torch import Tensor, nn

from consistory_ray.consistory import ConsiStoryPipeline, ControlHint, SubjectResult
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.errors import InputError
from consistory_ray.settings import MethodSettings
from tests.consistory.conftest import make_diffusers_pipeline
from tests.consistory.second_backbone import SecondBackbone

ANCHORS, SCENES = ["a photo of a cat in the garden", "a cat on the beach"], ["a cat in the snow", "a cat at night"]
QUICK = MethodSettings(num_inference_steps=6, freeu=None)
SIZE = 32  # pixels of the tiny model


def hint_picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIZE, SIZE))


def awake(net: Any, seed: int) -> Any:
    """A ControlNet whose last layers, zero before training, say something."""
    generator = torch.Generator().manual_seed(seed)
    for conv in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        conv.weight.data = 0.3 * torch.randn(conv.weight.shape, generator=generator)
        conv.bias.data = 0.1 * torch.randn(conv.bias.shape, generator=generator)
    for layer in (layer for name, layer in net.named_modules() if name == "spatial_ch_projs"):
        nn.init.normal_(layer.weight, generator=generator)
    return net.requires_grad_(False).eval()


def make_net(unet: Any, seed: int, channels: tuple[int, ...] = (8, 16)) -> ControlNetModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return awake(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels), seed)


def make_union(unet: Any, seed: int = 9, heads: int = 2) -> ControlNetUnionModel:
    plain = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    shared = {"num_trans_channel": 8, "num_proj_channel": 8, "num_trans_head": heads}
    names = set(ControlNetUnionModel.__init__.__wrapped__.__annotations__)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = ControlNetUnionModel(**{key: value for key, value in plain.config.items() if key in names}, **shared)
        nn.init.normal_(net.task_embedding)
        return awake(net, seed)


@pytest.fixture(scope="module")
def nets(diffusers_pipe: StableDiffusionXLPipeline) -> list[Any]:
    unet = diffusers_pipe.unet
    return [make_net(unet, 1), make_net(unet, 2), make_union(unet)]


@pytest.fixture(scope="module")
def led(diffusers_pipe: StableDiffusionXLPipeline, nets: list[Any]) -> ConsiStoryPipeline:
    return ConsiStoryPipeline(diffusers_pipe, QUICK, controlnets=nets)


@pytest.fixture(scope="module")
def subject(led: ConsiStoryPipeline) -> SubjectResult:
    return led.create_subject(ANCHORS, "cat", [1, 2], output_type="latent")


def vanilla(pipe: ConsiStoryPipeline, controls: Any, prompts: Sequence[str] = SCENES, **changes: Any) -> Tensor:
    seeds, settings = range(3, 3 + len(prompts)), QUICK.replace(**changes)
    images: Tensor = pipe.render_vanilla(
        prompts, seeds, controls=controls, settings=settings, output_type="latent"
    ).images
    return images


def scenes(pipe: ConsiStoryPipeline, subject: SubjectResult, controls: Any, **options: Any) -> Tensor:
    images: Tensor = pipe.render(SCENES, subject, [3, 4], controls=controls, output_type="latent", **options).images
    return images


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


# The same as diffusers -----------------------------------------------------------------------------------------------


def theirs(pipe: StableDiffusionXLPipeline, net: Any, **options: Any) -> Tensor:
    """Latents of diffusers' own pipeline for the scenes, from the same noise."""
    union = isinstance(net, ControlNetUnionModel)
    kind: Any = StableDiffusionXLControlNetUnionPipeline if union else StableDiffusionXLControlNetPipeline
    other = kind(**pipe.components, controlnet=net, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    latents = torch.stack([torch.randn((4, 16, 16), generator=torch.Generator().manual_seed(n)) for n in (3, 4)])
    shared = {"num_inference_steps": 6, "guidance_scale": 5.0, "output_type": "latent", "return_dict": False}
    images: Tensor = other(SCENES, latents=latents, height=SIZE, width=SIZE, **shared | options)[0]
    return images


@pytest.mark.parametrize(
    ("hint", "options"),
    [
        ({}, {}),
        ({"scale": 0.6}, {"controlnet_conditioning_scale": 0.6}),
        ({"start": 0.3, "end": 0.7}, {"control_guidance_start": 0.3, "control_guidance_end": 0.7}),
        ({}, {"guidance_scale": 1.0}),
    ],
    ids=str,
)
def test_one_net_as_in_diffusers(
    led: ConsiStoryPipeline, nets: list[Any], hint: dict[str, float], options: dict[str, Any]
) -> None:
    image = hint_picture(1)
    changes = {key: value for key, value in options.items() if key == "guidance_scale"}
    found = vanilla(led, [ControlHint(image, **hint)] * 2, **changes)
    assert largest(found - vanilla(led, None, **changes)) > 0.05, "the net says nothing"
    torch.testing.assert_close(found, theirs(led.pipe, nets[0], image=image, **options), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_guess_mode_as_in_diffusers(led: ConsiStoryPipeline, nets: list[Any], guidance: float) -> None:
    guessing = ConsiStoryPipeline(led.pipe, QUICK, controlnets=nets, guess_mode=True)
    controls = [ControlHint(hint_picture(1), scale=0.8)] * 2
    found = vanilla(guessing, controls, guidance_scale=guidance)
    options = {"guess_mode": True, "controlnet_conditioning_scale": 0.8, "guidance_scale": guidance}
    torch.testing.assert_close(found, theirs(led.pipe, nets[0], image=hint_picture(1), **options), atol=1e-4, rtol=1e-4)
    assert largest(found - vanilla(led, controls, guidance_scale=guidance)) > 1e-2


def test_two_nets_as_in_diffusers(led: ConsiStoryPipeline, nets: list[Any]) -> None:
    pictures = [hint_picture(1), hint_picture(2)]
    hints = [ControlHint(pictures[0], scale=0.9, end=0.5), ControlHint(pictures[1], scale=0.5, start=0.2, net=1)]
    expected = theirs(
        led.pipe,
        MultiControlNetModel(nets[:2]),
        image=pictures,
        controlnet_conditioning_scale=[0.9, 0.5],
        control_guidance_start=[0.0, 0.2],
        control_guidance_end=[0.5, 1.0],
    )
    torch.testing.assert_close(vanilla(led, [hints, hints]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("modes", [(3,), (0, 3)])
def test_a_union_as_in_diffusers(led: ConsiStoryPipeline, nets: list[Any], modes: tuple[int, ...]) -> None:
    names = {0: "openpose", 3: 3}
    hints = [ControlHint(hint_picture(mode), scale=0.7, net=2, mode=names[mode]) for mode in modes]
    expected = theirs(
        led.pipe,
        nets[2],
        control_image=[hint.image for hint in hints],
        control_mode=list(modes),
        controlnet_conditioning_scale=[0.7] * len(modes),
    )
    torch.testing.assert_close(vanilla(led, [hints, hints]), expected, atol=1e-4, rtol=1e-4)


# Each picture by itself ----------------------------------------------------------------------------------------------


def test_a_picture_does_not_depend_on_its_neighbours_hints(led: ConsiStoryPipeline, subject: SubjectResult) -> None:
    first, second = ControlHint(hint_picture(1)), ControlHint(hint_picture(2), scale=0.5, start=0.2, net=1)
    union = [ControlHint(hint_picture(n), net=2, mode=n, scale=n / 2) for n in (1, 2)]
    free = scenes(led, subject, None)
    for controls in ([[first, second, ControlHint(hint_picture(3))], None], [first, [second, *union]], [None, union]):
        alone = scenes(led, subject, controls, batch_size=1)
        torch.testing.assert_close(scenes(led, subject, controls), alone, atol=1e-4, rtol=1e-4)
        for index, hints in enumerate(controls):
            moved = largest(alone[index] - free[index])
            assert moved < 1e-4 if hints is None else moved > 0.02


def test_in_batches_of_a_fixed_shape_not_even_in_the_last_bit(led: ConsiStoryPipeline, subject: SubjectResult) -> None:
    first, second = ControlHint(hint_picture(1)), ControlHint(hint_picture(2), scale=0.5, start=0.2, net=1)
    union = [ControlHint(hint_picture(n), net=2, mode=n, scale=n / 2) for n in (1, 2)]
    free, twice = scenes(led, subject, None, pad_to=5), [first, second, *union]
    company = [[twice, None], [twice, [*union]], [twice, first], [twice, twice]]
    together = [scenes(led, subject, controls, pad_to=5) for controls in company]
    assert all(torch.equal(latents[0], together[0][0]) for latents in together)
    assert torch.equal(together[0][1], free[1]), "who is not led sees nothing of it"
    alone = led.render(SCENES[:1], subject, [3], controls=[twice], pad_to=5, output_type="latent").images
    assert torch.equal(alone[0], together[0][0])
    assert not torch.equal(alone[0], free[0])


def test_nothing_is_exactly_nothing(led: ConsiStoryPipeline, pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    free = scenes(led, subject, None)
    assert torch.equal(free, pipe.render(SCENES, subject, [3, 4], output_type="latent").images)
    zero = ControlHint(hint_picture(1), scale=0.0)
    for controls in ([None, None], [zero, [zero, zero]], [[], zero]):
        assert torch.equal(scenes(led, subject, controls), free)
    half = scenes(led, subject, [ControlHint(hint_picture(1)), zero])
    torch.testing.assert_close(half[1], free[1], atol=1e-5, rtol=1e-5)


def test_no_cache_knows_of_controlnets(
    led: ConsiStoryPipeline, pipe: ConsiStoryPipeline, subject: SubjectResult
) -> None:
    plain = pipe.create_subject(ANCHORS, "cat", [1, 2], settings=QUICK, output_type="latent").cache
    assert plain.to_buffer().tobytes() == subject.cache.to_buffer().tobytes()
    before = subject.cache.to_buffer().tobytes()
    scenes(led, subject, [ControlHint(hint_picture(1))] * 2)
    assert subject.cache.to_buffer().tobytes() == before
    guided = led.create_subject(
        ANCHORS, "cat", [1, 2], controls=[ControlHint(hint_picture(1)), None], output_type="latent"
    )
    assert guided.cache.fingerprint == plain.fingerprint == pipe.fingerprint
    assert guided.cache.tensors.keys() == plain.tensors.keys()
    assert largest(guided.images - subject.images) > 0.02
    assert len(set(led.control_fingerprints)) == 3 and pipe.control_fingerprints == ()


def test_hints_lead_given_pictures_too(led: ConsiStoryPipeline) -> None:
    """A given picture stays as it is; what it leaves for scenes was computed with the hint, and its own hint only."""
    pictures, controls = [hint_picture(7), hint_picture(8)], [ControlHint(hint_picture(1)), None]
    plain = led.create_subject(ANCHORS, "cat", [1, 2], images=pictures, mask_dropout=0.0).cache
    hinted = led.create_subject(ANCHORS, "cat", [1, 2], images=pictures, mask_dropout=0.0, controls=controls)
    assert hinted.images[0].tobytes() == pictures[0].tobytes() and hinted.cache.pictures == plain.pictures
    for step in (1, 5):
        one, other = (cache.shared(Pass(1, step))["fine"] for cache in (plain, hinted.cache))
        second = [int(cache.masks()["fine"][1].sum()) for cache in (plain, hinted.cache)]
        assert second[0] == second[1] > 0
        torch.testing.assert_close(one[:, :, -second[0] :], other[:, :, -second[1] :], atol=1e-4, rtol=1e-4)
        first = min(one.shape[2], other.shape[2]) - second[0]
        assert largest(one[:, :, :first] - other[:, :, :first]) > 0.01


def test_one_call_of_the_net_serves_a_step(
    led: ConsiStoryPipeline, nets: list[Any], subject: SubjectResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    original = nets[0].forward
    monkeypatch.setattr(
        nets[0],
        "forward",
        lambda sample, *given, **named: rows.append(len(sample)) or original(sample, *given, **named),
    )
    scenes(led, subject, [ControlHint(hint_picture(1)), ControlHint(hint_picture(1), end=0.5)])
    assert led.default_settings.injection_steps[0] == 0  # both passes from the first step on
    assert rows == [4, 4, 4, 2, 2, 2] * 2


def test_nets_come_and_go_with_an_offloaded_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_diffusers_pipeline(tmp_path)
    net, places = make_net(model.unet, 1), []
    pipe = ConsiStoryPipeline(model, QUICK, controlnets=[net])
    controls = [ControlHint(hint_picture(1)), None]
    expected = vanilla(pipe, controls)
    original = net.to
    monkeypatch.setattr(net, "to", lambda place: places.append(place) or original(place))
    model.enable_model_cpu_offload(device="cpu")
    assert torch.equal(vanilla(pipe, controls), expected)
    assert places == [pipe.device, torch.device("cpu")]


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("controls", "where"),
    [
        ([None], "controls: give a list with one entry per prompt: 2"),
        (ControlHint(hint_picture(1)), "controls: "),
        ([hint_picture(1), None], r"controls\[0\]: give a ControlHint"),
        ([ControlHint(hint_picture(1), scale=float("nan")), None], r"controls\[0\]\.scale"),
        ([None, ControlHint(hint_picture(1), start=0.5, end=0.5)], r"controls\[1\]\.start, end"),
        ([None, ControlHint(hint_picture(1), end=1.5)], r"controls\[1\]\.start, end"),
        ([ControlHint(hint_picture(1), net=3), None], r"controls\[0\]\.net: .* 0 to 2"),
        ([ControlHint(hint_picture(1), mode="canny"), None], r"controls\[0\]\.mode: must be None"),
        ([[ControlHint(hint_picture(1)), ControlHint(hint_picture(1), net=2)], None], r"controls\[0\]\[1\]\.mode"),
        ([None, ControlHint(np.zeros((2, 40, 5)))], r"controls\[1\]\.image: give a PIL image"),
        ([ControlHint(hint_picture(1), net=2, mode="lines"), None], r"mode: must be one of openpose, depth"),
    ],
    ids=range(11),
)
def test_hints_that_cannot_be_used(led: ConsiStoryPipeline, subject: SubjectResult, controls: Any, where: str) -> None:
    for call in (led.render_vanilla, lambda *given, **named: led.render(given[0], subject, given[1], **named)):
        with pytest.raises(InputError, match=where) as caught:
            call(SCENES, [3, 4], controls=controls)
        assert len(caught.value.problems) == 1


def test_hints_without_a_controlnet(pipe: ConsiStoryPipeline) -> None:
    with pytest.raises(InputError, match=r"controls: give the pipeline one with controlnets=\[\.\.\.\]"):
        pipe.create_subject(ANCHORS, "cat", [1, 2], controls=[ControlHint(hint_picture(1)), None])


def test_another_backbone_refuses_them(nets: list[Any]) -> None:
    other = ConsiStoryPipeline(SecondBackbone(), QUICK)
    with pytest.raises(InputError, match="this kind of model takes none"):
        other.create_subject(ANCHORS, "cat", [1, 2], controls=[ControlHint(hint_picture(1)), None])
    with pytest.raises(InputError, match="only a StableDiffusionXLPipeline is given ControlNets"):
        ConsiStoryPipeline(SecondBackbone(), QUICK, controlnets=nets)
