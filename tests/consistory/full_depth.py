"""A compact record of the method's numbers at SDXL's full depth, to notice when a rebuilt part computes something else.

    python -m tests.consistory.full_depth                     # compare with what is kept
    python -m tests.consistory.full_depth --write             # keep what the package computes now

The model has SDXL's blocks, all 70 transformer blocks of them, at a fifth of its width; weights, latents and embeddings
are drawn by NumPy's frozen generator, so that they are the same with any version of any library. Two anchors and two
scenes are denoised in three steps at 256 px in float32, in both passes, with everything switched on: query blending at
step 1 with attention sharing, injection at steps 1 and 2, FreeU, dropout. Later steps of a random network are chaotic
and would say nothing.

What is kept of a tensor is its root mean square and its projections on a few fixed random signs, divided by the root of
its size: when a tensor moves by a root mean square of d, each projection moves by about d, in whatever direction.
Masks are kept whole. Tolerances are relative to a tensor's root mean square.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.random_sdxl import DEEP, Topology, build_pipeline, build_unet
from consistory_ray.consistory import ConsiStoryPipeline, Trace
from consistory_ray.consistory.method.attention import Queries
from consistory_ray.consistory.models.split_unet import SplitUNet
from consistory_ray.settings import MethodSettings

KEPT = Path(__file__).parent / "data" / "full_depth.json"
ANCHORS = ("a photo of a cat in the garden", "a cat on the beach")
SCENES = ("a cat in the snow at night", "a painting of a cat")
SETTINGS = MethodSettings(
    num_inference_steps=3,
    height=256,
    width=256,
    query_blend_until=0.5,
    injection_window=(0.34, 0.67),
)
NOISE = {"anchors": 1, "scenes": 3}
"""Seeds with which no token lies so near a threshold that a disturbance of 1e-5 would flip it."""
SIGNS = 4

Digest = dict[str, Any]


def fill(module: nn.Module, seed: int) -> None:
    """Uniform weights with variance 1 / fan-in; norms near 1, biases near 0, none of them exactly."""
    for name, parameter in module.named_parameters():
        draw = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
        values = draw.random_sample(parameter.numel()) * 2 - 1
        if parameter.dim() > 1:
            values *= (3 / (parameter.numel() // parameter.shape[0])) ** 0.5
        else:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        parameter.data.copy_(torch.from_numpy(values).view(parameter.shape))


def pipeline(topology: Topology = DEEP) -> ConsiStoryPipeline:
    """The model, in float32 on the CPU."""
    with torch.device("meta"):
        unet = build_unet(topology)
    pipe = build_pipeline(topology, unet.to_empty(device="cpu"), torch.float32)
    for seed, part in enumerate((pipe.unet, pipe.text_encoder, pipe.text_encoder_2)):
        fill(part, seed)
    return ConsiStoryPipeline(pipe)


def noise(images: int, side: int, seed: int) -> Tensor:
    """Initial latents, [images, 4, side, side]."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((images, 4, side, side))).float()


def summary(tensor: Tensor) -> list[float]:
    """A tensor's root mean square and its projections."""
    flat = tensor.detach().double().flatten().numpy()
    draw = np.random.RandomState(flat.size % 2**32)
    signs = draw.randint(0, 2, (SIGNS, flat.size)) * 2.0 - 1
    values = [np.sqrt(np.mean(flat**2)), *(signs @ flat / np.sqrt(flat.size))]
    return [float(f"{value:.7g}") for value in values]


def packed(mask: Tensor) -> str:
    """A mask's bits, as hexadecimal digits."""
    return bytes(np.packbits(mask.numpy().astype(bool).flatten())).hex()


@contextmanager
def vanilla_queries() -> Iterator[list[Queries]]:
    """What vanilla calls capture meanwhile, one entry a call."""
    captured: list[Queries] = []
    original = SplitUNet.vanilla_queries

    def watched(self: SplitUNet, *arguments: Any, **options: Any) -> Queries:
        captured.append(original(self, *arguments, **options))
        return captured[-1]

    with mock.patch.object(SplitUNet, "vanilla_queries", watched):
        yield captured


