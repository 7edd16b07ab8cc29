"""The slow implementation against numbers of an independent run of the published method.

They lie in a folder beside the repository (or in ``CONSISTORY_REFERENCE``); without it these tests are skipped.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from tests.consistory import slow_reference as slow

REFERENCE = Path(os.environ.get("CONSISTORY_REFERENCE") or Path(__file__).parents[3] / "shared" / "reference")
CASES = ("anchor2_d0", "extra1a_d0", "batch2_two_concepts", "batch2_noquery", "batch2_nosdsa")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REFERENCE / "cases").is_dir(), reason=f"no reference numbers in {REFERENCE}"),
]


@functools.cache
def reference_pipeline() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(REFERENCE / "model", torch_dtype=torch.float32)


def load_case(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    settings = json.loads((REFERENCE / "cases" / f"{name}.json").read_text())
    with np.load(REFERENCE / "cases" / f"{name}.npz") as arrays:
        return settings, dict(arrays)


@functools.lru_cache(maxsize=2)  # a scene's anchors are there when it comes right after them; each holds 0.5 GB
def render_slowly(name: str) -> slow.Pictures:
    """The case's pictures."""
    case, arrays = load_case(name)
    options = slow.Options(
        num_inference_steps=case["num_inference_steps"],
        guidance_scale=case["guidance_scale"],
        sdsa=case["sdsa"],
        query_blending=case["query_blending"],
        injection=case["injection"],
        freeu=case["freeu"] and tuple(case["freeu"]),
    )
    latents = torch.from_numpy(arrays["init_latents"]).float()
    pipe, prompts, concepts = reference_pipeline(), case["prompts"], case["concepts"]
    if case["subject"]:
        anchors = render_slowly(case["subject"]).anchors
        return slow.render_scenes(pipe, prompts, concepts, latents, options, anchors)
    return slow.render_anchors(pipe, prompts, concepts, latents, options)


def difference(ours: Tensor, theirs: np.ndarray) -> tuple[float, float]:
    """Largest and root mean square difference."""
    delta = ours.double().numpy() - theirs.astype(np.float64)
    return float(np.abs(delta).max()), float(np.sqrt((delta**2).mean()))


def equal_share(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float((ours == theirs).mean())


@pytest.mark.parametrize("name", CASES)
def test_slow_reference_gives_the_published_methods_numbers(name: str) -> None:
    case, arrays = load_case(name)
    pictures = render_slowly(name)
    steps = case["num_inference_steps"]
    report = []

    def check(what: str, ok: bool, numbers: str) -> None:
        report.append((ok, f"{'ok  ' if ok else 'FAIL'} {what}: {numbers}"))

    scheduler = reference_pipeline().scheduler
    scheduler.set_timesteps(steps)
    check("timesteps", scheduler.timesteps.tolist() == case["timesteps"], str(scheduler.timesteps.tolist()))
    for number, (result, largest, rms) in enumerate(
        [(pictures.pass1, 1e-3, 1e-3), (pictures.pass2, 1e-2, 1e-3)], start=1
    ):
        prefix, stride = f"pass{number}", case["latent_stride"]
        # queries are only blended with a vanilla call's where SDSA is on; the reference made those calls regardless
        check(f"{prefix} calls", result.unet_calls == case["unet_calls"][f"p{number}"], str(result.unet_calls))
        finals = [("final", result.latents[-1], arrays[f"{prefix}_final"])]
        for key in sorted(key for key in arrays if key.startswith(f"{prefix}_latents_")):
            finals.append((key, result.latents[int(key[-2:])][..., ::stride, ::stride], arrays[key]))
        for what, ours, theirs in finals:
            by_max, by_rms = difference(ours, theirs)
            check(f"{prefix} {what}", by_max < largest and by_rms < rms, f"max {by_max:.2e} rms {by_rms:.2e}")
        for level in ("coarse", "fine"):
            theirs = np.unpackbits(arrays[f"{prefix}_mask_{level}"], axis=-1).astype(bool)
            check(f"{prefix} no {level} masks at step 0", not theirs[0].any(), "")
            ours = np.stack([masks[level].numpy() for masks in result.masks[1:]])
            share = equal_share(ours, theirs[1:])
            check(f"{prefix} {level} masks", share >= 0.999, f"{share:.5f} equal, {theirs[1:].mean():.3f} set")
        for when, maps in (("first", result.maps[0]), ("last", result.maps[-1])):
            ours_maps = torch.stack([one for of_image in maps for one in of_image])
            by_max, _ = difference(ours_maps, arrays[f"{prefix}_map_{when}"])
            scale = float(arrays[f"{prefix}_map_{when}"].max())
            # ten times more in pass 2, as for latents: a few flipped mask bits reach it through injection
            bound = (1e-3 if prefix == "pass1" else 1e-2) * scale
            check(f"{prefix} {when} map", by_max < bound, f"max {by_max:.2e} of {scale:.2e}")

    assert pictures.pass1.dift is not None
    by_max, by_rms = difference(pictures.pass1.dift[..., ::2, ::2], arrays["dift_stride2"])
    scale = float(np.abs(arrays["dift_stride2"]).max())
    check("dift", by_max < 1e-3 * scale, f"max {by_max:.2e} rms {by_rms:.2e} of {scale:.2e}")
    for image, of_image in enumerate(pictures.source_index):
        for a, index in enumerate(of_image):
            distance = pictures.source_distance[image][a]
            if index is None or distance is None:
                continue
            share = equal_share(index.numpy(), arrays["source_index_fine"][image, a].astype(np.int64))
            by_max, by_rms = difference(distance, arrays["source_distance_fine"][image, a])
            check(
                f"sources of {image} in {a}", share >= 0.999 and by_rms < 1e-3, f"{share:.5f} equal, rms {by_rms:.2e}"
            )

    print(name, *(line for _, line in report), sep="\n")
    assert all(ok for ok, _ in report), f"{name} differs:\n" + "\n".join(line for _, line in report)
