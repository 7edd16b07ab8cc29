"""Pictures that are none: numbers that are not finite, and one colour throughout. They fail, and they fail alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionXLPipeline
from diffusers.hooks import apply_group_offloading
from torch import Tensor

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline
from consistory_ray.errors import AssetError, PictureError
from consistory_ray.guards.numerics import picture_fault
from consistory_ray.settings import MethodSettings
from tests.consistory.conftest import make_diffusers_pipeline

ANCHORS = ["a cat in the garden", "a cat on the beach"]
FEW = MethodSettings(num_inference_steps=2, freeu=None)


@pytest.fixture
def model(tmp_path: Path) -> StableDiffusionXLPipeline:
    return make_diffusers_pipeline(tmp_path)


@contextmanager
def decoding(model: Any, change: Any) -> Iterator[list[torch.dtype]]:
    """Change what the VAE decodes: ``change(number of the call, dtype, picture)``; gives the dtypes of all calls."""
    calls: list[torch.dtype] = []
    decode = model.vae.decode

    def changed(latents: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        calls.append(latents.dtype)
        (picture,) = decode(latents, return_dict=False)
        return (change(len(calls) - 1, latents.dtype, picture),)

    model.vae.decode = changed
    try:
        yield calls
    finally:
        del model.vae.decode


BROKEN = {
    "nan": lambda picture: torch.full_like(picture, torch.nan),
    "one nan": lambda picture: torch.where(torch.arange(picture.numel()).view_as(picture) == 7, torch.nan, picture),
    "infinite": lambda picture: torch.full_like(picture, torch.inf),
    "black": lambda picture: torch.full_like(picture, -1),
    "overflowed": lambda picture: torch.full_like(picture, 65504),
    "nearly grey": lambda picture: picture * 1e-5 + 0.3,
}


@pytest.mark.parametrize(("kind", "output_type"), [*((kind, "pil") for kind in BROKEN), ("nan", "np"), ("black", "np")])
def test_a_broken_vae_gives_no_picture(model: StableDiffusionXLPipeline, kind: str, output_type: Any) -> None:
    pipe = ConsiStoryPipeline(model)
    with decoding(model, lambda number, dtype, picture: BROKEN[kind](picture)):
        reason = "not finite" if kind in ("nan", "one nan", "infinite") else "every pixel has the same colour"
        with pytest.raises(AssetError, match=reason):
            pipe.render_vanilla(["a cat"], [1], settings=FEW, output_type=output_type)
        with pytest.raises(AssetError, match=reason):
            pipe.create_subject(ANCHORS, "cat", [1, 2], settings=FEW, output_type=output_type)


def test_weights_that_are_nan_give_no_picture(model: StableDiffusionXLPipeline) -> None:
    with torch.no_grad():
        model.vae.decoder.conv_in.weight.fill_(torch.nan)
    with pytest.raises(AssetError, match="not finite"):
        ConsiStoryPipeline(model).render_vanilla(["a cat"], [1], settings=FEW)


@pytest.mark.parametrize(("output_type", "batch_size"), [("pil", None), ("np", None), ("pil", 2), ("np", 1)])
def test_the_others_of_the_batch_stay(model: StableDiffusionXLPipeline, output_type: Any, batch_size: int) -> None:
    pipe, prompts, seeds = ConsiStoryPipeline(model), ["a cat", "a cat at night", "the cat in snow"], [1, 2, 3]
    subject = pipe.create_subject(ANCHORS, "cat", [1, 2], settings=FEW)
    given: dict[str, Any] = {"output_type": output_type, "batch_size": batch_size}
    expected = pipe.render(prompts, subject, seeds, **given).images
    spoil_one = decoding(model, lambda number, dtype, picture: BROKEN["nan"](picture) if number == 1 else picture)
    with spoil_one, pytest.raises(PictureError, match="picture 1: the model produced numbers that are") as caught:
        pipe.render(prompts, subject, seeds, **given)
    found = caught.value.result.images
    assert caught.value.failures.keys() == {1} and len(found) == 3
    for index in (0, 2):
        assert np.array_equal(np.asarray(found[index]), np.asarray(expected[index]))
    assert found[1] is None if output_type == "pil" else np.isnan(found[1]).all()


@pytest.mark.parametrize("batch_size", [None, 1])
def test_latents_that_are_not_finite_fail_alone(pipe: ConsiStoryPipeline, batch_size: int | None) -> None:
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    latents[1, 0, 0, 0] = torch.nan
    subject = pipe.create_subject(ANCHORS, "cat", [1, 2], num_inference_steps=3)
    prompts = ["a cat", "a cat at night", "the cat in snow"]
    for kind in ("pil", "np", "latent"):
        with pytest.raises(PictureError) as caught:
            pipe.render(prompts, subject, latents=latents, batch_size=batch_size, output_type=kind)  # type: ignore[arg-type]
        assert caught.value.failures.keys() == {1}
        assert caught.value.result.masks["fine"].shape == (3, 8, 8)
        with pytest.raises(PictureError) as caught:
            pipe.render_vanilla(prompts, latents=latents, batch_size=batch_size, settings=FEW, output_type=kind)  # type: ignore[arg-type]
        assert caught.value.failures.keys() == {1}


def test_what_is_hopeless_ends_at_the_fork(pipe: ConsiStoryPipeline) -> None:
    """Overflows show in the first steps: the others are not waited for. Anchors are of no use one without the other."""
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    steps: list[int] = []
    one, both = latents.clone(), latents.clone()
    one[0], both[:] = torch.nan, torch.nan
    subject = pipe.create_subject(ANCHORS, "cat", [1, 2], num_inference_steps=20, output_type="latent")

    def ticks(done: int, total: int) -> None:
        steps.append(done)

    with pytest.raises(AssetError, match="not finite"):
        pipe.create_subject(ANCHORS, "cat", latents=one, num_inference_steps=20, progress=ticks)
    assert len(steps) == 2
    for call in (
        lambda: pipe.render(ANCHORS, subject, latents=both, progress=ticks),
        lambda: pipe.render_vanilla(ANCHORS, latents=both, settings=subject.cache.settings, progress=ticks),
    ):
        steps.clear()
        with pytest.raises(AssetError, match="not finite"):
            call()
        assert len(steps) == 2


@pytest.mark.parametrize("kind", BROKEN)
def test_half_precision_is_decoded_again_in_float32(model: StableDiffusionXLPipeline, kind: str) -> None:
    """As sdxl-vae-fp16-fix, which asks for no float32, and still overflows now and then."""
    model.vae.register_to_config(force_upcast=False)
    pipe = ConsiStoryPipeline(model.to(torch.float16))

    def change(number: int, dtype: torch.dtype, picture: Tensor) -> Tensor:
        return BROKEN[kind](picture) if dtype == torch.float16 and number == 0 else picture

    with decoding(model, change) as calls:
        images = pipe.render_vanilla(["a cat", "a dog"], [1, 2], settings=FEW, output_type="np").images
    assert calls == [torch.float16, torch.float16, torch.float32], "only the broken one again"
    assert np.isfinite(images).all() and images[0].std() > 0
    assert {parameter.dtype for parameter in model.vae.parameters()} == {torch.float16}


@pytest.mark.parametrize(("dtype", "upcast"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, True)])
def test_vaes_that_need_float32_get_it_at_once(
    model: StableDiffusionXLPipeline, dtype: torch.dtype, upcast: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model.vae.register_to_config(force_upcast=upcast)
    model.to(dtype)
    caplog.clear()
    with decoding(model, lambda number, dtype, picture: picture) as calls:
        ConsiStoryPipeline(model).render_vanilla(["a cat"], [1], settings=FEW)
    assert calls == [torch.float32]
    assert not [record for record in caplog.records if "float32" in record.message], "diffusers warns of such casts"
    assert {parameter.dtype for parameter in model.vae.parameters()} == {dtype}


def test_tiling_stays_honoured(model: StableDiffusionXLPipeline) -> None:
    tiles: list[int] = []
    tiled = model.vae.tiled_decode
    model.vae.tiled_decode = lambda *given, **more: (tiles.append(1), tiled(*given, **more))[1]
    model.vae.enable_tiling()
    model.vae.tile_latent_min_size = 8
    ConsiStoryPipeline(model).render_vanilla(["a cat"], [1], settings=FEW)
    assert tiles == [1]


def overflowing(model: Any) -> None:
    """Weights that are fine in half precision and make more of the latents than it can hold, as SDXL's first VAE."""
    with torch.no_grad():
        model.vae.decoder.conv_in.weight.mul_(2e5)
        model.vae.decoder.conv_in.bias.mul_(2e5)
    model.vae.register_to_config(force_upcast=False)