def traced(trace: Trace, queries: list[Queries], masks: Mapping[str, Tensor]) -> Digest:
    """The record of one render."""
    assert trace.dift is not None and trace.source_distance is not None and trace.injected is not None
    steps = sorted(trace.latents)
    return {
        "latents": {f"pass{number}.step{step}": summary(trace.latents[number, step]) for number, step in steps},
        "maps": {f"pass{number}.step{step}": summary(trace.maps[number, step]) for number, step in steps},
        "queries": {
            f"call{call}.{layer}": summary(query)
            for call, found in enumerate(queries)
            for layer, query in found.items()
        },
        "correspondences": {"dift": summary(trace.dift), "distance": summary(trace.source_distance)},
        "masks": {
            f"pass{number}.step{step}.{level}": packed(mask)
            for number, step in steps
            for level, mask in trace.masks[number, step].items()
        }
        | {f"final.{level}": packed(mask) for level, mask in masks.items()}
        | {"injected": packed(trace.injected)},
    }


def digest(pipe: ConsiStoryPipeline, settings: MethodSettings = SETTINGS, disturbance: float = 0.0) -> Digest:
    """Render and record; ``disturbance`` is added to the initial latents as noise of that size."""
    side = (settings.height or 0) // 8
    found: Digest = {}
    cache: Any = None
    for name, prompts in (("anchors", ANCHORS), ("scenes", SCENES)):
        latents = noise(len(prompts), side, NOISE[name]) + disturbance * noise(len(prompts), side, 100)
        trace = Trace()
        with vanilla_queries() as queries:
            if cache is None:
                made = pipe.create_subject(
                    ANCHORS, "cat", (1, 2), latents=latents, settings=settings, output_type="latent", trace=trace
                )
                cache, masks = made.cache, made.masks
            else:
                masks = pipe.render(SCENES, cache, latents=latents, output_type="latent", trace=trace).masks
        found[name] = traced(trace, queries, masks)
    found["cache"] = {
        key: summary(tensor) for key, tensor in cache.tensors.items() if tensor.is_floating_point() and tensor.numel()
    }
    return found


def distances(ours: Digest, kept: Digest) -> dict[str, float]:
    """How far apart two digests are: for each tensor the largest difference over its root mean square, for each mask
    the share of bits that differ."""
    assert ours.keys() == kept.keys(), f"other entries: {ours.keys() ^ kept.keys()}"
    found: dict[str, float] = {}
    for key, value in kept.items():
        mine = ours[key]
        if isinstance(value, dict):
            found |= {f"{key}/{inner}": distance for inner, distance in distances(mine, value).items()}
        elif isinstance(value, str):
            bits = [np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)) for text in (mine, value)]
            assert len(bits[0]) == len(bits[1]), f"{key} has another size"
            found[key] = float((bits[0] != bits[1]).mean())
        else:
            found[key] = float(np.abs(np.array(mine) - np.array(value)).max() / max(value[0], 1e-12))
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"keep the numbers in {KEPT.name}")
    parser.add_argument("--disturbance", type=float, default=0.0, help="noise on the latents, to see what it moves")
    options = parser.parse_args()
    started = time.perf_counter()
    found = digest(pipeline(), disturbance=options.disturbance)
    print(f"{time.perf_counter() - started:.0f} s")
    if options.write:
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(found, indent=0) + "\n")
    groups: dict[str, float] = {}
    for key, distance in distances(found, json.loads(KEPT.read_text())).items():
        group = "/".join(key.split("/")[:2]) + ("/" + key.split("/")[2].split(".up_")[0] if key.count("/") > 1 else "")
        groups[group] = max(groups.get(group, 0.0), distance)
    for group, distance in groups.items():
        print(f"{distance:.1e}  {group}")


if __name__ == "__main__":
    main()
