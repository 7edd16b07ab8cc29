"""How far does a scene depend on its batch? Alone against together with others, in every dtype and profile.

    python benchmarks/batch_invariance.py                              # float32 and bfloat16, exact and fast, 50 steps
    python benchmarks/batch_invariance.py --device cuda --dtypes float16 bfloat16 float32

Nothing in the method lets a scene see another one. But matrix products and convolutions of another shape may add up
their numbers in another order, so a scene is rounded otherwise in a batch of another size. Most of that stays where it
began; what can carry it further are decisions: whether a token is of the subject (its *mask*), whether features are
injected into it (its *gate*), and from which token of the anchors (its *source*). Here scenes of one subject, from one
anchor cache, are rendered all together, and some of them alone, and compared. The first one is also rendered alone and
beside another one in the fixed shape of ``pad_to`` (``--deterministic`` of a run): there nothing may differ.

The last line of stdout is JSON, also in ``results/batch_invariance.json`` (``--out``): ``cases``, for each dtype and
profile

    latents_max, latents_mean     absolute difference of the final latents, whose standard deviation is ``latents_std``
    pictures_max, pictures_mean   of the pictures' values, 0 to 255; pictures_changed: the share of values that differ
    masks_flipped                 share of tokens of both levels that are of the subject in one of the final masks only
    gates_flipped                 share of tokens of which one is injected into and the other is not
    sources_moved                 share of tokens, injected into in both, that take features from another token
    fixed_max                     largest difference of latents in batches of fixed shape
    seconds                       of CPU time

and the model's fingerprint, versions, device and date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.model_options import DTYPES, add_model_options, described, load_pipeline, say
from benchmarks.result_stamp import stamped
from consistory_ray.consistory import ConsiStoryPipeline, RenderResult, SubjectResult, Trace
from consistory_ray.evaluation.prompts import SubjectPrompts, consistency_subjects

SEED = 2030
"""Of the subject."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.set_defaults(threads=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES[1:])
    parser.add_argument("--profiles", nargs="+", default=["exact", "fast"])
    parser.add_argument("--scenes", type=int, default=8, help="rendered together")
    parser.add_argument("--alone", type=int, default=4, help="the first so many of them alone, too")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Seen:
    """Of scenes: final latents, and the decisions on the way.

    Attributes:
        latents: [scenes, channels, rows, columns].
        masks: [scenes, tokens of all levels] bool, the final ones.
        gates: [scenes, tokens] bool.
        sources: [scenes, tokens], a number for each place in the anchors.
    """

    latents: Tensor
    masks: Tensor
    gates: Tensor
    sources: Tensor

    @classmethod
    def of(cls, result: RenderResult, trace: Trace) -> Seen:
        """What a render of one batch left."""
        assert trace.injected is not None and trace.source_anchor is not None and trace.source_token is not None
        masks = torch.cat([mask.flatten(1) for _, mask in sorted(result.masks.items())], dim=1)
        sources = trace.source_anchor * trace.injected.shape[1] + trace.source_token
        return cls(result.images, masks, trace.injected, sources)

    def first(self, count: int) -> Seen:
        """Some of the scenes."""
        return Seen(self.latents[:count], self.masks[:count], self.gates[:count], self.sources[:count])

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """Of several renders."""
        rows = ([getattr(part, name) for part in parts] for name in ("latents", "masks", "gates", "sources"))
        return cls(*map(torch.cat, rows))


class Scenes:
    """One subject's scenes, in whatever batches.

    Args:
        pipeline: the model.
        made: the subject.
        prompts: its scenes.
        profile: that they are rendered with.
    """

    def __init__(
        self, pipeline: ConsiStoryPipeline, made: SubjectResult, prompts: SubjectPrompts, profile: str
    ) -> None:
        self.pipeline, self.made, self.prompts, self.profile = pipeline, made, prompts, profile

    def render(self, rows: Sequence[int], **options: Any) -> Seen:
        """Some of them in one batch."""
        trace = Trace(all_masks=False)
        texts, seeds = [self.prompts.prompts[row] for row in rows], [self.prompts.seeds[row] for row in rows]
        common: dict[str, Any] = {"profile": self.profile, "output_type": "latent", "trace": trace}
        return Seen.of(self.pipeline.render(texts, self.made, seeds, **common, **options), trace)

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> NDArray[np.int16]:
        """[scenes, height, width, 3] in 0..255."""
        decoded, _ = self.pipeline.backbone.decode(latents.to(self.pipeline.device), "np")
        values: NDArray[np.int16] = np.rint(255 * decoded).astype(np.int16)
        return values


def compare(scenes: Scenes, single: int, count: int) -> dict[str, float]:
    """The first scenes alone, and in a batch of so many."""
    started = time.process_time()
    alone = Seen.joined([scenes.render([row]) for row in range(single)])
    together = scenes.render(range(count)).first(single)
    (by_itself,), (_, beside) = (scenes.render(rows, pad_to=2).first(len(rows)).latents for rows in ([0], [1, 0]))
    latents = (alone.latents - together.latents).abs()
    values = np.abs(scenes.pictures(alone.latents) - scenes.pictures(together.latents))
    both = alone.gates & together.gates
    found = {
        "latents_max": float(latents.max()),
        "latents_mean": float(latents.mean()),
        "latents_std": float(together.latents.std()),
        "pictures_max": float(values.max()),
        "pictures_mean": float(values.mean()),
        "pictures_changed": float((values > 0).mean()),
        "masks_flipped": float((alone.masks != together.masks).float().mean()),
        "gates_flipped": float((alone.gates != together.gates).float().mean()),
        "sources_moved": float((alone.sources != together.sources)[both].float().sum() / both.sum().clamp(min=1)),
        "fixed_max": float((by_itself - beside).abs().max()),
    }
    rounded = {name: float(f"{value:.3g}") for name, value in found.items()}
    return rounded | {"seconds": round(time.process_time() - started, 1)}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, write and print; returns what the last line holds."""
    options = parse_arguments(arguments)
    (prompts,) = consistency_subjects(1, options.scenes, seed=SEED)
    cases: dict[str, dict[str, Any]] = {}
    for dtype in options.dtypes:
        pipeline = load_pipeline(argparse.Namespace(**vars(options) | {"dtype": dtype}))
        made = pipeline.create_subject(
            *(prompts.anchors, prompts.kind, prompts.anchor_seeds),
            num_inference_steps=options.steps,
            output_type="latent",
        )
        cases[dtype] = {}
        for profile in options.profiles:
            scenes = Scenes(pipeline, made, prompts, profile)
            cases[dtype][profile] = compare(scenes, options.alone, options.scenes)
            say(f"{dtype} {profile}: {cases[dtype][profile]}")
    where = described(pipeline.device, pipeline.backbone.dtype)
    found = {
        "model_fingerprint": pipeline.fingerprint,
        "cases": cases,
        "scenes": options.scenes,
        "alone": options.alone,
        "steps": options.steps,
        "threads": options.threads,
        "device": where["device"],
        "processor": platform.processor() or platform.machine(),
        "torch": where["torch"],
        "diffusers": diffusers.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "batch_invariance.json").write_text(json.dumps(stamped(found, pipeline), indent=1) + "\n")
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    main()
