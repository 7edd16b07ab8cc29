"""What users of diffusers are used to: generators, tensors, dtypes, offloading, tiling, memory formats, wrong names."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers import StableDiffusionXLPipeline

from consistory_ray.consistory import ConsiStoryPipeline, SubjectResult
from consistory_ray.consistory.argument_names import ARGUMENTS
from consistory_ray.consistory.generators import generator_seeds
from consistory_ray.errors import InputError, PictureError
from consistory_ray.settings import MethodSettings
from tests.consistory.conftest import make_diffusers_pipeline
from tests.consistory.models.test_adapters_and_hooks import Watching
from tests.consistory.second_backbone import SecondBackbone

ROOT = Path(__file__).parents[2]
ANCHORS = ["a cat in the garden", "a cat on the beach"]
FEW = MethodSettings(num_inference_steps=2, freeu=None)
PLAIN = FEW.replace(sdsa=False, query_blending=False, injection=False)


@pytest.fixture
def model(tmp_path: Path) -> StableDiffusionXLPipeline:
    return make_diffusers_pipeline(tmp_path)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def made(pipe: ConsiStoryPipeline, **more: Any) -> SubjectResult:
    given: dict[str, Any] = {"seeds": [1, 2], "settings": FEW, "output_type": "latent", **more}
    return pipe.create_subject(ANCHORS, "cat", **given)


# Generators -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_generator_draws_diffusers_own_latents(
    model: StableDiffusionXLPipeline, several: bool, dtype: torch.dtype
) -> None:
    """In the dtype of the model, and as often: what is left in it is the same afterwards."""
    model.to(dtype)
    model.set_progress_bar_config(disable=True)
    ours, theirs = (seeded(5, 6) if several else seeded(5)[0] for _ in range(2))
    shape = (2, 4, 16, 16)
    drawn = model.prepare_latents(2, 4, 32, 32, dtype, model.device, theirs) / model.scheduler.init_noise_sigma
    pipe = ConsiStoryPipeline(model)
    images = pipe.render_vanilla(ANCHORS, generator=ours, settings=PLAIN, output_type="latent").images
    given = pipe.render_vanilla(ANCHORS, latents=drawn.float(), settings=PLAIN, output_type="latent").images
    assert drawn.shape == shape and torch.equal(images, given)
    left = [each[-1] if isinstance(each, list) else each for each in (ours, theirs)]
    assert torch.equal(left[0].get_state(), left[1].get_state())


def test_generators_are_seeds_where_numbers_are_drawn_alike(pipe: ConsiStoryPipeline) -> None:
    """Dropout follows what they were seeded with, for anchors and scenes of every batch size."""
    subject, expected = made(pipe, seeds=None, generator=seeded(1, 2)), made(pipe)
    assert torch.equal(subject.images, expected.images)
    assert subject.cache.seeds is None, "they would not tell what has been drawn"
    scenes = {
        size: pipe.render(ANCHORS, subject, generator=seeded(3, 4), batch_size=size, output_type="latent").images
        for size in (1, 2)
    }
    assert torch.equal(scenes[2], pipe.render(ANCHORS, expected, [3, 4], output_type="latent").images)
    assert torch.allclose(scenes[1], scenes[2], atol=1e-3)


def test_pictures_of_one_generator_have_seeds_of_their_own() -> None:
    (generator,) = seeded(7)
    first = generator_seeds(generator, 3)
    assert first[0] == 7 and len(set(first)) == 3 and all(0 <= seed < 2**63 for seed in first)
    assert generator_seeds(generator, 2) == first[:2]
    assert generator_seeds(seeded(2**64 - 1), 1) == (2**63 - 1,)


def test_given_pictures_take_a_generator_too(pipe: ConsiStoryPipeline) -> None:
    pictures = [np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8) for number in (1, 2)]
    masks = [np.pad(np.ones((16, 16), bool), 8)] * 2
    given: dict[str, Any] = {"images": pictures, "masks": masks, "settings": FEW}
    by_seeds = pipe.create_subject(ANCHORS, "cat", [1, 2], **given)
    by_generators = pipe.create_subject(ANCHORS, "cat", generator=seeded(1, 2), **given)
    assert by_seeds.cache.tensors.keys() == by_generators.cache.tensors.keys()
    for name, tensor in by_seeds.cache.tensors.items():
        assert torch.equal(tensor, by_generators.cache.tensors[name])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"generator": seeded(1, 2), "seeds": [1, 2]}, "seeds: leave them out, generator is given too"),
        ({"generator": seeded(1)[0], "latents": torch.zeros(2, 4, 16, 16)}, "latents: leave them out"),
        ({"generator": seeded(1, 2, 3)}, r"generator: give one, or one per prompt: 2 \(got 3\)"),
        ({"generator": 5}, "generator: give a torch.Generator.*got 5"),
        ({"generator": [5, 6]}, r"generator\[0\]: give a torch.Generator"),
        ({}, "seeds: give 2 seeds, a generator, or latents"),
    ],
)
def test_generators_that_do_not_fit(pipe: ConsiStoryPipeline, given: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        pipe.render_vanilla(ANCHORS, settings=PLAIN, **given)


# What comes out -------------------------------------------------------------------------------------------------------


def test_tensors_are_the_arrays(pipe: ConsiStoryPipeline) -> None:
    arrays, tensors = (
        pipe.render_vanilla(ANCHORS, [1, 2], settings=PLAIN, output_type=kind).images  # type: ignore[arg-type]
        for kind in ("np", "pt")
    )
    assert tensors.shape == (2, 3, 32, 32) and tensors.dtype == torch.float32
    assert tensors.is_contiguous() and tensors.min() >= 0 and tensors.max() <= 1
    assert torch.equal(tensors.permute(0, 2, 3, 1), torch.from_numpy(arrays))


def test_given_pictures_come_out_as_tensors(pipe: ConsiStoryPipeline) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    given: dict[str, Any] = {"images": [picture], "masks": [np.pad(np.ones((16, 16), bool), 8)], "settings": FEW}
    for kind in ("pt", "np"):
        images = pipe.create_subject(ANCHORS[:1], "cat", output_type=kind, **given).images  # type: ignore[arg-type]
        images = images.permute(0, 2, 3, 1).numpy() if kind == "pt" else images
        assert np.array_equal((images * 255).round().astype(np.uint8), picture[None])


def test_a_failed_picture_is_nan_in_a_tensor(pipe: ConsiStoryPipeline) -> None:
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    latents[0, 0, 0, 0] = torch.inf
    with pytest.raises(PictureError, match="picture 0") as caught:
        pipe.render_vanilla(ANCHORS, latents=latents, settings=PLAIN, output_type="pt")
    found = caught.value.result.images
    assert found[0].isnan().all() and found[1].isfinite().all() and found.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("kind", ["PIL", "tensor", None])
def test_unknown_output_types_are_refused_before_anything_runs(pipe: ConsiStoryPipeline, kind: Any) -> None:
    with pytest.raises(InputError, match="output_type: use one of pil, np, pt, latent"):
        made(pipe, output_type=kind, progress=lambda *_: pytest.fail("it ran"))


# Loading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_both_names_of_the_dtype_work_without_warnings(name: str, recwarn: Any, caplog: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = ConsiStoryPipeline.from_pretrained("miniature", device="cpu", **{name: torch.float64})
    assert {part.dtype for part in (pipe.pipe.unet, pipe.pipe.vae, pipe.pipe.text_encoder)} == {torch.float64}
    assert not [record for record in caplog.records if "dtype" in record.message]


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("num_images_per_prompt", r"prompts=\[prompt\] \* 4"),
        ("callback", "callback_on_step_end"),
        ("prompt_embeds", "give the text"),
        ("ip_adapter_image", "give images"),
        ("generators", r"did you mean generator\?"),
        ("output_typ", r"did you mean output_type\?"),
        ("guidance_scal", r"did you mean guidance_scale\?"),
        ("return_dict", "leave it out"),
        ("xyz", "there are num_inference_steps"),
    ],
)
def test_wrong_names_are_told_the_right_ones(pipe: ConsiStoryPipeline, name: str, fix: str) -> None:
    for call in (pipe.render_vanilla, pipe.create_subject):
        given = {"concepts": "cat", "seeds": [1, 2], name: 1}
        with pytest.raises(InputError, match=f"{name}: .*{fix}"):
            call(ANCHORS, **given)  # type: ignore[operator]


def test_the_arguments_that_names_are_compared_with_are_the_pipelines() -> None:
    methods = (ConsiStoryPipeline.create_subject, ConsiStoryPipeline.render, ConsiStoryPipeline.render_vanilla)
    found = {name for method in methods for name in inspect.signature(method).parameters} - {"self", "changes"}
    assert {*ARGUMENTS} == found | {"strength", "profile"}


def test_vanilla_pictures_take_single_settings(pipe: ConsiStoryPipeline) -> None:
    given: dict[str, Any] = {"seeds": [1, 2], "output_type": "latent"}
    expected = pipe.render_vanilla(ANCHORS, settings=PLAIN, **given).images
    found = pipe.render_vanilla(ANCHORS, num_inference_steps=2, freeu=None, **given).images
    assert torch.equal(found, expected)


# Hooks, tiles and memory formats --------------------------------------------------------------------------------------


def offloaded_by_accelerate(model: Any) -> None:
    """As sequential offloading does it, with the CPU for the device: between calls the weights are nowhere near it."""
    for part in (model.unet, model.vae, model.text_encoder, model.text_encoder_2):
        weights = {name: weight.detach().clone() for name, weight in part.state_dict().items()}
        cpu_offload(part, torch.device("cpu"), offload_buffers=False, state_dict=weights)
    assert model.unet.conv_in.weight.is_meta and model.vae.decoder.conv_in.weight.is_meta


def taken_off(model: Any) -> None:
    for part in (model.unet, model.vae, model.text_encoder, model.text_encoder_2):
        remove_hook_from_module(part, recurse=True)


GROUPS = {"offload_type": "block_level", "num_blocks_per_group": 1}
CPU = torch.device("cpu")
ON_OFF: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    "model": (lambda pipe: pipe.enable_model_cpu_offload(device="cpu"), lambda pipe: pipe.pipe.remove_all_hooks()),
    "weights that are away": (lambda pipe: offloaded_by_accelerate(pipe.pipe), lambda pipe: taken_off(pipe.pipe)),
    "groups": (lambda pipe: pipe.enable_group_offload(onload_device=CPU, **GROUPS), lambda pipe: None),
    "tiles": (lambda pipe: pipe.enable_vae_tiling(), lambda pipe: pipe.disable_vae_tiling()),
}


@pytest.mark.parametrize("kind", ON_OFF)
def test_whenever_it_is_switched_on_or_off_pictures_stay(model: StableDiffusionXLPipeline, kind: str) -> None:
    """Between making a subject and rendering it, and back again; the fingerprint knows the weights all the time."""
    pipe, (switch_on, switch_off) = ConsiStoryPipeline(model), ON_OFF[kind]
    given: dict[str, Any] = {"output_type": "np"}
    subject, fingerprint = made(pipe, **given), pipe.fingerprint
    expected = pipe.render(ANCHORS[:1], subject, [3], **given).images
    for switch in (switch_on, switch_off):
        switch(pipe)
        assert pipe.device.type == "cpu" and pipe.fingerprint == fingerprint
        assert np.array_equal(pipe.render(ANCHORS[:1], subject, [3], **given).images, expected)
    switch_on(pipe)
    assert np.array_equal(made(pipe, **given).images, subject.images)


def test_hooks_on_every_part_of_the_pipeline_run(model: StableDiffusionXLPipeline) -> None:
    """Of accelerate around the text encoders and the VAE, which is decoded with and never called; of torch on parts."""
    pipe = ConsiStoryPipeline(model)
    expected = pipe.render_vanilla(ANCHORS, [1, 2], settings=PLAIN, output_type="np").images
    watching = {name: Watching() for name in ("text_encoder", "text_encoder_2", "vae")}
    for name, hook in watching.items():
        add_hook_to_module(getattr(model, name), hook)
    calls: list[str] = []
    for name in ("vae.decoder", "unet.down_blocks.0", "unet.conv_out", "text_encoder", "text_encoder_2"):
        owner, _, part = name.partition(".")
        getattr(model, owner).get_submodule(part).register_forward_hook(lambda *_, name=name: calls.append(name))
    images = pipe.render_vanilla(ANCHORS, [1, 2], settings=PLAIN, output_type="np").images
    assert np.array_equal(images, expected)
    assert watching["vae"].before == 2, "for each picture"
    assert watching["text_encoder"].before == watching["text_encoder_2"].before > 0
    assert calls.count("vae.decoder") == calls.count("unet.down_blocks.0") == calls.count("unet.conv_out") == 2
    assert {"text_encoder", "text_encoder_2"} <= {*calls}


def test_tiles_are_used_from_the_next_call_on(model: StableDiffusionXLPipeline) -> None:
    pipe, tiles = ConsiStoryPipeline(model), list[int]()
    tiled = model.vae.tiled_decode
    model.vae.tiled_decode = lambda *given, **more: (tiles.append(1), tiled(*given, **more))[1]
    model.vae.tile_latent_min_size = 8
    for switch, expected in ((pipe.enable_vae_tiling, 1), (pipe.disable_vae_tiling, 0), (pipe.enable_vae_tiling, 1)):
        switch()
        tiles.clear()
        pipe.render_vanilla(ANCHORS[:1], [1], settings=PLAIN)
        assert len(tiles) == expected


def test_channels_last_stays_and_changes_rounding_only(model: StableDiffusionXLPipeline) -> None:
    pipe = ConsiStoryPipeline(model)
    subject, fingerprint = made(pipe), pipe.fingerprint
    expected = pipe.render(ANCHORS[:1], subject, [3], output_type="np").images
    model.unet.to(memory_format=torch.channels_last)
    model.vae.to(memory_format=torch.channels_last)
    kernels = [
        part.weight for each in (model.unet, model.vae) for part in each.modules() if hasattr(part, "kernel_size")
    ]
    assert pipe.fingerprint == fingerprint
    for _ in range(2):
        found = pipe.render(ANCHORS[:1], subject, [3], output_type="np").images
        assert np.allclose(found, expected, atol=1e-3)
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    assert torch.allclose(made(pipe).images, subject.images, atol=1e-3)


def test_to_moves_the_pipeline_and_gives_it_back(model: StableDiffusionXLPipeline) -> None:
    pipe = ConsiStoryPipeline(model)
    assert pipe.to(torch.float64) is pipe
    assert model.unet.dtype == model.vae.dtype == torch.float64
    assert np.isfinite(pipe.render_vanilla(ANCHORS, [1, 2], settings=PLAIN, output_type="np").images).all()


def test_another_backbone_is_handled_by_itself() -> None:
    pipe = ConsiStoryPipeline(SecondBackbone())
    for call in (pipe.enable_model_cpu_offload, pipe.enable_vae_tiling, pipe.to):
        with pytest.raises(InputError, match="pipe: call this on the backbone itself"):
            call()


def test_the_documented_program(capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands in docs/python.md."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    exec(compile(program, "docs/python.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in printed[:-1]] == [f"step {step} of 8" for step in range(1, 9)]
    assert printed[-1] == "torch.Size([2, 3, 128, 128])"
