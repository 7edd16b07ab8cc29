"""Numbers of an independent run of the published method, and what the slow implementation makes of the same cases.

    python -m tests.consistory.published_numbers           # compare all cases: some minutes of one core
    python -m tests.consistory.published_numbers --write   # note down that this slow implementation agrees in all

They lie in a folder beside the repository (or in ``CONSISTORY_REFERENCE``). The slow implementation depends on no code
of the package, so its agreement is found out when it changes and noted down in ``data/slow_reference.json``, with the
digest of its text; tests compare the digest, and of the cases one.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from tests.consistory import slow_reference as slow

REFERENCE = Path(os.environ.get("CONSISTORY_REFERENCE") or Path(__file__).parents[3] / "shared" / "reference")
AGREED = Path(__file__).parent / "data" / "slow_reference.json"
SAMPLE = ("anchor2_d0", "extra1a_d0")
"""Two anchors with all that the method does, and a scene of theirs."""
OTHERS = ("batch2_two_concepts", "batch2_noquery", "batch2_nosdsa")
CASES = (*SAMPLE, *OTHERS)


def digest() -> str:
    """SHA-256 of the slow implementation's text."""
    return hashlib.sha256(Path(slow.__file__).read_bytes()).hexdigest()


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


def compared(name: str) -> list[tuple[bool, str]]:
    """What was compared of a case: whether it agrees, and a line about it."""
    case, arrays = load_case(name)
    pictures = render_slowly(name)
    steps = case["num_inference_steps"]
    report = list[tuple[bool, str]]()

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
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"renew {AGREED.name} if all cases agree")
    options = parser.parse_args()
    if not (REFERENCE / "cases").is_dir():
        raise SystemExit(f"There are no reference numbers in {REFERENCE}: set CONSISTORY_REFERENCE to their folder.")
    torch.set_num_threads(1)
    for name in CASES:
        report = compared(name)
        print(name, *(line for _, line in report), sep="\n", flush=True)
        if not all(ok for ok, _ in report):
            raise SystemExit(f"{name} differs")
    if options.write:
        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        command = "python -m tests.consistory.published_numbers --write"
        found = {"sha256": digest(), "cases": CASES, "versions": versions, "date": date, "command": command}
        AGREED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