def tiled(vae: Any) -> None:
    vae.enable_tiling()
    vae.tile_latent_min_size = 8


def away(vae: Any) -> None:
    """As sequential offloading has it: between calls the weights are not there, and not even of a device."""
    cpu_offload(
        vae, torch.device("cpu"), state_dict={name: weight.clone() for name, weight in vae.state_dict().items()}
    )
    assert vae.decoder.conv_in.weight.is_meta


def grouped(vae: Any) -> None:
    cpu = torch.device("cpu")
    apply_group_offloading(vae, cpu, cpu, offload_type="leaf_level")


@pytest.mark.parametrize("change", [None, tiled, away, grouped])
def test_a_vae_that_overflows_in_half_precision(model: StableDiffusionXLPipeline, change: Any) -> None:
    """Its weights do it here, not a stand-in for them; in tiles and offloaded, too. The picture is that of float32."""
    overflowing(model)
    model.to(torch.float16)
    exact = copy.deepcopy(model.vae).float()
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    assert not model.vae.decode(latents.half(), return_dict=False)[0].isfinite().all()
    for vae in (model.vae, exact) if change is tiled else (model.vae,):
        if change is not None:
            change(vae)
    pipe = ConsiStoryPipeline(model)
    picture, found = (
        pipe.render_vanilla(["a cat"], [1], settings=FEW, output_type=kind).images  # type: ignore[arg-type]
        for kind in ("np", "latent")
    )
    assert {parameter.dtype for parameter in model.vae.parameters()} == {torch.float16}
    decoded = exact.decode(found / exact.config.scaling_factor, return_dict=False)[0]
    expected = model.image_processor.postprocess(decoded, output_type="np")
    assert np.isfinite(picture).all() and picture.std() > 0.01
    assert np.allclose(picture, expected, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_vae_that_is_broken_in_float32_too_fails_its_pictures(model: StableDiffusionXLPipeline, value: float) -> None:
    with torch.no_grad():
        model.vae.decoder.conv_in.weight.fill_(value)
    model.vae.register_to_config(force_upcast=False)
    model.vae.enable_tiling()
    model.vae.tile_latent_min_size = 8
    pipe = ConsiStoryPipeline(model.to(torch.float16))
    with (
        decoding(model, lambda number, dtype, picture: picture) as calls,
        pytest.raises(PictureError, match="not finite") as caught,
    ):
        pipe.render_vanilla(["a cat", "a dog"], [1, 2], settings=FEW)
    assert caught.value.failures.keys() == {0, 1} and caught.value.result.images == [None, None]
    assert calls == [torch.float16] * 2 + [torch.float32] * 2
    assert {parameter.dtype for parameter in model.vae.parameters()} == {torch.float16}


def test_a_subject_with_a_broken_picture_leaves_no_cache(model: StableDiffusionXLPipeline) -> None:
    pipe = ConsiStoryPipeline(model)
    spoil_one = decoding(model, lambda number, dtype, picture: BROKEN["black"](picture) if number == 1 else picture)
    with spoil_one, pytest.raises(AssetError, match="picture 1: every pixel has the same colour"):
        pipe.create_subject(ANCHORS, "cat", [1, 2], settings=FEW)
    assert isinstance(pipe.create_subject(ANCHORS, "cat", [1, 2], settings=FEW).cache, AnchorCache)


def test_what_was_drawn_is_kept_however_plain() -> None:
    plain = np.full((32, 32, 3), 7, np.uint8)
    assert picture_fault(plain) == (
        "every pixel has the same colour (7, 7, 7): the model overflowed; bfloat16 or float32 may help"
    )
    assert picture_fault(plain / np.float32(255)) == picture_fault(plain)
    for place in ((0, 0), (31, 31), (5, 9)):
        drawn = plain.copy()
        drawn[place][2] += 1
        assert picture_fault(drawn) is None, "one pixel that differs by 1 of 255 is enough"
    assert picture_fault(np.zeros((1, 1, 3), np.uint8)) is None
    assert picture_fault(np.array([[[0.5, 0.2, np.nan]]])) is not None
