"""The public pipeline on a tiny random model: what a picture depends on, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, SubjectResult, Trace
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.errors import AssetError, CacheMismatchError, CheckpointError, InputError, PromptError
from consistory_ray.settings import MethodSettings
from tests.consistory.conftest import make_diffusers_pipeline

ANCHORS = ["a photo of a cat in the garden", "a cat on the beach"]
SCENES = ["a cat in space", "a cat with a hat", "a red cat at night", "the cat in the kitchen"]
QUICK: dict[str, Any] = {"num_inference_steps": 10, "output_type": "latent"}


@pytest.fixture(scope="module")
def subject(pipe: ConsiStoryPipeline) -> SubjectResult:
    return pipe.create_subject(ANCHORS, ["cat"], [1, 2], **QUICK)


def far(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def latents_of(seeds: list[int], height: int = 16, width: int = 16) -> Tensor:
    draws = [torch.randn(4, height, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)


# What a picture depends on --------------------------------------------------------------------------------------------


def test_a_scene_is_the_same_alone_in_a_batch_and_from_a_file(
    pipe: ConsiStoryPipeline, subject: SubjectResult, tmp_path: Any
) -> None:
    subject.cache.save(tmp_path / "cat.safetensors")
    loaded = AnchorCache.load(tmp_path / "cat.safetensors")
    together = pipe.render(SCENES, subject, [3, 4, 5, 6], output_type="latent")
    in_twos = pipe.render(SCENES, loaded, [3, 4, 5, 6], batch_size=2, output_type="latent")
    assert far(together.images, in_twos.images) < 1e-3
    for index in (0, 3):
        alone = pipe.render(SCENES[index : index + 1], loaded, [3 + index], output_type="latent")
        assert far(alone.images[0], together.images[index]) < 1e-3
        for level, mask in alone.masks.items():
            assert torch.equal(mask[0], together.masks[level][index])
    assert far(together.images[0], together.images[1]) > 0.1


def test_anchors_do_not_depend_on_scenes_or_on_global_random_numbers(
    pipe: ConsiStoryPipeline, subject: SubjectResult
) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = pipe.create_subject(ANCHORS, ["cat"], [1, 2], **QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.images, subject.images)
    assert all(torch.equal(again.cache.tensors[name], tensor) for name, tensor in subject.cache.tensors.items())


def test_seeds_are_latents(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    given = pipe.create_subject(ANCHORS, ["cat"], [1, 2], latents=latents_of([1, 2]), **QUICK)
    assert torch.equal(given.images, subject.images)
    scene = pipe.render(SCENES[:1], subject, latents=latents_of([3]), output_type="latent")
    assert torch.equal(scene.images, pipe.render(SCENES[:1], subject, [3], output_type="latent").images)


def test_dropout_follows_each_anchors_own_seed(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    latents = latents_of([1, 2])
    unseeded, other = (
        pipe.create_subject(ANCHORS, ["cat"], seeds, latents=latents, **QUICK) for seeds in (None, [1, 3])
    )
    assert far(other.images, subject.images) > 1e-4
    assert far(unseeded.images, subject.images) > 1e-4
    assert unseeded.cache.seeds is None


def test_subject_matters_to_its_scenes(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    other = pipe.create_subject(ANCHORS, ["cat"], [7, 8], **QUICK)
    ours, theirs = (pipe.render(SCENES[:1], each, [3], output_type="latent").images for each in (subject, other))
    assert far(ours, theirs) > 1e-2


@pytest.mark.parametrize("switch", ["sdsa", "query_blending", "injection", "freeu"])
def test_every_part_of_the_method_matters(pipe: ConsiStoryPipeline, subject: SubjectResult, switch: str) -> None:
    without = pipe.create_subject(
        ANCHORS, ["cat"], [1, 2], **{switch: None if switch == "freeu" else False}, **{**QUICK, "mask_dropout": 0.5}
    )
    assert far(without.images, subject.images) > 1e-3


def test_with_everything_off_it_is_the_stock_pipeline(
    pipe: ConsiStoryPipeline, diffusers_pipe: StableDiffusionXLPipeline
) -> None:
    latents, settings = latents_of([3, 4]), MethodSettings(num_inference_steps=10, freeu=None)
    expected = diffusers_pipe(
        SCENES[:2], latents=latents, num_inference_steps=10, guidance_scale=5.0, output_type="latent"
    ).images
    vanilla = pipe.render_vanilla(SCENES[:2], [3, 4], settings=settings, output_type="latent")
    assert far(vanilla.images, expected) < 1e-4 and vanilla.masks == {}
    off = pipe.create_subject(
        SCENES[:2], ["cat"], [3, 4], sdsa=False, query_blending=False, injection=False, freeu=None, **QUICK
    )
    assert far(off.images, expected) < 1e-4
    scene = pipe.render(SCENES[:2], off, [3, 4], output_type="latent")
    assert far(scene.images, expected) < 1e-4


def test_vanilla_masks_on_request(pipe: ConsiStoryPipeline) -> None:
    vanilla = pipe.render_vanilla(["a cat"], [3], concepts="cat", settings=MethodSettings(num_inference_steps=3))
    assert {level: tuple(mask.shape) for level, mask in vanilla.masks.items()} == {
        "coarse": (1, 4, 4),
        "fine": (1, 8, 8),
    }


# The steps ------------------------------------------------------------------------------------------------------------


class Calls:
    """Counts how often the parts of the UNet run."""

    def __init__(self, pipe: ConsiStoryPipeline) -> None:
        unet = pipe.pipe.unet
        self.counts = {"trunk": 0, "up": 0, "output": 0, "text": 0, "decode": 0}
        text_key = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k
        modules = {"trunk": unet.conv_in, "up": unet.up_blocks[0], "output": unet.conv_out, "text": text_key}
        modules["decode"] = pipe.pipe.vae.decoder
        self.hooks = [module.register_forward_hook(self._count(name)) for name, module in modules.items()]

    def _count(self, name: str) -> Any:
        def count(*_: object) -> None:
            self.counts[name] += 1

        return count

    def __enter__(self) -> dict[str, int]:
        return self.counts

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def test_no_call_is_made_twice(pipe: ConsiStoryPipeline) -> None:
    # 20 steps: queries are blended at steps 0..2, pass 2 starts at step 2.
    with Calls(pipe) as counts:
        subject = pipe.create_subject(ANCHORS, ["cat"], [1, 2], num_inference_steps=20)
    # Two vanilla calls (steps 1 and 2 of pass 1), which share the trunk and stop before the output.
    assert counts == {"trunk": 38, "up": 40, "output": 38, "text": 1, "decode": 2}
    with Calls(pipe) as counts:
        pipe.render(SCENES[:1], subject, [3])
    assert counts == {"trunk": 38, "up": 40, "output": 38, "text": 1, "decode": 1}
    with Calls(pipe) as counts:
        pipe.render_vanilla(SCENES[:1], [3], settings=subject.cache.settings)
    assert counts == {"trunk": 20, "up": 20, "output": 20, "text": 1, "decode": 1}


def test_blending_beyond_the_fork_calls_without_injection(pipe: ConsiStoryPipeline) -> None:
    settings = MethodSettings(num_inference_steps=10, query_blend_until=0.3, injection_window=(0.1, 0.2))
    with Calls(pipe) as counts:
        pipe.create_subject(ANCHORS, ["cat"], [1, 2], settings=settings, output_type="latent")
    # Pass 1 blends at 1, 2, 3 on shared trunks. Pass 2 starts at 1 with pass 1's queries; at 2 it injects, so that the
    # vanilla call needs a trunk of its own; at 3 it shares again.
    assert (counts["trunk"], counts["up"], counts["output"]) == (10 + 9 + 1, 10 + 3 + 9 + 2, 19)


def test_maps_are_recorded_only_where_they_count(
    pipe: ConsiStoryPipeline, subject: SubjectResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[int] = []
    monkeypatch.setattr(
        "consistory_ray.consistory.method.masks.AttentionMaps.add",
        lambda self, found: recorded.append(found.shape[0]),
    )
    monkeypatch.setattr(
        "consistory_ray.consistory.method.masks.AttentionMaps.masks",
        lambda self, grids: {level: torch.ones(1, grid.tokens, dtype=torch.bool) for level, grid in grids.items()},
    )
    long = pipe.create_subject(ANCHORS[:1], ["cat"], [1], num_inference_steps=30, output_type="latent")
    layers = 8  # coarse cross-attention layers of the tiny model
    assert len(recorded) == layers * (30 + 27)
    recorded.clear()
    pipe.render(SCENES[:1], long, [3], output_type="latent")
    assert len(recorded) == layers * 20


def test_trace_and_progress_tell_what_happens(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    ticks: list[tuple[int, int]] = []
    trace = Trace()
    result = pipe.render(
        SCENES[:1],
        subject,
        [3],
        output_type="latent",
        trace=trace,
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert ticks == [(done, 19) for done in range(1, 20)]
    assert sorted(trace.latents) == [(1, step) for step in range(10)] + [(2, step) for step in range(1, 10)]
    assert torch.equal(trace.latents[2, 9], result.images)
    assert all(torch.equal(trace.masks[1, 9][level], mask.flatten(1)) for level, mask in result.masks.items())
    assert trace.source_anchor is not None and set(trace.source_anchor.unique().tolist()) <= {0, 1}
    assert trace.source_token is not None
    masks = subject.cache.masks()["fine"].flatten(1)
    assert masks[trace.source_anchor, trace.source_token].all(), "sources lie inside the anchors' masks"
    untraced = pipe.render(SCENES[:1], subject, [3], output_type="latent")
    assert torch.equal(untraced.images, result.images), "looking must not change the picture"


# Generality -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", [1, 3])
def test_any_number_of_anchors(pipe: ConsiStoryPipeline, anchors: int) -> None:
    prompts = [*ANCHORS, "a cat"][:anchors]
    made = pipe.create_subject(prompts, ["cat"], list(range(anchors)), **QUICK)
    assert made.images.shape[0] == made.cache.anchors == anchors
    scene = pipe.render(SCENES[:1], made, [3], output_type="latent")
    vanilla = pipe.render_vanilla(SCENES[:1], [3], settings=made.cache.settings, output_type="latent")
    assert far(scene.images, vanilla.images) > 1e-2


def test_a_single_anchor_is_a_vanilla_picture(pipe: ConsiStoryPipeline) -> None:
    made = pipe.create_subject(ANCHORS[:1], ["cat"], [1], **QUICK)
    vanilla = pipe.render_vanilla(ANCHORS[:1], [1], settings=made.cache.settings, output_type="latent")
    assert far(made.images, vanilla.images) < 1e-4


@pytest.mark.parametrize("size", [(32, 48), (38, 26), (22, 32)])
def test_any_size(pipe: ConsiStoryPipeline, size: tuple[int, int]) -> None:
    made = pipe.create_subject(ANCHORS, ["cat"], [1, 2], height=size[0], width=size[1], **QUICK)
    rows, columns = -(-size[0] // 4), -(-size[1] // 4)
    assert made.masks["fine"].shape == (2, rows, columns)
    scene = pipe.render(SCENES[:2], made, [3, 4])
    assert [image.size for image in scene.images] == [size[::-1]] * 2
    from_latents = pipe.create_subject(
        ANCHORS, ["cat"], [1, 2], latents=latents_of([1, 2], size[0] // 2, size[1] // 2), **QUICK
    )
    assert torch.equal(from_latents.images, made.images)


@pytest.mark.parametrize("guidance", [1.0, 0.0, 7.5])
def test_guidance(pipe: ConsiStoryPipeline, subject: SubjectResult, guidance: float) -> None:
    made = pipe.create_subject(ANCHORS, ["cat"], [1, 2], guidance_scale=guidance, **QUICK)
    assert made.cache.shared(Pass(1, 1))["coarse"].shape[1] == (2 if guidance > 1 else 1)
    scene = pipe.render(SCENES[:2], made, [3, 4], output_type="latent")
    assert far(scene.images, pipe.render(SCENES[:2], subject, [3, 4], output_type="latent").images) > 1e-2


def test_negative_prompt(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    made = pipe.create_subject(ANCHORS, ["cat"], [1, 2], negative_prompt="a dog", **QUICK)
    assert far(made.images, subject.images) > 1e-2
    assert made.cache.settings.negative_prompt == "a dog"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tmp_path: Any) -> None:
    diffusers_pipe = make_diffusers_pipeline(tmp_path).to(dtype)
    pipe = ConsiStoryPipeline(diffusers_pipe)
    made = pipe.create_subject(ANCHORS, ["cat"], [1, 2], num_inference_steps=10, output_type="np")
    assert made.cache.dtype == str(dtype).removeprefix("torch.")
    result = pipe.render(SCENES[:2], made, [3, 4], output_type="np")
    assert result.images.dtype == np.float32 and np.isfinite(result.images).all()
    assert {parameter.dtype for parameter in diffusers_pipe.vae.parameters()} == {dtype}


@pytest.mark.parametrize("scheduler", [{"prediction_type": "v_prediction"}, {"timestep_spacing": "trailing"}])
def test_the_models_own_schedule(pipe: ConsiStoryPipeline, tmp_path: Any, scheduler: dict[str, Any]) -> None:
    theirs = make_diffusers_pipeline(tmp_path, **scheduler)
    settings = MethodSettings(num_inference_steps=7, freeu=None)
    other = ConsiStoryPipeline(theirs)
    assert other.fingerprint != pipe.fingerprint
    found = other.render_vanilla(SCENES[:1], [3], settings=settings, output_type="latent").images
    expected = theirs(
        SCENES[:1], latents=latents_of([3]), num_inference_steps=7, guidance_scale=5.0, output_type="latent"
    ).images
    assert far(found, expected) < 1e-3
    made = other.create_subject(ANCHORS, ["cat"], [1, 2], **QUICK)
    assert torch.isfinite(other.render(SCENES[:1], made, [3], output_type="latent").images).all()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps(pipe: ConsiStoryPipeline, steps: int) -> None:
    made = pipe.create_subject(ANCHORS, ["cat"], [1, 2], num_inference_steps=steps, output_type="latent")
    assert pipe.render(SCENES[:1], made, [3], output_type="latent").images.shape == (1, 4, 16, 16)


def test_scenes_may_lack_some_concepts(pipe: ConsiStoryPipeline) -> None:
    made = pipe.create_subject(["a cat with a red hat", "a cat at night"], ["cat", "red hat"], [1, 2], **QUICK)
    scenes = ["a cat in snow", "a red hat in the garden", "the cat with the red hat"]
    together = pipe.render(scenes, made, [3, 4, 5], output_type="latent")
    alone = pipe.render(scenes[1:2], made, [4], output_type="latent")
    assert far(alone.images[0], together.images[1]) < 1e-3
    assert all(mask.any(dim=(1, 2)).all() for mask in together.masks.values())


def test_full_dropout_shares_nothing(pipe: ConsiStoryPipeline) -> None:
    made = pipe.create_subject(ANCHORS, ["cat"], [1, 2], mask_dropout=1.0, injection=False, **QUICK)
    assert all(tensor.shape[2] == 0 for step in range(1, 10) for tensor in made.cache.shared(Pass(1, step)).values())
    scene = pipe.render(SCENES[:1], made, [3], output_type="latent")
    vanilla = pipe.render_vanilla(SCENES[:1], [3], settings=made.cache.settings, output_type="latent")
    assert far(scene.images, vanilla.images) < 1e-4


# Output and the user's pipeline ---------------------------------------------------------------------------------------


def test_output_types(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    pil, array, latent = (
        pipe.render(SCENES[:2], subject, [3, 4], output_type=kind).images for kind in ("pil", "np", "latent")
    )
    assert all(isinstance(image, Image.Image) and image.size == (32, 32) for image in pil)
    assert array.shape == (2, 32, 32, 3) and array.dtype == np.float32 and 0 <= array.min() <= array.max() <= 1
    assert latent.shape == (2, 4, 16, 16) and latent.dtype == torch.float32
    assert np.array_equal(np.asarray(pil[0]), (array[0] * 255).round().astype(np.uint8))


def test_the_pipeline_is_left_as_found(
    pipe: ConsiStoryPipeline, diffusers_pipe: StableDiffusionXLPipeline, subject: SubjectResult
) -> None:
    unet, vae = diffusers_pipe.unet, diffusers_pipe.vae
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    vae.train()
    diffusers_pipe.text_encoder.train()
    processors, scheduler = dict(unet.attn_processors), diffusers_pipe.scheduler
    timesteps = scheduler.timesteps.clone()
    stopping = RuntimeError("stop")

    def stops(done: int, total: int) -> None:
        raise stopping

    with pytest.raises(RuntimeError) as caught:
        pipe.render(SCENES[:1], subject, [3], progress=stops)
    assert caught.value is stopping
    pipe.render(SCENES[:1], subject, [3])
    assert unet.attn_processors == processors
    assert (unet.up_blocks[0].s1, unet.up_blocks[1].b2) == (0.9, 1.4)
    assert vae.training and vae.decoder.training and diffusers_pipe.text_encoder.training and not unet.training
    assert diffusers_pipe.scheduler is scheduler and torch.equal(scheduler.timesteps, timesteps)
    unet.disable_freeu()
    vae.eval()
    diffusers_pipe.text_encoder.eval()


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"seeds": [1]}, "seeds: give one per prompt"),
        ({"seeds": None}, "seeds: give 2 seeds, a generator, or latents"),
        ({"seeds": [1, -1]}, "seeds[1]"),
        ({"prompts": "a cat"}, "prompts: give a list"),
        ({"prompts": []}, "prompts: give a list"),
        ({"latents": torch.zeros(2, 4, 16, 16), "height": 48}, "latents"),
        ({"latents": torch.zeros(1, 4, 16, 16)}, "latents"),
        ({"height": 33}, "height: must be a positive multiple of 2"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"mask_dropout": 1.5}, "mask_dropout"),
        ({"freeu": (1.0, 2.0)}, "freeu"),
        ({"settings": MethodSettings(injection_window=(0.5, 0.1))}, "injection_window"),
        ({"num_inference_step": 5}, "num_inference_step: did you mean num_inference_steps?"),
        ({"kkkkk": 5}, "kkkkk: there are num_inference_steps"),
    ],
)
def test_bad_arguments_are_named(pipe: ConsiStoryPipeline, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        pipe.create_subject(**{"prompts": ANCHORS, "concepts": ["cat"], "seeds": [1, 2], **arguments})
    assert named in str(caught.value)


def test_a_prompt_without_its_concept(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    with pytest.raises(PromptError, match="'cat' as a word of its own"):
        pipe.render(["a dog in space"], subject, [3])


def test_a_batch_size_of_none(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    with pytest.raises(InputError, match="batch_size"):
        pipe.render(SCENES[:1], subject, [3], batch_size=0)


def test_caches_of_another_model_or_other_settings(
    pipe: ConsiStoryPipeline, subject: SubjectResult, tmp_path: Any
) -> None:
    other = make_diffusers_pipeline(tmp_path)
    with torch.no_grad():
        other.unet.conv_in.weight.neg_()
    with pytest.raises(CacheMismatchError, match="another model"):
        ConsiStoryPipeline(other).render(SCENES[:1], subject, [3])
    pipe.render(SCENES[:1], subject, [3], settings=MethodSettings(num_inference_steps=10), output_type="latent")
    with pytest.raises(CacheMismatchError, match=r"settings\.mask_dropout"):
        pipe.render(SCENES[:1], subject, [3], settings=subject.cache.settings.replace(mask_dropout=0.4))


def test_the_fingerprint_is_of_the_weights_in_any_dtype(pipe: ConsiStoryPipeline, tmp_path: Any) -> None:
    other = make_diffusers_pipeline(tmp_path)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert ConsiStoryPipeline(other.to(dtype)).fingerprint == pipe.fingerprint


def test_numbers_that_are_not_finite(tmp_path: Any) -> None:
    broken = make_diffusers_pipeline(tmp_path)
    broken.unet.conv_out.bias.fill_(torch.inf)
    with pytest.raises(AssetError, match="not finite"):
        ConsiStoryPipeline(broken).render_vanilla(["a cat"], [1], settings=MethodSettings(num_inference_steps=2))


def test_pipelines_of_another_architecture(diffusers_pipe: StableDiffusionXLPipeline) -> None:
    with pytest.raises(CheckpointError, match="not an SDXL pipeline"):
        ConsiStoryPipeline(object())  # type: ignore[arg-type]


def test_defaults_are_the_models(diffusers_pipe: StableDiffusionXLPipeline) -> None:
    pipe = ConsiStoryPipeline(diffusers_pipe, MethodSettings(num_inference_steps=3, mask_dropout=0.2, freeu=None))
    made = pipe.create_subject(ANCHORS, ["cat"], [1, 2], guidance_scale=2.0)
    assert made.cache.settings == MethodSettings(
        num_inference_steps=3, mask_dropout=0.2, freeu=None, guidance_scale=2.0, height=32, width=32
    )
