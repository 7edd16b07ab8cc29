"""Digests of our own pictures: what the bundled model renders, so that no rebuilt part changes it unnoticed.

    python -m tests.consistory.own_digests                    # compare with what is kept; print SHA-256 of each case
    python -m tests.consistory.own_digests --write            # keep what the package renders now
    python -m tests.consistory.own_digests --model FOLDER     # only print SHA-256, of another model's pictures

Small pictures in few steps, with each part of the method on and off. Kept are final latents and masks as they are; they
are compared with a tolerance, since processors and versions of libraries round differently. On one machine, with one
thread, the SHA-256 of a case stay equal as long as the order of the arithmetic does.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.settings import MethodSettings

KEPT = Path(__file__).parent / "data" / "own_digests.npz"
TOLERANCE, MASK_SHARE = 3e-4, 0.999
"""Twice what processors without AVX-512 are apart (1.5e-4) from the one that wrote what is kept."""
ANCHORS = ["a red dragon in a forest", "a red dragon at night"]
SCENES = ["a red dragon on the beach", "a dragon in the snow", "a red dragon in space"]
QUICK: dict[str, Any] = {"num_inference_steps": 6, "height": 64, "width": 64}
CASES: Mapping[str, tuple[list[str], dict[str, Any]]] = {
    "plain": (["dragon"], {}),
    "two_concepts": (["dragon", "red"], {}),
    "no_query_blending": (["dragon"], {"query_blending": False}),
    "no_sdsa": (["dragon"], {"sdsa": False}),
    "no_injection": (["dragon"], {"injection": False}),
    "freeu": (["dragon"], {"freeu": (0.6, 0.4, 1.1, 1.2), "negative_prompt": "a dog"}),
    "no_guidance": (["dragon"], {"guidance_scale": 1.0}),
    "landscape": (["dragon"], {"height": 40, "width": 72}),
    "twelve_steps": (["dragon"], {"num_inference_steps": 12, "height": 32, "width": 32, "map_steps": 5}),
}
"""Case -> concepts and changes of the model's default settings; ``plain`` is rendered in one batch and singly."""

Arrays = dict[str, "np.ndarray[Any, Any]"]


def rendered(pipe: ConsiStoryPipeline, concepts: list[str], changes: Mapping[str, Any], scenes: int = 1) -> Arrays:
    """Final latents and masks of two anchors and of scenes in one batch."""
    settings: MethodSettings = pipe.default_settings.replace(**{**QUICK, **changes})
    subject = pipe.create_subject(ANCHORS, concepts, [1, 2], settings=settings, output_type="latent")
    result = pipe.render(SCENES[:scenes], subject, range(3, 3 + scenes), output_type="latent")
    found = {"anchors": subject, "scenes": result}
    if scenes > 1:
        one_by_one = pipe.render(SCENES[:scenes], subject, range(3, 3 + scenes), batch_size=1, output_type="latent")
        found["singly"] = one_by_one
    return {f"{name}.{key}": value for name, each in found.items() for key, value in _arrays(each).items()}


def _arrays(result: Any) -> Arrays:
    latents: Tensor = result.images
    return {"latents": latents.numpy()} | {f"mask_{level}": mask.numpy() for level, mask in result.masks.items()}


def all_cases(pipe: ConsiStoryPipeline, done: Callable[[str, Arrays], None] = lambda name, found: None) -> Arrays:
    """Every case's arrays as ``case.images.kind``; the last is the model under the other prediction type."""
    everything: Arrays = {}

    def keep(name: str, found: Arrays) -> None:
        done(name, found)
        everything.update({f"{name}.{key}": value for key, value in found.items()})

    for name, (concepts, changes) in CASES.items():
        keep(name, rendered(pipe, concepts, changes, scenes=3 if name == "plain" else 1))
    scheduler = pipe.pipe.scheduler
    other = "epsilon" if scheduler.config.prediction_type == "v_prediction" else "v_prediction"
    pipe.pipe.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=other)
    try:
        keep("other_prediction", rendered(pipe, ["dragon"], {"num_inference_steps": 4}))
    finally:
        pipe.pipe.scheduler = scheduler
    return everything


def compare(found: Arrays, kept: Mapping[str, Any]) -> list[str]:
    """What differs by more than the tolerances, in words; masks with fewer than 1000 tokens have to be equal."""
    wrong = [f"{name}: not kept" for name in found.keys() ^ (set(kept) - {"about"})]
    for name in sorted(found.keys() & set(kept)):
        ours, theirs = found[name], kept[name]
        if ours.shape != theirs.shape:
            wrong.append(f"{name}: {ours.shape} instead of {theirs.shape}")
        elif ours.dtype == bool:
            share = float((ours == theirs).mean())
            wrong += [f"{name}: {share:.4%} equal"] if share < MASK_SHARE else []
        else:
            largest = float(np.abs(ours - theirs).max())
            wrong += [f"{name}: {largest:.1e} apart"] if not largest <= TOLERANCE else []
    return wrong


def about(pipe: ConsiStoryPipeline) -> str:
    """Where numbers come from, as JSON."""
    return json.dumps(
        {
            "command": "python -m tests.consistory.own_digests --write",
            "model_fingerprint": pipe.fingerprint,
            "dtype": "float32",
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "machine": platform.machine(),
            "date": datetime.date.today().isoformat(),
        }
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--model", default="miniature")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = ConsiStoryPipeline.from_pretrained(options.model, dtype=torch.float32, device="cpu")

    def tell(name: str, found: Arrays) -> None:
        digest = hashlib.sha256(b"".join(found[key].tobytes() for key in sorted(found))).hexdigest()
        print(name, digest, flush=True)

    found = all_cases(pipe, tell)
    if options.write:
        np.savez_compressed(KEPT, about=np.array(about(pipe)), **found)
    elif options.model == "miniature":
        with np.load(KEPT) as kept:
            print(*(compare(found, kept) or ["all as kept"]), sep="\n")


if __name__ == "__main__":
    main()
