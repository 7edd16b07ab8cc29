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

and under "meeting" and "alike" the same of

    meeting    subjects that were made by themselves (`from: [A, B]`), each measured against its own anchors, which the
               vanilla scenes are too
    alike      two of one kind that are called by their colours ("a red cat and a blue cat"), told apart as left and
               right and by colour; also colours_right, the share of scenes in which both have theirs by the judge

The embedding is that of benchmarks/consistency.py. A subject that is not there resembles nothing. Progress goes to
stderr; an interrupted run goes on from --cache. Steps are 20 unless changed here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.model_options import (
    add_model_options,
    add_rendering_options,
    described_pipeline,
    load_pipeline,
    renderer_of,
    say,
)
from benchmarks.result_stamp import stamped
from consistory_ray.evaluation.bootstrap import mean_interval
from consistory_ray.evaluation.pairs import PairScores, compare_pairs, measure_alike, measure_meeting, measure_pair
from consistory_ray.evaluation.prompts import PairPrompts, alike_prompts, alone, pair_prompts
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
    parser.add_argument("--meetings", type=int, default=12, help="jobs that are made of subjects of different runs too")
    parser.add_argument("--alike", type=int, default=12, help="jobs of two of one kind")
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


def measure_meetings(
    renderer: Renderer, judge: Judge, jobs: list[PairPrompts], out: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Pairs whose subjects were made by themselves: numbers, scores of each job, and a sheet."""
    ours, vanilla, above, below = [], [], [], []
    for job in jobs:
        anchors, scenes = renderer.meeting(job, alone(job))
        plain = renderer.vanilla(job.prompts, job.seeds, job.kinds)
        ours.append(measure_meeting(judge, job, anchors, scenes))
        vanilla.append(measure_meeting(judge, job, anchors, plain))
        made = [picture.image for own in anchors for picture in own]
        above.append([*made, *(picture.image for picture in plain)])
        below.append([*made, *(picture.image for picture in scenes)])
        say(f"{' meets '.join(job.kinds)}: to anchors {ours[-1].to_anchors:.3f}, vanilla {vanilla[-1].to_anchors:.3f}")
    titles = [
        f"{job.kinds[0]} (2 anchors) meets {job.kinds[1]} (2 anchors) in {len(job.prompts)} scenes" for job in jobs
    ]
    comparison_sheet(above, below, titles, width=1600).save(out / "multi_subject_meeting.webp", quality=88)
    return compare_pairs(ours, vanilla), told([job.kinds for job in jobs], ours, vanilla)


def measure_alikes(
    renderer: Renderer, judge: Judge, jobs: list[PairPrompts], out: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Pairs of one kind: numbers, scores of each job, and a sheet."""
    ours, vanilla, above, below = [], [], [], []
    for job in jobs:
        anchors, scenes = renderer.subject(job, sources=True)
        plain = renderer.vanilla([*job.anchors, *job.prompts], [*job.anchor_seeds, *job.seeds], job.concepts)
        ours.append(measure_alike(judge, job, anchors, scenes))
        vanilla.append(measure_alike(judge, job, plain[: len(anchors)], plain[len(anchors) :]))
        above.append([picture.image for picture in plain])
        below.append([picture.image for picture in [*anchors, *scenes]])
        say(f"{' and '.join(job.concepts)}: colours right {ours[-1][2]:.2f}, vanilla {vanilla[-1][2]:.2f}")
    titles = [f"{' and '.join(job.concepts)}: {len(job.anchors)} anchors, {len(job.prompts)} scenes" for job in jobs]
    comparison_sheet(above, below, titles).save(out / "multi_subject_alike.webp", quality=88)
    numbers = compare_pairs([scores for scores, *_ in ours], [scores for scores, *_ in vanilla])
    for suffix, found in (("", ours), ("_vanilla", vanilla)):
        for name, column in (("colours_right_in_anchors", 1), ("colours_right", 2)):
            shares = np.array([row[column] for row in found])
            numbers |= {
                f"{name}{suffix}": float(shares.mean()),
                f"{name}{suffix}_interval": list(mean_interval(shares)),
            }
    names = [job.concepts for job in jobs]
    return numbers, told(names, [scores for scores, *_ in ours], [scores for scores, *_ in vanilla])


def told(names: list[Any], ours: list[PairScores], vanilla: list[PairScores]) -> list[dict[str, Any]]:
    """The scores of each job, for a report."""
    return [
        {"subjects": name, "consistory": dataclasses.asdict(mine), "vanilla": dataclasses.asdict(plain)}
        for name, mine, plain in zip(names, ours, vanilla, strict=True)
    ]


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
    report["jobs"] = told([job.kinds for job in jobs], [ours for ours, *_ in found], [one[1] for one in found])
    others: dict[str, Any] = {}
    if options.meetings:
        several, report["meetings"] = measure_meetings(renderer, judge, jobs[: options.meetings], options.out)
        others["meeting"] = {key: rounded(value) for key, value in several.items()}
    if options.alike:
        several, report["alikes"] = measure_alikes(renderer, judge, alike_prompts(options.alike), options.out)
        others["alike"] = {key: rounded(value) for key, value in several.items()}
    report |= others
    (options.out / "multi_subject.json").write_text(json.dumps(stamped(report, pipeline), indent=1) + "\n")
    say(f"contact sheet: {options.out}")
    print(json.dumps(numbers | others | described_pipeline(pipeline)))


if __name__ == "__main__":
    main()
