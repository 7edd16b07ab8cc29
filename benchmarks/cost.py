"""What does consistency cost? FLOPs, wall-clock time and cache bytes of a scene, against a vanilla picture.

    python benchmarks/cost.py            # SDXL's topology at 1024 px, 50 steps: some minutes of one core, 2 GB
    python benchmarks/cost.py --quick    # a small topology with the same block layout: half a minute
    python benchmarks/cost.py --full     # also build SDXL with random weights and measure the cache for real: 9 GB

*FLOPs* are counted by ``torch.utils.flop_counter`` (2 per multiplication and addition, of convolutions, matrix products
and attention; the fused CPU kernel that it leaves out is added) while the package itself renders two anchors and one
scene, all steps of both passes, as it would in earnest. Nothing is approximated: only the numbers inside the large
tensors are left out (``hollow_tensors.py``). Masks are set to a quarter of each picture; dropout is drawn as always.
Everything is counted, correspondences and attention maps too, except the autoencoder and all but two layers of the text
encoders. Vanilla is a stock diffusers call of the UNet with classifier-free guidance, once per step.

The *naive* way is every call made in full: two whole passes, a vanilla call at each blended step of both (112 calls at
50 steps), the anchors' tokens projected and attended to in every call but the vanilla ones and the first of each pass.

*Time* is that of a scene against a vanilla picture of the same model, side by side, autoencoder included: the bundled
miniature where it is installed, else a small random model. What bounds it is arithmetic, like the FLOPs, plus the
attention maps and masks, which small pictures feel more.

*Cache* bytes are those of the ``AnchorCache`` that the counted anchors left, in half precision. ``--full`` compares
them, kind by kind, with those of a few steps on real random weights, extrapolated over the steps.

The last line of stdout is JSON:

    scene_flops_ratio     a scene over a vanilla picture; scene_flops_ratio_strict over the package's own vanilla call,
                          which computes text keys and values once and not at every step
    naive_flops_ratio     the same for the naive way
    anchors_flops_ratio   two anchors over a vanilla batch of two
    led_flops_ratio       a scene that a ControlNet of the model's own size leads at every step, over one without
    device, dtype         of what is timed (--device, --dtype); counts are the same on all of them
    wall_ratio            seconds of a scene over seconds of a vanilla picture; scene_decodes: autoencoder calls
    sdxl_cache_gb         10^9 bytes of a two-anchor cache; sdxl_cache_estimate_gb: the package's forecast
    profiles              by name: cache_gb and cache_estimate_gb of a cache packed for it, and of other codecs the
                          forecast, codecs_gb. ``--bytes`` prints the forecasts alone: a second
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.hollow_tensors import HollowExecution, count_flops, hollow_out
from benchmarks.model_options import add_device_options, chosen_device, chosen_dtype, described, say, synchronise
from benchmarks.random_sdxl import QUICK, SDXL, Topology, build_pipeline, build_unet
from benchmarks.result_stamp import stamped
from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, ControlHint, estimate_cache_bytes
from consistory_ray.consistory.cache.contents import packed_for
from consistory_ray.consistory.method.layout import Grid, Level
from consistory_ray.consistory.method.masks import AttentionMaps
from consistory_ray.guards.choices import CacheCodec
from consistory_ray.settings import PROFILES, MethodSettings

ANCHORS = ("a cat in the garden", "a cat on the beach")
SCENE = ("a cat in the snow",)
CONCEPT = "cat"
MASK_FRACTION = 0.25


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small topology in place of SDXL's, and fewer steps")
    parser.add_argument("--bytes", action="store_true", help="forecast the cache of each profile, and nothing else")
    parser.add_argument("--full", action="store_true", help="measure the cache on real random SDXL weights too")
    parser.add_argument("--steps", type=int, help="denoising steps that are counted (50; 10 with --quick)")
    parser.add_argument("--full-steps", type=int, default=2, help="denoising steps of --full")
    parser.add_argument("--repeats", type=int, help="pairs of pictures that are timed (3; 1 with --quick)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--wall-model", help="a pipeline folder to time, in place of the miniature")
    add_device_options(parser)
    return parser.parse_args(arguments)


@contextmanager
def masks_of_a_quarter() -> Iterator[None]:
    """Subject masks that cover the quarter of every picture between its edges' first and third quarters."""

    def masks(maps: AttentionMaps, grids: Mapping[Level, Grid]) -> dict[Level, Tensor]:
        maps.mean()  # fails, as the real thing does, where no maps were recorded
        found: dict[Level, Tensor] = {}
        for level, grid in grids.items():
            shape = maps.columns.shape[0], grid.height, grid.width
            mask = torch.zeros(shape, dtype=torch.bool, device=maps.columns.device)
            mask[:, grid.height // 4 : -(grid.height // 4), grid.width // 4 : -(grid.width // 4)] = True
            found[level] = mask.flatten(1)
        return found

    with mock.patch.object(AttentionMaps, "masks", masks):
        yield


# FLOPs ----------------------------------------------------------------------------------------------------------------


class NaiveSharing(AttnProcessor2_0):
    """Stock attention to a picture's own tokens and ``extra`` cached ones, projected anew in every call."""

    def __init__(self, extra: Tensor) -> None:
        self.extra = extra

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the projected attention output, [rows, tokens, channels]."""
        keys = torch.cat([hidden_states, self.extra], dim=1)

        def split(tensor: Tensor) -> Tensor:
            return tensor.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        query, key, value = (split(part) for part in (attn.to_q(hidden_states), attn.to_k(keys), attn.to_v(keys)))
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[0](found)
        return projected


def stock_call_flops(topology: Topology, unet: UNet2DConditionModel, images: int, kept_share: float = 0.0) -> int:
    """FLOPs of a plain diffusers UNet call on ``images`` pictures with classifier-free guidance.

    Args:
        topology: of the UNet.
        unet: hollow.
        images: how many pictures.
        kept_share: tokens of both anchors together that ``up`` self-attention also sees, over a picture's tokens.
    """
    rows, size, before = 2 * images, topology.latent_size, dict(unet.attn_processors)
    processors: dict[str, Any] = dict(before)
    for name in before:
        if kept_share and name.startswith("up_blocks") and "attn1" in name:
            depth = 2 - int(name.split(".")[1])  # up_blocks.0 is coarse, up_blocks.1 fine
            extra = round(kept_share * (size // 2**depth) ** 2)
            processors[name] = NaiveSharing(torch.zeros(rows, extra, topology.channels[depth], dtype=unet.dtype))
    unet.set_attn_processor(processors)
    added = {
        "text_embeds": torch.zeros(rows, topology.text_widths[1], dtype=unet.dtype),
        "time_ids": torch.zeros(rows, 6, dtype=unet.dtype),
    }
    text = torch.zeros(rows, 77, sum(topology.text_widths), dtype=unet.dtype)
    with torch.no_grad(), HollowExecution(), count_flops() as counter:
        unet(torch.zeros(rows, 4, size, size, dtype=unet.dtype), torch.tensor(5.0), text, added_cond_kwargs=added)
    unet.set_attn_processor(before)
    return int(counter.get_total_flops())


def hollow_pipeline(topology: Topology) -> ConsiStoryPipeline:
    """A pipeline whose UNet is of full size and takes no memory."""
    with torch.device("meta"):
        unet = build_unet(topology)
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    unet, control = (hollow_out(network, torch.bfloat16) for network in (unet, control))
    return ConsiStoryPipeline(build_pipeline(topology, unet, torch.bfloat16), controlnets=[control])


@contextmanager
def rendering(hollow: bool = True) -> Iterator[None]:
    """Masks are a quarter of what is rendered inside; its computation is left out if ``hollow``."""
    with HollowExecution() if hollow else nullcontext(), masks_of_a_quarter():
        yield


@contextmanager
def counting(hollow: bool = True) -> Iterator[FlopCounterMode]:
    """The same, and count it."""
    with rendering(hollow), count_flops() as counter:
        yield counter


def zero_latents(pipe: ConsiStoryPipeline, images: int) -> Tensor:
    """Initial noise that is none, of the model's own size."""
    size = pipe.pipe.unet.config.sample_size
    return torch.zeros(images, 4, size, size)


def led_flops(pipe: ConsiStoryPipeline, cache: AnchorCache) -> int:
    """FLOPs of one scene that a hint leads at every step."""
    side = pipe.pipe.unet.config.sample_size * pipe.pipe.vae_scale_factor
    hint = ControlHint(Image.new("RGB", (side, side)))
    with counting() as counter:
        pipe.render(SCENE, cache, latents=zero_latents(pipe, 1), controls=[hint], output_type="latent")
    return int(counter.get_total_flops())


def anchors_flops(pipe: ConsiStoryPipeline, settings: MethodSettings, hollow: bool = True) -> tuple[int, AnchorCache]:
    """FLOPs of two anchors, and their cache."""
    with counting(hollow) as counter:
        cache = anchor_cache(pipe, settings)
    return int(counter.get_total_flops()), cache


def anchor_cache(pipe: ConsiStoryPipeline, settings: MethodSettings) -> AnchorCache:
    """Render two anchors."""
    latents = zero_latents(pipe, len(ANCHORS))
    return pipe.create_subject(ANCHORS, CONCEPT, [1, 2], latents=latents, settings=settings, output_type="latent").cache


def scene_flops(
    pipe: ConsiStoryPipeline, cache: AnchorCache, settings: MethodSettings | None = None, hollow: bool = True
) -> int:
    """FLOPs of one scene.

    Args:
        pipe: with a hollow UNet, or a real one if not ``hollow``.
        cache: of its subject.
        settings: what is saved on it; as the cache's say if None.
        hollow: leave out the computation.
    """
    with counting(hollow) as counter:
        pipe.render(SCENE, cache, latents=zero_latents(pipe, 1), settings=settings, output_type="latent")
    return int(counter.get_total_flops())


def vanilla_flops(pipe: ConsiStoryPipeline, settings: MethodSettings, hollow: bool = True) -> int:
    """FLOPs of one picture without the method, with what the settings save on such pictures too."""

    def count(steps: int) -> int:
        some = settings.replace(num_inference_steps=steps)
        with counting(hollow) as counter:
            pipe.render_vanilla(SCENE, latents=zero_latents(pipe, 1), settings=some, output_type="latent")
        return int(counter.get_total_flops())

    steps = settings.num_inference_steps
    if settings.exact != settings:
        return count(steps)
    first, two = count(1), count(2)  # from the second step on all are alike
    return first + (steps - 1) * (two - first)


def rendered_flops(
    pipe: ConsiStoryPipeline, settings: MethodSettings, hollow: bool = True
) -> tuple[int, int, int, AnchorCache]:
    """FLOPs of two anchors, of one scene and of one vanilla picture as the package renders them, and the cache.

    Args:
        pipe: with a hollow UNet, or a real one if not ``hollow``: the counts are the same.
        settings: what is rendered.
        hollow: leave out the computation.
    """
    anchors, cache = anchors_flops(pipe, settings, hollow)
    return anchors, scene_flops(pipe, cache, hollow=hollow), vanilla_flops(pipe, settings, hollow), cache


def forecast_bytes(unet_config: Mapping[str, Any], settings: MethodSettings) -> dict[str, dict[str, Any]]:
    """What the package expects of a half-precision cache of each profile, in 10^9 bytes."""

    def gigabytes(profile: MethodSettings) -> float:
        size = estimate_cache_bytes(unet_config, profile, len(ANCHORS), MASK_FRACTION, dtype="bfloat16")
        return round(size / 1e9, 4)

    found: dict[str, dict[str, Any]] = {}
    for name in PROFILES:
        made = settings.with_profile(name)
        codecs = {codec: gigabytes(made.replace(cache_codec=codec)) for codec in get_args(CacheCodec)}
        found[name] = {"cache_estimate_gb": gigabytes(made), "codecs_gb": codecs}
    return found


def packed_bytes_of(cache: AnchorCache, settings: MethodSettings) -> dict[str, float]:
    """10^9 bytes of a hollow cache as it is packed for each profile."""
    with HollowExecution():
        sizes = {name: packed_for(cache, settings.with_profile(name)).nbytes for name in PROFILES}
    return {name: round(size / 1e9, 4) for name, size in sizes.items()}


def flops_and_bytes(topology: Topology, settings: MethodSettings) -> dict[str, Any]:
    """The ratios of the module's docstring, and the cache's size."""
    pipe, steps = hollow_pipeline(topology), settings.num_inference_steps
    unet = pipe.pipe.unet
    say(f"counting: {sum(p.numel() for p in unet.parameters()) / 1e9:.2f} B parameters, {steps} steps")
    call, pair_call = (stock_call_flops(topology, unet, images) for images in (1, 2))
    kept_share = len(ANCHORS) * MASK_FRACTION * (1 - settings.mask_dropout)
    sharing_call = stock_call_flops(topology, unet, 1, kept_share)
    blended = settings.last_blended_step + 1
    anchors, scene, vanilla, cache = rendered_flops(pipe, settings)
    naive = 2 * (blended + 1) * call + 2 * (steps - 1) * sharing_call
    estimate = estimate_cache_bytes(unet.config, settings, len(ANCHORS), MASK_FRACTION, dtype="bfloat16")
    profiles = forecast_bytes(unet.config, settings)
    for name, size in packed_bytes_of(cache, settings).items():
        profiles[name]["cache_gb"] = size
    return {
        "scene_flops_ratio": scene / (steps * call),
        "scene_flops_ratio_strict": scene / vanilla,
        "naive_flops_ratio": naive / (steps * call),
        "anchors_flops_ratio": anchors / (steps * pair_call),
        "led_flops_ratio": led_flops(pipe, cache) / scene,
        "vanilla_tflops_per_call": call / 1e12,
        "sharing_call_over_vanilla_call": sharing_call / call,
        "sdxl_cache_gb": cache.nbytes / 1e9,
        "sdxl_cache_estimate_gb": estimate / 1e9,
        "profiles": profiles,
    }


# Wall clock -----------------------------------------------------------------------------------------------------------


def wall_pipeline(
    model: str | None, quick: bool, device: torch.device, dtype: torch.dtype
) -> tuple[str, ConsiStoryPipeline]:
    """What is timed, with its name."""
    if not quick or model:
        from consistory_ray.errors import CheckpointError

        try:
            name = model or "miniature"
            return name, ConsiStoryPipeline.from_pretrained(name, torch_dtype=dtype, device=device)
        except (CheckpointError, FileNotFoundError):
            if model:
                raise
            say("the miniature is not installed: timing a random model")
    torch.manual_seed(0)
    return "random", ConsiStoryPipeline(build_pipeline(QUICK, build_unet(QUICK).to(dtype), dtype).to(device))


def wall_clock(name: str, pipe: ConsiStoryPipeline, steps: int, repeats: int) -> dict[str, Any]:
    """Seconds of scenes and of vanilla pictures, taken in turns after one of each to warm up."""
    if name == "random":  # says little, so let it take little
        steps, repeats = min(steps, 4), 1
    settings = pipe.default_settings.replace(num_inference_steps=steps)
    # words that any tokenizer knows; the miniature's world has dragons
    words = "dragon" if name == "miniature" else CONCEPT
    anchors, scene = [[text.replace(CONCEPT, words) for text in texts] for texts in (ANCHORS, SCENE)]
    subject = pipe.create_subject(anchors, words, [1, 2], settings=settings)
    seconds: dict[str, list[float]] = {"scene": [], "vanilla": []}
    decodes = 0
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        pipe.render_vanilla(scene, [repeat], settings=settings, output_type="np")
        synchronise(pipe.device)
        middle = time.perf_counter()
        with mock.patch.object(pipe.pipe.vae, "decode", wraps=pipe.pipe.vae.decode) as decode:
            images = pipe.render(scene, subject.cache, [repeat], output_type="np").images
        if not 0 <= images.min() <= images.max() <= 1:
            raise RuntimeError("the timed scene is not a picture")
        synchronise(pipe.device)
        if repeat:
            seconds["vanilla"].append(middle - start)
            seconds["scene"].append(time.perf_counter() - middle)
            decodes = decode.call_count
    ratios = [a / b for a, b in zip(seconds["scene"], seconds["vanilla"], strict=True)]
    say(f"{name}: " + ", ".join(f"{key} {statistics.median(times):.2f} s" for key, times in seconds.items()))
    return {"wall_ratio": statistics.median(ratios), "wall_model": name, "scene_decodes": decodes}


# The cache, on real weights -------------------------------------------------------------------------------------------


def bytes_by_kind(cache: AnchorCache) -> tuple[Counter[str], Counter[str]]:
    """Bytes and number of a cache's tensors by kind: ``shared.coarse``, ``injected.fine``, ``features.fine``, ..."""
    size: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for name, tensor in cache.tensors.items():
        kind = name.split(".", 2)[2] if name.startswith("pass") else name
        size[kind] += tensor.numel() * tensor.element_size()
        count[kind] += 1
    return size, count


def measured_cache(topology: Topology, settings: MethodSettings, steps: int, device: torch.device) -> dict[str, float]:
    """Anchors of the real topology with random bfloat16 weights, extrapolated from ``steps`` to the settings' steps."""
    say(f"building {topology.channels} with random weights")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        unet = build_unet(topology)
    finally:
        torch.set_default_dtype(default)
    pipe = ConsiStoryPipeline(build_pipeline(topology, unet, torch.bfloat16).to(device))
    few = settings.replace(num_inference_steps=steps)
    with masks_of_a_quarter():
        start = time.perf_counter()
        cache = pipe.create_subject(ANCHORS, CONCEPT, [1, 2], settings=few, output_type="latent").cache
    size, count = bytes_by_kind(cache)
    say(f"{steps} steps of two anchors: {time.perf_counter() - start:.0f} s, {cache.nbytes / 1e9:.3f} GB, {dict(size)}")
    first, last = settings.injection_steps
    tensors = {"injected.fine": last - first + 1, "features.fine": 1, "mask.coarse": 1, "mask.fine": 1}
    shared = settings.num_inference_steps - 1 + settings.num_inference_steps - first  # pass 2 starts where it differs
    tensors |= {f"{kind}.{level}": shared for kind in ("shared", "positions") for level in ("coarse", "fine")}
    expected = sum(size[kind] / count[kind] * number for kind, number in tensors.items())
    return {"sdxl_cache_measured_gb": expected / 1e9}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print everything; returns what the last line holds."""
    options = parse_arguments(arguments)
    topology = QUICK if options.quick else SDXL
    settings = MethodSettings(num_inference_steps=options.steps or (10 if options.quick else 50))
    result: dict[str, Any] = {"topology": "quick" if options.quick else "sdxl", "steps": settings.num_inference_steps}
    if options.bytes:
        with torch.device("meta"):
            result["profiles"] = forecast_bytes(build_unet(topology).config, settings)
        print(json.dumps(result))
        return result
    result |= flops_and_bytes(topology, settings)
    device, dtype = chosen_device(options), chosen_dtype(options)
    name, pipe = wall_pipeline(options.wall_model, options.quick, device, dtype)
    result |= described(device, dtype)
    result |= wall_clock(name, pipe, settings.num_inference_steps, options.repeats or (1 if options.quick else 3))
    if options.full:
        result |= measured_cache(topology, settings, options.full_steps, device)
    told = {key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cost.json").write_text(json.dumps(stamped(told, pipe), indent=1) + "\n")
    print(json.dumps(told))
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
