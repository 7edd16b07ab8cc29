"""Do two subjects in the same pictures stay themselves, and does either take on anything of the other?

    python benchmarks/multi_subject.py --jobs 28 --cache /tmp/pictures

Every job is a pair of different kinds of the miniature's world ("a drawing of a cat and a robot in the forest"), made
from two anchors that show both and rendered in three further scenes; 28 jobs are all pairs that there are. Each subject
is measured by itself, in the region that the judge's segmentation gives to its kind. "Vanilla" is the same model with
the same prompts and seeds without the method, its pictures of the anchors' prompts standing in for anchors. The last
line of stdout is JSON:

    jobs                how many pairs
    gap_ratio           distance from perfect identity similarity among a subject's scenes, by that of vanilla
    anchor_gap_ratio    the same between its scenes and its anchors
    crossing_share      share of injected tokens of a subject whose source is the other subject in an anchor
    to_other, colour_to_other      similarity and CIELAB distance of a subject to the other one's anchors
    similarity, to_anchors, colour_to_anchors, apart (CIELAB distance of both in a scene), both_present, scene_accuracy
    ..._vanilla, ..._interval      without the method; 95 % bootstrap intervals over jobs

The embedding is that of benchmarks/consistency.py. A subject that is not there resembles nothing. Progress goes to
stderr; an interrupted run goes on from --cache. Steps are 20 unless changed here.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers

import consistory_ray
from benchmarks.model_options import (
    add_model_options,
    add_rendering_options,
    described_pipeline,
    load_pipeline,
    renderer_of,
    say,
)
from consistory_ray.evaluation.pairs import PairScores, compare_pairs, measure_pair
from consistory_ray.evaluation.prompts import PairPrompts, pair_prompts
from consistory_ray.evaluation.rendering import Rendered, Renderer
from consistory_ray.evaluation.sheets import comparison_sheet
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import MethodSettings

STEPS = 20


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_rendering_options(parser)
    parser.set_defaults(threads=1, steps=STEPS)
    parser.add_argument("--jobs", type=int, default=28)
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--anchors", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sheet-jobs", type=int, default=8, help="jobs on the contact sheet, the first ones")
    return parser.parse_args()


def settings_for(steps: int, defaults: MethodSettings) -> MethodSettings:
    """The model's settings with fewer steps; masks come from the same share of them."""
    maps = max(1, round(defaults.map_steps * steps / defaults.num_inference_steps))
    return defaults.replace(num_inference_steps=steps, map_steps=maps)


def measure_job(
    renderer: Renderer, judge: Judge, job: PairPrompts
) -> tuple[PairScores, PairScores, list[Rendered], list[Rendered]]:
    """One job with the method and without: scores of both, pictures (anchors first) of both."""
    anchors, scenes = renderer.subject(job, sources=True)
    plain = renderer.vanilla([*job.anchors, *job.prompts], [*job.anchor_seeds, *job.seeds], job.kinds)
    made = len(anchors)
    ours = measure_pair(judge, job.kinds, job.scenes, anchors, scenes)
    vanilla = measure_pair(judge, job.kinds, job.scenes, plain[:made], plain[made:])
    return ours, vanilla, [*anchors, *scenes], plain


def rounded(value: object) -> object:
    """Numbers of a report with four decimals."""
    if isinstance(value, float):
        return round(value, 4)
    return [rounded(part) for part in value] if isinstance(value, list) else value


def main() -> None:
    """Command line."""
    options = parse_arguments()
    pipeline = load_pipeline(options)
    settings = settings_for(options.steps, pipeline.default_settings)
    renderer, judge = renderer_of(pipeline, settings, options), Judge.load()
    jobs, found = pair_prompts(options.jobs, options.scenes, options.anchors), []
    for job in jobs:
        found.append(measure_job(renderer, judge, job))
        ours, vanilla = found[-1][:2]
        say(f"{' and '.join(job.kinds)}: similarity {ours.similarity:.3f}, vanilla {vanilla.similarity:.3f}")
    numbers = {
        key: rounded(value)
        for key, value in compare_pairs([ours for ours, *_ in found], [vanilla for _, vanilla, *_ in found]).items()
    }
    options.out.mkdir(parents=True, exist_ok=True)
    shown = slice(0, options.sheet_jobs)
    sheet = comparison_sheet(
        [[picture.image for picture in plain] for *_, plain in found[shown]],
        [[picture.image for picture in pictures] for _, _, pictures, _ in found[shown]],
        [f"{' and '.join(job.kinds)}: {options.anchors} anchors, {options.scenes} scenes" for job in jobs[shown]],
    )
    sheet.save(options.out / "multi_subject.png", optimize=True)
    report: dict[str, Any] = {"numbers": numbers, **described_pipeline(pipeline), "settings": settings.to_dict()}
    report |= {"diffusers": diffusers.__version__, "version": consistory_ray.__version__}
    report |= {"model_fingerprint": pipeline.fingerprint, "date": datetime.date.today().isoformat()}
    report["jobs"] = [
        {"kinds": job.kinds, "consistory": dataclasses.asdict(ours), "vanilla": dataclasses.asdict(vanilla)}
        for job, (ours, vanilla, *_) in zip(jobs, found, strict=True)
    ]
    (options.out / "multi_subject.json").write_text(json.dumps(report, indent=1) + "\n")
    say(f"contact sheet: {options.out}")
    print(json.dumps(numbers | described_pipeline(pipeline)))


if __name__ == "__main__":
    main()
