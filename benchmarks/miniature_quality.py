"""How good are the bundled model's pictures, by the judge, and how far can the judge be trusted?

    python benchmarks/miniature_quality.py --n 500 --cache /tmp/pictures

Samples prompts that no training picture was captioned with, without the method, by 50 DDIM steps at the model's own
guidance scale (change with --steps, --guidance; FreeU as the model ships it, off with --no-freeu). Progress goes to
stderr; an interrupted run goes on from --cache. The last line of stdout is JSON:

    kind_accuracy            subjects named by prompts whose kind the judge sees (two-subject prompts: both count)
    scene_accuracy           pictures showing the prompt's scene
    attribute_accuracy       named body colours, patterns and accessories that the judge sees on the named subject
    mask_iou                 Otsu mask of the subject's word at the coarse level against the judge's segmentation
    mask_iou_of_bound        the same as a share of the best IoU that any mask of that many tokens can have
    mask_iou_fine...         the same at the fine level
    seconds_per_image        one picture alone, on --device or --threads threads: only meaningful on an idle machine
    judge_...                the judge on held-out drawings after the autoencoder, where the truth is known
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path

import torch

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.model_options import (
    add_model_options,
    add_rendering_options,
    changed,
    described_pipeline,
    load_pipeline,
    renderer_of,
    say,
    synchronise,
)
from benchmarks.result_stamp import stamped
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.evaluation.rendering import stacked
from consistory_ray.evaluation.sheets import grid_sheet
from consistory_ray.miniature.judge import Judge
from consistory_ray.miniature.vocabulary import KINDS
from consistory_ray.settings import MethodSettings
from training.held_out import held_out_prompts
from training.quality import calibrate, judge_pictures, summarise

SHEET_PICTURES = 48


def seconds_per_image(pipeline: ConsiStoryPipeline, settings: MethodSettings, pictures: int) -> float:
    """Median wall-clock seconds of one vanilla picture alone."""
    times = []
    for index in range(pictures + 1):
        started = time.perf_counter()
        pipeline.render_vanilla(["a drawing of a dragon in the forest"], [index], settings=settings)
        synchronise(pipeline.device)
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[pictures // 2]


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_rendering_options(parser)
    parser.add_argument("--n", type=int, default=500, help="pictures")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    parser.add_argument("--no-freeu", action="store_true")
    parser.add_argument("--calibration", type=int, default=600, help="held-out drawings for the judge; 0: skip")
    parser.add_argument("--timed", type=int, default=5, help="pictures for seconds_per_image; 0: skip")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def main() -> None:
    """Command line."""
    options = parse_arguments()
    pipeline = load_pipeline(options)
    settings = changed(pipeline.default_settings, num_inference_steps=options.steps, guidance_scale=options.guidance)
    if options.no_freeu:
        settings = settings.replace(freeu=None)
    judge = Judge.load()
    numbers: dict[str, float] = {"n": options.n}
    if options.timed:
        numbers["seconds_per_image"] = seconds_per_image(pipeline, settings, options.timed)
    prompts = held_out_prompts(options.n)
    renderer = renderer_of(pipeline, settings, options)
    rendered = renderer.vanilla([prompt.text for prompt in prompts], [prompt.seed for prompt in prompts], KINDS)
    verdicts = judge_pictures(judge, stacked(rendered), [dict(picture.masks) for picture in rendered], prompts)
    numbers |= summarise(verdicts)
    if options.calibration:
        vae = copy.deepcopy(pipeline.pipe.vae).to("cpu", torch.float32)  # the judge's truth is a CPU's
        numbers |= calibrate(judge, vae, options.calibration)
    options.out.mkdir(parents=True, exist_ok=True)
    shown = slice(0, SHEET_PICTURES)
    sheet = grid_sheet([picture.image for picture in rendered[shown]], [prompt.text for prompt in prompts[shown]])
    sheet.save(options.out / "miniature_quality.png", optimize=True)
    known = {key: round(value, 4) for key, value in numbers.items() if not math.isnan(value)}
    line = json.dumps(known | described_pipeline(pipeline) | {"settings": settings.to_dict()})
    told = stamped(json.loads(line), pipeline)
    (options.out / "miniature_quality.json").write_text(json.dumps(told) + "\n")
    say(f"contact sheet: {options.out / 'miniature_quality.png'}")
    print(line)


if __name__ == "__main__":
    main()
