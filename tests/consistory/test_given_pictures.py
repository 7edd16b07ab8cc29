"""Subjects made of given pictures: the sweep against calls by hand, and what such a subject depends on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, SubjectResult, Trace, estimate_cache_bytes
from consistory_ray.consistory.inputs import make_batch, make_request, resolve_settings
from consistory_ray.consistory.method.attention import AttentionCall
from consistory_ray.consistory.method.dropout import undropped
from consistory_ray.consistory.method.given import GivenAnchors, NoisedPath, sweep
from consistory_ray.consistory.method.latents import seeded_noise
from consistory_ray.consistory.method.masks import AttentionMaps
from consistory_ray.consistory.method.sampler import Sampler
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.errors import AssetError, InputError, PictureError, PromptError
from consistory_ray.settings import MethodSettings
from tests.consistory import slow_reference as slow
from tests.consistory.conftest import make_diffusers_pipeline
from tests.consistory.inversion import DDPM
from tests.consistory.second_backbone import SecondBackbone

CAPTIONS = ["a photo of a cat in the garden", "a cat on the beach"]
SCENES = ["a cat in space", "a cat with a hat"]
SEEDS = [11, 12]
SETTINGS = MethodSettings(num_inference_steps=10, freeu=(0.6, 0.4, 1.1, 1.2))
QUICK: dict[str, Any] = {"settings": SETTINGS, "output_type": "latent"}


def drawn(seed: int, side: int = 32) -> Image.Image:
    """Some picture: smooth blobs."""
    blobs = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    pixels = F.interpolate(blobs, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    return Image.fromarray((pixels[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


PICTURES = [drawn(1), drawn(2)]
MASK = np.zeros((32, 32), bool)
MASK[8:24, 4:20] = True


@pytest.fixture(scope="module")
def subject(pipe: ConsiStoryPipeline) -> SubjectResult:
    return pipe.create_subject(CAPTIONS, "cat", SEEDS, images=PICTURES, **QUICK)


# The sweep, by hand ---------------------------------------------------------------------------------------------------


class Unet:
    """Plain calls of the UNet of diffusers, and what went into and came out of its attention layers."""

    def __init__(self, pipe: Any, prompts: list[str]) -> None:
        self.pipe, self.alphas = pipe, pipe.scheduler.alphas_cumprod
        text, negative, pooled, negative_pooled = pipe.encode_prompt(prompts)
        self.text, self.pooled = torch.cat([negative, text]), torch.cat([negative_pooled, pooled])
        self.time_ids = torch.tensor([[32.0, 32.0, 0, 0, 32.0, 32.0]] * 2 * len(prompts))
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, latents: Tensor, timestep: int) -> Tensor:
        """The prediction for both halves of [images, 4, h, w], unconditional first."""
        parts = [(name, part) for name, part in self.pipe.unet.named_modules() if name.endswith(("attn1", "attn2"))]
        hooks = [part.register_forward_hook(self._seen(name)) for name, part in parts]
        hooks.append(self.pipe.unet.up_blocks[0].register_forward_hook(self._seen("first up")))
        try:
            added = {"text_embeds": self.pooled, "time_ids": self.time_ids}
            rows = torch.cat([latents] * 2)
            prediction: Tensor = self.pipe.unet(
                rows, timestep, encoder_hidden_states=self.text, added_cond_kwargs=added
            ).sample
            return prediction
        finally:
            for hook in hooks:
                hook.remove()

    def _seen(self, name: str) -> Any:
        def hook(module: Any, given: Any, output: Tensor) -> None:
            self.inputs[name], self.outputs[name] = (given[0].clone() if given else output), output.clone()

        return hook

    def named(self, kind: str, tokens: int, *blocks: str) -> list[str]:
        """Attention layers of a kind on so many tokens in these blocks, in the order of the UNet's calls."""
        return [
            name
            for block in blocks
            for name in self.inputs
            if name.startswith(block) and name.endswith(kind) and self.inputs[name].shape[1] == tokens
        ]


def x_t(clean: Tensor, alpha: Tensor, seeds: list[int], step: int) -> Tensor:
    noise = torch.stack([seeded_noise(seed, tuple(clean.shape[1:]), step) for seed in seeds])
    return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise


