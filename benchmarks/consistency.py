"""How much more do one subject's pictures agree with the method than without it, and what does that cost?

    python benchmarks/consistency.py --subjects 32 --cache /tmp/pictures

Every subject is a kind of the miniature's world, made from two anchors and rendered in six further scenes. Prompts name
the kind and the scene ("a drawing of a dragon in the forest") and leave the individual open. "Vanilla" is the same
model with the same prompts, seeds, sampler and FreeU, without the method. Only the six scenes are measured, never the
anchors.

*Identity similarity* of two pictures: the subject is cut out along the judge's segmentation, everything else made gray;
the judge's identifier embeds it; the cosine of the two embeddings. It was trained to be the weighted share of the
identity in common: kind 15 %, body colour 30 %, second colour 15 %, pattern 15 %, accessory 15 % and its colour 5 %,
variant 5 %, colours agreeing by degrees. A subject's similarity is the mean over all pairs of its scenes, its *gap* the
distance from perfect, 1 - similarity. The last line of stdout is JSON:

    identity_gap_ratio       mean gap with the method / mean gap of vanilla, with identity_gap_interval
    colour_distance_ratio    the same for the CIELAB distance between mean colours inside the masks (nothing learned)
    scene_accuracy_drop      percentage points of pictures no longer showing the prompt's scene
    layout_diversity_ratio   spread (standard deviation) of centre x, centre y and size over a subject's scenes
    subject_accuracy         pictures showing the prompt's kind
    ..._vanilla, ..._interval  without the method; 95 % bootstrap intervals over subjects
    device, dtype            what it ran on, and in

Progress goes to stderr; an interrupted run goes on from --cache. The settings are the model's own unless changed here.
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


from benchmarks.model_options import (
    add_model_options,
    add_rendering_options,
    changed,
    described_pipeline,
    load_pipeline,
    renderer_of,
)
from consistory_ray.evaluation.consistency import compare_with_vanilla
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.evaluation.sheets import comparison_sheet, plot_plane
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import MethodSettings


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_rendering_options(parser)
    parser.add_argument("--subjects", type=int, default=32)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--anchors", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sheet-subjects", type=int, default=8, help="subjects on the contact sheet, the first ones")
    method = parser.add_argument_group("settings of the method")
    method.add_argument("--guidance", type=float)
    method.add_argument("--mask-dropout", type=float)
    method.add_argument("--injection-window", type=float, nargs=2, metavar=("FIRST", "LAST"))
    method.add_argument("--injection-alpha", type=float)
    method.add_argument("--query-blend-until", type=float)
    method.add_argument("--map-steps", type=int)
    method.add_argument("--dift-timestep", type=int)
    method.add_argument("--freeu", type=float, nargs=4, metavar=("S1", "S2", "B1", "B2"))
    for name in ("sdsa", "query-blending", "injection", "freeu"):
        method.add_argument(f"--no-{name}", action="store_true")
    return parser.parse_args()


def settings_from(options: argparse.Namespace, defaults: MethodSettings) -> MethodSettings:
    """The model's settings with what the command line changes."""
    settings = changed(
        defaults,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        mask_dropout=options.mask_dropout,
        injection_window=options.injection_window,
        injection_alpha=options.injection_alpha,
        query_blend_until=options.query_blend_until,
        map_steps=options.map_steps,
        dift_timestep=options.dift_timestep,
        freeu=options.freeu,
    )
    off: dict[str, Any] = {"sdsa": False, "query_blending": False, "injection": False, "freeu": None}
    return settings.replace(**{key: value for key, value in off.items() if getattr(options, f"no_{key}")})


def rounded(value: object) -> object:
    """Numbers of a report with four decimals."""
    if isinstance(value, float):
        return round(value, 4)
    return [rounded(part) for part in value] if isinstance(value, list) else value


def main() -> None:
    """Command line."""
    options = parse_arguments()
    pipeline = load_pipeline(options)
    settings = settings_from(options, pipeline.default_settings)
    subjects = consistency_subjects(options.subjects, options.scenes, options.anchors)
    found = compare_with_vanilla(renderer_of(pipeline, settings, options), Judge.load(), subjects)
    numbers = {key: rounded(value) for key, value in found.numbers.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    shown = slice(0, options.sheet_subjects)
    sheet = comparison_sheet(
        [[picture.image for picture in pictures] for pictures in found.vanilla[shown]],
        [[picture.image for picture in pictures] for pictures in found.ours[shown]],
        [subject.kind for subject in subjects[shown]],
    )
    sheet.save(options.out / "consistency.png", optimize=True)
    plot_plane(numbers, options.out / "consistency_plane.png")
    report: dict[str, Any] = {"numbers": numbers, **described_pipeline(pipeline), "settings": settings.to_dict()}
    report["model_fingerprint"] = pipeline.fingerprint
    report["subjects"] = [
        {"kind": subject.kind, "consistory": dataclasses.asdict(mine), "vanilla": dataclasses.asdict(plain)}
        for subject, mine, plain in zip(subjects, found.our_scores, found.vanilla_scores, strict=True)
    ]
    (options.out / "consistency.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"contact sheet and plot: {options.out}", file=sys.stderr)
    print(json.dumps(numbers | described_pipeline(pipeline)))


if __name__ == "__main__":
    main()
