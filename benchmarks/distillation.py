"""How near do the bundled model's few-step students come to it?

    python benchmarks/distillation.py --n 48 --cache /tmp/distillation

Samples the first held-out prompts, each from one noise, in several ways:

    teacher          24 guided DDIM steps, from which the students learned
    undistilled_8, undistilled_4    as many guided steps of the model itself: twice the rows of a student
    distilled_8, distilled_4        the students, without guidance

Progress goes to stderr; an interrupted run goes on from --cache. Writes distillation.json and a contact sheet of the
first prompts, a row each in this order, to --out. The last line of stdout is JSON; of each way of sampling:

    kind_accuracy, scene_accuracy, attribute_accuracy    by the judge, see miniature_quality.py
    error                    root mean square difference of the finished latents from the teacher's
    rows                     of the UNet for one picture
    velocity_errors          of students: mean square error of the prediction at each timestep of the teacher's path

and `latent_rms` of the teacher's latents, the SHA-256 of each student's file, and the revision of the model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.model_options import add_device_options, chosen_device, chosen_dtype, described, say
from benchmarks.result_stamp import stamped
from consistory_ray.consistory.models.fingerprint import model_fingerprint
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import BUNDLED_MODEL, model_revision
from training.controlnet import open_pipeline
from training.distillation import FINEST, GUIDANCE, SUBSTEPS, Sampler, path_noise, trailing
from training.held_out import held_out_prompts
from training.quality import judge_pictures, summarise
from training.train import LORAS, WEIGHTS

STUDENTS = (8, 4)
SHOWN = 12
ACCURACIES = ("kind_accuracy", "scene_accuracy", "attribute_accuracy")


def decoded(pipe: Any, latents: torch.Tensor) -> np.ndarray:
    """Pictures of latents, uint8 ``[N, H, W, 3]``."""
    with torch.no_grad():
        pictures = pipe.vae.decode(latents.to(pipe.vae.device, pipe.vae.dtype) / pipe.vae.config.scaling_factor).sample
    found: np.ndarray = ((pictures.float().cpu().clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).byte().numpy()
    return found


@torch.no_grad()
def velocity_errors(sampler: Sampler, path: torch.Tensor, captions: list[str]) -> list[float]:
    """How far predictions are from those that lead along a path, at each timestep.

    Args:
        sampler: with the student.
        path: the teacher's latents at the student's timesteps and the end, ``[N, 1 + steps, 4, h, w]``.
        captions: of the paths.
    """
    timesteps = [*trailing(path.shape[1] - 1), -1]
    found = []
    for index, (start, end) in enumerate(zip(timesteps[:-1], timesteps[1:], strict=True)):  # noqa: RUF007
        wanted = sampler.levels.velocity(path[:, index], path[:, index + 1], start, end)
        got = sampler.predict(path[:, index], start, captions)
        found.append(round(float((got - wanted).square().mean()), 4))
    return found


def kept(cache: Path | None, name: str, make: Callable[[int], torch.Tensor], blocks: Sequence[int]) -> torch.Tensor:
    """What ``make`` gives for every block, put together, from the cache where it is there."""
    found = []
    for block in blocks:
        file = cache / f"{name}-{block}.npy" if cache else None
        if file and file.exists():
            found.append(torch.from_numpy(np.load(file)))
            continue
        found.append(make(block))
        say(f"{name}: block {block} of {len(blocks)}")
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, found[-1].numpy())
    return torch.cat(found)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--n", type=int, default=48, help="pictures of each way of sampling")
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--cache", type=Path, help="folder to keep latents in, for going on after an interruption")
    parser.add_argument("--loras", type=Path, default=LORAS, help="folder of the students' files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def main() -> None:
    """Command line."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    device, dtype = chosen_device(options), chosen_dtype(options)
    pipe = open_pipeline(WEIGHTS).to(device, dtype)
    sampler, prompts = Sampler(pipe), held_out_prompts(options.n)
    captions, noise = [prompt.text for prompt in prompts], path_noise([prompt.seed for prompt in prompts])
    blocks = range(-(-options.n // options.batch_size))

    def sampled(name: str, steps: int, guidance: float, keep: int) -> torch.Tensor:
        def make(block: int) -> torch.Tensor:
            rows = slice(block * options.batch_size, (block + 1) * options.batch_size)
            return sampler.path(noise[rows], captions[rows], trailing(steps), guidance, keep)

        return kept(options.cache, f"{name}-{options.n}-{options.batch_size}", make, blocks)

    teacher = sampled("teacher", FINEST * SUBSTEPS, GUIDANCE, SUBSTEPS)
    ends = {"teacher": teacher[:, -1]}
    told: dict[str, dict[str, Any]] = {"teacher": {"rows": 2 * FINEST * SUBSTEPS}}
    for steps in STUDENTS:
        ends[f"undistilled_{steps}"] = sampled(f"undistilled-{steps}", steps, GUIDANCE, steps)[:, -1]
        told[f"undistilled_{steps}"] = {"rows": 2 * steps}
    for steps in STUDENTS:
        file = options.loras / f"distilled-{steps}.safetensors"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        pipe.load_lora_weights(str(file))
        ends[f"distilled_{steps}"] = sampled(f"distilled-{digest[:12]}", steps, 1.0, steps)[:, -1]
        errors = velocity_errors(sampler, teacher[:, :: FINEST // steps], captions)
        told[f"distilled_{steps}"] = {"rows": steps, "velocity_errors": errors, "sha256": digest}
        pipe.unload_lora_weights()
    judge, rows = Judge.load(), []
    for name, latents in ends.items():
        pictures = decoded(pipe, latents)
        rows.append(np.concatenate(list(pictures[:SHOWN]), 1))
        accuracies = summarise(judge_pictures(judge, pictures, [{} for _ in prompts], prompts))
        told[name] |= {key: round(accuracies[key], 4) for key in ACCURACIES}
        told[name]["error"] = round(float((latents - ends["teacher"]).square().mean().sqrt()), 4)
    options.out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(options.out / "distillation.webp", quality=88, method=6)
    rms = round(float(ends["teacher"].square().mean().sqrt()), 4)
    about = {"n": options.n, "latent_rms": rms, "base_revision": model_revision(BUNDLED_MODEL)}
    line = json.dumps(about | told | described(device, dtype))
    told_of = stamped(json.loads(line), fingerprint=model_fingerprint(pipe), device=device, dtype=dtype)
    (options.out / "distillation.json").write_text(json.dumps(told_of) + "\n")
    print(line)


if __name__ == "__main__":
    main()