def cat_map(unet: Unet) -> Tensor:
    """How much each coarse token looks at the word: [images, tokens], the mean over layers and heads."""
    maps = []
    modules = dict(unet.pipe.unet.named_modules())
    for name in unet.named("attn2", 16, "down_blocks", "mid_block", "up_blocks"):
        of_images = []
        for image, prompt in enumerate(CAPTIONS):
            row, attn = len(CAPTIONS) + image, modules[name]
            query, key = attn.to_q(unet.inputs[name][row]), attn.to_k(unet.text[row])
            probabilities = slow.attend(query, key, key, attn.heads)[1].mean(dim=0)
            of_images.append(probabilities[:, slow.concept_positions(unet.pipe.tokenizer, prompt, "cat")].mean(dim=1))
        maps.append(torch.stack(of_images))
    return torch.stack(maps).mean(dim=0)


@torch.no_grad()
def test_the_cache_is_what_plain_calls_on_noised_pictures_give(
    pipe: ConsiStoryPipeline, subject: SubjectResult
) -> None:
    unet, scheduler = (
        Unet(pipe.pipe, CAPTIONS),
        pipe.backbone.schedule(MethodSettings(num_inference_steps=10)).scheduler,
    )  # type: ignore[attr-defined]
    pixels = torch.stack([torch.from_numpy(np.asarray(picture).copy()) for picture in PICTURES]).permute(0, 3, 1, 2)
    clean = pipe.pipe.vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean * pipe.pipe.vae.config.scaling_factor
    torch.testing.assert_close(subject.images, clean, atol=1e-4, rtol=1e-4)

    pipe.pipe.enable_freeu(*SETTINGS.freeu)
    try:
        maps = []
        for timestep in (300, 200, 100, 20):  # of the model's 1000, of which step 0 is the first
            step = scheduler_steps(pipe).index(timestep)
            unet(x_t(clean, unet.alphas[timestep], SEEDS, step), timestep)
            maps.append(cat_map(unet))
        mean = torch.stack(maps).mean(dim=0)
        resized = F.interpolate(mean.reshape(2, 1, 4, 4), size=(8, 8), mode="bilinear", align_corners=False).flatten(1)
        masks = {
            level: torch.stack([row > slow.otsu(row) for row in rows])
            for level, rows in (("coarse", mean), ("fine", resized))
        }
        cache, names = subject.cache, set(subject.cache.tensors)
        for level, mask in masks.items():
            assert 0 < mask.float().mean() < 1 and torch.equal(mask, cache.tensors[f"mask.{level}"])
            names.remove(f"mask.{level}")

        timesteps = scheduler.timesteps.tolist()
        inside = masks["fine"].flatten()
        for step, timestep in enumerate(timesteps):
            unet(x_t(clean, unet.alphas[timestep], SEEDS, step), timestep)
            for level, tokens in (("coarse", 16), ("fine", 64)) if step else ():
                draws = [undropped(0.5, tokens, seed, Pass(1, step), level) for seed in SEEDS]
                kept = (masks[level] & torch.stack(draws)).flatten()
                hidden = [unet.inputs[name] for name in unet.named("attn1", tokens, "up_blocks")]
                expected = torch.stack([of_layer.reshape(2, -1, of_layer.shape[2])[:, kept] for of_layer in hidden])
                torch.testing.assert_close(cache.shared(Pass(1, step))[level], expected, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(cache.shared(Pass(2, step))[level], expected, atol=1e-4, rtol=1e-4)
                positions = cache.positions(Pass(1, step))
                assert positions is not None and positions[level].tolist() == kept.nonzero()[:, 0].tolist()
                names -= {f"pass1.step{step:03d}.{kind}.{level}" for kind in ("shared", "positions")}
            if 1 <= step <= 3:  # n / 10 to n / 3
                outputs = [unet.outputs[name][2:] for name in unet.named("attn1", 64, "down_blocks", "up_blocks")]
                expected = torch.stack([output.flatten(0, 1)[inside] for output in outputs])
                torch.testing.assert_close(cache.injected(step), expected, atol=1e-4, rtol=1e-4)
                names.remove(f"pass2.step{step:03d}.injected.fine")
            if timestep == min(timesteps, key=lambda other: abs(other - 261)):
                smoothed = slow.smooth(unet.outputs["first up"][2:])
                features = F.interpolate(smoothed, size=(8, 8), mode="bilinear", align_corners=False)
                unit = F.normalize(features.flatten(2).transpose(1, 2).flatten(0, 1)[inside], dim=1)
                torch.testing.assert_close(cache.features, unit, atol=1e-4, rtol=1e-4)
                names.remove("features.fine")
        assert not names, "nothing else is in it"
    finally:
        pipe.pipe.disable_freeu()


def scheduler_steps(pipe: ConsiStoryPipeline) -> list[int]:
    return list(pipe.backbone.schedule(MethodSettings(num_inference_steps=pipe.backbone.max_steps)).timesteps)


# The inversion proper -------------------------------------------------------------------------------------------------


def inversion(pipe: ConsiStoryPipeline, steps: int, kind: str) -> DDPM:
    scheduler = pipe.pipe.scheduler
    timesteps = list(pipe.backbone.schedule(MethodSettings(num_inference_steps=steps)).timesteps)
    return DDPM(scheduler.alphas_cumprod.double(), float(scheduler.alphas_cumprod[0]), timesteps, kind)


@torch.no_grad()
def check_inversion(pipe: ConsiStoryPipeline, steps: int, kind: str, captions: list[str], clean: Tensor) -> None:
    """Steps of DDPM at guidance 2, as the paper has 100: what they invert to, and what replays make of it."""
    settings = MethodSettings(num_inference_steps=steps, freeu=None, guidance_scale=2.0)
    resolved = resolve_settings(pipe.backbone, settings, clean)
    batch = make_batch(pipe.backbone, captions, SEEDS[: len(captions)], None, ("cat",), resolved)
    with pipe.backbone.installed(None) as network:
        request = make_request(pipe.backbone, batch, resolved)
        guidance = 2.0

        def predict(latents: Tensor, timestep: int) -> Tensor:
            call = AttentionCall()
            trunk = network.begin(torch.cat([latents] * 2), torch.tensor(timestep), request.conditioning, call)
            unconditional, conditional = network.finish(trunk, call).chunk(2)
            return unconditional + guidance * (conditional - unconditional)

        ddpm = inversion(pipe, steps, kind)
        inverted = ddpm.invert(clean, batch.noise, predict)
        replayed = ddpm.replay(inverted[0], predict)
        assert far(replayed[-1], inverted[-1]) < 1e-6 and far(replayed[-1], clean) < 1e-5
        path = NoisedPath(pipe.backbone.schedule(MethodSettings(num_inference_steps=steps)), clean, batch.noise)
        assert max(far(path.at(step), replayed[step]) for step in range(steps + 1)) < 1e-4
        guidance = 5.0
        assert far(ddpm.replay(inverted[0], predict)[-1], clean) > 1e-3, "the noise depends on words and guidance"

        # What scenes need, recorded while the sampler replays the inversion, and by the sweep.
        masks = {level: torch.rand(len(captions), grid.tokens) < 0.5 for level, grid in request.grids.items()}
        caches = []
        for source in (ddpm, None):
            anchors = GivenAnchors(request, masks)
            if source is None:
                sweep(network, path, request, anchors)
            else:
                started = dataclasses.replace(request, batch=dataclasses.replace(batch, latents=inverted[0]))
                Sampler(network, source, started, anchors).sample()
            caches.append(anchors.recorded(masks, torch.float32))
    assert caches[1].keys() <= caches[0].keys(), "pass 2 of the replay is the same once more"
    for name, tensor in caches[1].items():
        torch.testing.assert_close(tensor, caches[0][name], atol=1e-3, rtol=1e-3)


def test_a_replayed_inversion_leaves_what_the_sweep_does(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    check_inversion(pipe, 10, "epsilon", CAPTIONS, subject.images)


@pytest.mark.slow
def test_a_hundred_steps_of_the_bundled_model_do_too() -> None:
    pipe = ConsiStoryPipeline.from_pretrained("miniature", device="cpu")
    clean = pipe.backbone.encode_pictures(as_pixels([drawn(1, 64)]))
    check_inversion(pipe, 100, "v_prediction", ["a drawing of a cat in the forest"], clean)


def far(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def as_pixels(pictures: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255


# What such a subject depends on ---------------------------------------------------------------------------------------


def test_a_picture_leaves_the_same_whatever_stands_beside_it(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    alone = pipe.create_subject(CAPTIONS[1:], "cat", SEEDS[1:], images=PICTURES[1:], **QUICK)
    for level in ("coarse", "fine"):
        assert torch.equal(alone.masks[level][0], subject.masks[level][1])
    for step in range(1, 10):
        for level, shared in alone.cache.shared(Pass(1, step)).items():
            count = shared.shape[2]
            of_both = subject.cache.shared(Pass(1, step))[level]
            assert 0 < count < of_both.shape[2]
            torch.testing.assert_close(shared, of_both[:, :, -count:], atol=1e-4, rtol=1e-4)
    count = len(alone.cache.features)
    torch.testing.assert_close(alone.cache.features, subject.cache.features[-count:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.cache.injected(2), subject.cache.injected(2)[:, -count:], atol=1e-4, rtol=1e-4)


def test_steps_of_a_path_may_be_asked_for_in_any_order(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    def noise(step: int | None) -> Tensor:
        return torch.stack([seeded_noise(seed, (4, 16, 16), step) for seed in SEEDS])

    path = NoisedPath(pipe.backbone.schedule(MethodSettings(num_inference_steps=10)), subject.images, noise)
    forwards, backwards = ([path.at(step) for step in order] for order in (range(11), range(10, -1, -1)))
    assert all(torch.equal(*pair) for pair in zip(forwards, backwards[::-1], strict=True))
    noises = torch.stack([noise(step)[0].flatten() for step in range(10)])
    assert torch.corrcoef(noises).fill_diagonal_(0).abs().max() < 0.2, "every step has noise of its own"


def test_seeds_decide_noise_and_dropout_and_may_be_left_out(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    again = pipe.create_subject(CAPTIONS, "cat", SEEDS, images=PICTURES, **QUICK).cache
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in subject.cache.tensors.items())
    unsaid = pipe.create_subject(CAPTIONS, "cat", images=PICTURES, **QUICK).cache
    first = pipe.create_subject(CAPTIONS, "cat", [0, 1], images=PICTURES, **QUICK).cache
    assert unsaid.seeds == first.seeds == (0, 1)
    assert all(torch.equal(tensor, first.tensors[name]) for name, tensor in unsaid.tensors.items())
    assert not torch.equal(first.positions(Pass(1, 5))["fine"], again.positions(Pass(1, 5))["fine"])  # type: ignore[index]


def test_a_given_mask_wins_over_the_found_one(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    for mask in (MASK, Image.fromarray(MASK), Image.fromarray(MASK.astype(np.uint8) * 255)):
        given = pipe.create_subject(CAPTIONS, "cat", SEEDS, images=PICTURES, masks=[None, mask], **QUICK)
        for level, side in (("coarse", 4), ("fine", 8)):
            small = MASK.reshape(side, 32 // side, side, 32 // side).mean(axis=(1, 3)) >= 0.5
            assert torch.equal(given.masks[level][1], torch.from_numpy(small))
            assert torch.equal(given.masks[level][0], subject.masks[level][0])
        kept = given.cache.positions(Pass(1, 4))
        assert kept is not None
        of_second = kept["fine"][kept["fine"] >= 64] - 64
        assert len(of_second) and given.masks["fine"][1].flatten()[of_second.long()].all()
        assert len(given.cache.features) == int(given.masks["fine"].sum())


def test_pictures_of_other_kinds_and_sizes_are_fitted(pipe: ConsiStoryPipeline) -> None:
    wide = drawn(3, 96).resize((96, 64))
    cut_out = drawn(1).copy()
    cut_out.putalpha(Image.fromarray(MASK.astype(np.uint8) * 255))
    pictures = [wide, cut_out, np.asarray(drawn(1, 64)), np.asarray(drawn(1)) / 255]
    made = pipe.create_subject(["a cat"] * 4, "cat", images=pictures, settings=SETTINGS)
    assert all(picture.size == (32, 32) and picture.mode == "RGB" for picture in made.images)
    assert made.images[0].tobytes() == wide.resize((32, 32), 1, box=(16, 0, 80, 64)).tobytes()
    assert made.images[3].tobytes() == drawn(1).tobytes()
    small = MASK.reshape(8, 4, 8, 4).mean(axis=(1, 3)) >= 0.5
    assert torch.equal(made.masks["fine"][1], torch.from_numpy(small)), "what is opaque is the subject"
    assert np.asarray(made.images[1])[0, 0].tolist() == [255] * 3
    with_mask = pipe.create_subject(["a cat"], "cat", images=[wide], masks=[np.tile(MASK, (2, 3))], settings=SETTINGS)
    assert with_mask.masks["fine"].any() and not with_mask.masks["fine"].all()
    tiny = pipe.create_subject(["a cat"], "cat", images=[drawn(1, 16)], settings=SETTINGS)
    assert "enlarged" in tiny.notices[0]


def test_a_mask_smaller_than_a_token_marks_one(pipe: ConsiStoryPipeline) -> None:
    dot = np.zeros((32, 32), bool)
    dot[13, 21] = True
    given = pipe.create_subject(CAPTIONS[:1], "cat", images=PICTURES[:1], masks=[dot], **QUICK)
    assert given.masks["coarse"].nonzero().tolist() == [[0, 1, 2]]
    assert given.masks["fine"].nonzero().tolist() == [[0, 3, 5]]
    assert pipe.render(SCENES[:1], given, [3], output_type="latent").images.isfinite().all()


def test_pictures_decide_the_scenes_from_memory_and_from_a_file_alike(
    pipe: ConsiStoryPipeline, subject: SubjectResult, tmp_path: Any
) -> None:
    subject.cache.save(tmp_path / "cat.safetensors")
    loaded = AnchorCache.load(tmp_path / "cat.safetensors")
    assert loaded.pictures == subject.cache.pictures and len(set(loaded.pictures)) == 2
    scenes = pipe.render(SCENES, subject, [3, 4], output_type="latent").images
    assert torch.equal(pipe.render(SCENES, loaded, [3, 4], output_type="latent").images, scenes)
    other = pipe.create_subject(CAPTIONS, "cat", SEEDS, images=[drawn(5), PICTURES[1]], **QUICK)
    assert other.cache.pictures[0] != loaded.pictures[0] and other.cache.pictures[1] == loaded.pictures[1]
    assert far(pipe.render(SCENES, other, [3, 4], output_type="latent").images, scenes) > 1e-2
    vanilla = pipe.render_vanilla(SCENES, [3, 4], settings=SETTINGS, output_type="latent").images
    assert far(vanilla, scenes) > 1e-2


def test_the_size_of_its_cache_is_foreseen(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    fraction = float(subject.masks["fine"].float().mean())
    config, shape = dict(pipe.pipe.unet.config), {"dtype": "float32", "vae_scale_factor": 2}
    estimate = estimate_cache_bytes(config, SETTINGS, 2, fraction, **shape, given=True)  # type: ignore[arg-type]
    assert estimate == pytest.approx(subject.cache.to_buffer().nbytes, rel=0.1)
    assert estimate < estimate_cache_bytes(config, SETTINGS, 2, fraction, **shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("switch", ["sdsa", "injection"])
def test_parts_of_the_method_can_be_left_out(pipe: ConsiStoryPipeline, subject: SubjectResult, switch: str) -> None:
    without = pipe.create_subject(CAPTIONS, "cat", SEEDS, images=PICTURES, **QUICK, **{switch: False})
    kinds = {name.split(".", 2)[-1].split(".")[0] for name in without.cache.tensors if name.startswith("pass")}
    assert kinds == ({"injected"} if switch == "sdsa" else {"shared", "positions"})
    scenes = pipe.render(SCENES[:1], without, [3], output_type="latent").images
    assert far(scenes, pipe.render(SCENES[:1], subject, [3], output_type="latent").images) > 1e-3


def test_output_types_progress_and_trace(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    told: list[tuple[int, int]] = []
    trace = Trace()
    options = {"settings": SETTINGS, "images": PICTURES, "seeds": SEEDS}
    shown = pipe.create_subject(CAPTIONS, "cat", **options, trace=trace, progress=lambda *at: told.append(at))  # type: ignore[arg-type]
    assert [picture.tobytes() for picture in shown.images] == [picture.tobytes() for picture in PICTURES]
    assert told == [(done + 1, 14) for done in range(14)]
    arrays = pipe.create_subject(CAPTIONS, "cat", **options, output_type="np").images  # type: ignore[arg-type]
    assert np.array_equal((arrays * 255).round().astype(np.uint8)[1], np.asarray(PICTURES[1]))
    assert torch.equal(trace.latents[1, 9], subject.images) and trace.dift is not None
    assert trace.prompt_embeds is not None and len(trace.timesteps) == 10


def test_one_picture_and_eight(pipe: ConsiStoryPipeline) -> None:
    for count in (1, 8):
        pictures = [drawn(seed) for seed in range(count)]
        made = pipe.create_subject(["a cat"] * count, "cat", images=pictures, settings=SETTINGS, num_inference_steps=2)
        assert made.cache.anchors == count == len(made.cache.pictures)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pipe: ConsiStoryPipeline, tmp_path: Any, dtype: torch.dtype) -> None:
    theirs = make_diffusers_pipeline(tmp_path).to(dtype)
    theirs.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    half, pixels = ConsiStoryPipeline(theirs), as_pixels(PICTURES)
    exact = pipe.backbone.encode_pictures(pixels)
    mean, std = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1), torch.arange(1.0, 5.0).view(1, 4, 1, 1)
    scale = pipe.pipe.vae.config.scaling_factor
    expected = (exact / scale - mean) / std * scale
    torch.testing.assert_close(half.backbone.encode_pictures(pixels), expected, atol=1e-2, rtol=1e-2)
    made = half.create_subject(CAPTIONS, "cat", SEEDS, images=PICTURES, settings=SETTINGS)
    assert made.cache.dtype == str(dtype).removeprefix("torch.")
    assert np.isfinite(half.render(SCENES, made, [3, 4], output_type="np").images).all()
    assert {parameter.dtype for parameter in theirs.vae.parameters()} == {dtype}


def test_a_vae_that_overflows_in_half_precision_encodes_in_single(
    pipe: ConsiStoryPipeline, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = make_diffusers_pipeline(tmp_path).to(torch.float16)
    theirs.vae.register_to_config(force_upcast=False)
    encode, dtypes = theirs.vae.encode, []

    def overflowing(picture: Tensor) -> Any:
        dtypes.append(picture.dtype)
        found = encode(picture)
        found.latent_dist.mean *= torch.inf if picture.dtype == torch.float16 else 1
        return found

    monkeypatch.setattr(theirs.vae, "encode", overflowing)
    found = ConsiStoryPipeline(theirs).backbone.encode_pictures(as_pixels(PICTURES[:1]))
    assert dtypes == [torch.float16, torch.float32]
    torch.testing.assert_close(found, pipe.backbone.encode_pictures(as_pixels(PICTURES[:1])), atol=1e-2, rtol=1e-2)


def test_another_kind_of_model_takes_pictures_too() -> None:
    second = ConsiStoryPipeline(SecondBackbone(), SETTINGS.replace(freeu=None))
    pictures = [drawn(seed, 16) for seed in (1, 2)]
    made = second.create_subject(CAPTIONS, "cat", SEEDS, images=pictures, output_type="latent")
    assert torch.equal(made.images, 2 * as_pixels(pictures) - 1)
    assert 0 < made.masks["patches"].float().mean() < 1
    scenes = second.render(SCENES, made, [3, 4], output_type="latent").images
    assert far(scenes, second.render_vanilla(SCENES, [3, 4], output_type="latent").images) > 1e-3


# What is told, and what is refused ------------------------------------------------------------------------------------


def test_a_mask_elsewhere_than_the_subject_is_told(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    elsewhere = ~subject.masks["fine"][0].repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
    there = subject.masks["fine"][1].repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
    told = pipe.create_subject(CAPTIONS, "cat", SEEDS, images=PICTURES, masks=[elsewhere, there], **QUICK).notices
    assert list(told) == [0] and "the given mask" in told[0]


def test_a_picture_in_which_the_subject_is_not_found(pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: AttentionMaps, grids: Any) -> Any:
        masks = masks_of(self, grids)
        masks["fine"][1] = False
        return masks

    masks_of = AttentionMaps.masks
    monkeypatch.setattr(AttentionMaps, "masks", nothing)
    with pytest.raises(PictureError, match=r"picture 1: the subject was not found .* give a mask") as caught:
        pipe.create_subject(CAPTIONS, "cat", images=PICTURES, **QUICK)
    assert list(caught.value.failures) == [1] and caught.value.result.masks["fine"].any(dim=(1, 2)).tolist() == [
        True,
        False,
    ]
    pipe.create_subject(CAPTIONS, "cat", images=PICTURES, masks=[None, MASK], **QUICK)


def test_masks_that_do_not_agree_are_told(pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttentionMaps, "agreement", lambda self: torch.tensor([0.95, 0.5]))
    told = pipe.create_subject(CAPTIONS, "cat", images=PICTURES, **QUICK).notices
    assert list(told) == [1] and "unclear" in told[1]
    assert not pipe.create_subject(CAPTIONS, "cat", images=PICTURES, masks=[None, ~MASK | MASK], **QUICK).notices


def test_agreement_is_one_where_all_steps_find_the_same() -> None:
    maps = AttentionMaps(torch.ones(2, 1, 1), 3, "patches")
    bright = torch.zeros(2, 1, 16)
    bright[:, :, :4] = 1
    for step in range(3):
        own = bright.clone()
        own[1] = own[1].roll(4 * step, dims=-1)  # in the second image it is somewhere else at every step
        maps._steps.append(own.transpose(1, 2))
    first, second = maps.agreement().tolist()
    assert first == 1 and second < 0.5


def test_numbers_that_are_not_finite(pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflown(self: Any, pictures: Tensor) -> Tensor:
        return torch.full((2, 4, 16, 16), torch.inf)

    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.backbone), "encode_pictures", overflown)
        with pytest.raises(AssetError, match="not finite"):
            pipe.create_subject(CAPTIONS, "cat", images=PICTURES, **QUICK)
    weight = pipe.pipe.unet.conv_out.weight
    monkeypatch.setattr(weight, "data", torch.full_like(weight, torch.nan))
    with pytest.raises(AssetError, match="not finite"):
        pipe.create_subject(CAPTIONS, "cat", images=PICTURES, **QUICK)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"images": []}, "images"),
        ({"images": [drawn(1)]}, "images"),
        ({"images": [drawn(1)] * 9}, "images"),
        ({"masks": [MASK]}, "masks"),
        ({"masks": [MASK, MASK[:8]]}, r"masks\[1\]"),
        ({"masks": [np.zeros((32, 32), bool), None]}, r"masks\[0\]"),
        ({"images": [PICTURES[0], np.zeros((32, 32, 2))]}, r"images\[1\]"),
        ({"images": [np.zeros((32, 32, 3)) - 1, PICTURES[1]]}, r"images\[0\]"),
        ({"images": ["mia.png", "mia.png"]}, r"images\[0\]"),
        ({"images": [Image.new("RGBA", (32, 32)), PICTURES[1]]}, r"images\[0\]"),
        ({"latents": torch.zeros(2, 4, 16, 16)}, "latents"),
        ({"seeds": [1]}, "seeds"),
        ({"images": None, "seeds": SEEDS, "masks": [MASK, None]}, "masks"),
    ],
)
def test_arguments_that_do_not_fit(pipe: ConsiStoryPipeline, change: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError, match=where):
        pipe.create_subject(CAPTIONS, "cat", **{"images": PICTURES, **QUICK, **change})


def test_captions_have_to_name_the_concept(pipe: ConsiStoryPipeline) -> None:
    with pytest.raises(PromptError):
        pipe.create_subject(["a dog", "a cat"], "cat", images=PICTURES, **QUICK)
