"""How like the individual of given pictures are its scenes, and how like would they be without these pictures?

    python benchmarks/personalization.py --subjects 32 --cache /tmp/pictures
    python benchmarks/personalization.py --part 1/2 --cache /tmp/pictures & ... --part 2/2 ...: two processes

Every subject is an individual of the miniature's world, drawn in two places: its given pictures. It is then rendered in
six scenes, other places. The pictures' captions and the scenes' prompts name its kind and the place ("a drawing of a
ghost in the meadow") and nothing of its look. "With details" the scenes' prompts, not the pictures' captions, name what
the pictures do not bring, its pattern and what it wears, as the key ``details`` of a job does: "a drawing of a
spotted ghost with a hat in the meadow".
"Vanilla" is the same model with the same prompts and seeds, without pictures and method. The individuals are not those
that settings were chosen with (benchmarks/personalization_choices.py).

*Likeness* is the mean cosine of the judge's identity embedding (see benchmarks/consistency.py) of each scene with each
given picture. The *ceiling* is that of the given pictures with each other, the *gap* the distance from it. *Right* is
what the judge reads as it was drawn. The last line of stdout is JSON:

    gap_ratio_to_ceiling         mean gap / mean gap of vanilla
    gap_ratio_with_details       mean gap with details / mean gap of vanilla with the same details
    gap_ratio_with_details_to_plain_vanilla   the same against vanilla without them
    gap_ratio_of_details_alone   mean gap of vanilla with details / mean gap of vanilla
    gap_ratio_with_everything_named, ..._to_plain_vanilla   where scenes name the body, too, so that words alone
                                 get much nearer: against vanilla with the same words, and without any
    body_accuracy                scenes with the right body colour, without details
    accessory_accuracy_with_details   scenes with the right accessory, of individuals that wear one; ..._all: of all
    scene_accuracy_drop, ..._with_details     percentage points of scenes no longer seen, against vanilla
    layout_diversity_ratio       spread of centre and size over a subject's scenes, against vanilla
    ceiling, stranger            likeness of given pictures to each other, and to another individual of the kind
    ours, vanilla, with_details, ...   of each way: likeness, likeness to the other individual, similarity
                                 among the scenes, CIELAB distance to the given pictures, every attribute, scene, kind
    ..._interval                 95 % bootstrap intervals over subjects
    device, dtype                what it ran on, and in

Progress goes to stderr; an interrupted run goes on from --cache. The settings are the model's own unless changed here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ablations import parse_variant
from benchmarks.consistency import rounded
from benchmarks.model_options import (
    add_model_options,
    add_rendering_options,
    changed,
    described_pipeline,
    load_pipeline,
    renderer_of,
    say,
)
from benchmarks.result_stamp import stamped
from consistory_ray.evaluation.likeness import Model, Ways, ceiling, score_likeness
from consistory_ray.evaluation.rendering import Rendered, Renderer
from consistory_ray.evaluation.sheets import blocks_sheet
from consistory_ray.miniature.judge import Judge
from training.characters import Character, draw_characters

DETAILS = ("pattern", "accessory")
"""What scenes name with details: what pictures alone do not bring, as benchmarks/personalization_choices.py finds."""
EVERYTHING = ("body", *DETAILS)
"""All that has words."""
NAMED = {"ours": (), "details": DETAILS, "everything": EVERYTHING}
WITHOUT = {"ours": "vanilla", "details": "vanilla_details", "everything": "vanilla_everything"}
"""The same words without pictures."""
WAYS = (*NAMED, *WITHOUT.values())
SHOWN = ("vanilla", "ours", "details", "vanilla_details")
LABELS = ("given", "vanilla", "with the pictures", "with pictures and details", "vanilla with details")
SHEET_SCENES = 2
CHANGES: dict[str, Any] = {"mask_dropout": 0.0}
"""Of the model's own settings, as benchmarks/personalization_choices.py finds."""

Scenes = dict[str, list[Rendered]]


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_rendering_options(parser)
    parser.add_argument("--subjects", type=int, default=32)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--pictures", type=int, default=2, help="given of each subject")
    parser.add_argument("--set", default="", metavar="'NAME=JSON ...'", help="other settings of the method")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="begin with this share; I < N: end with it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sheet-subjects", type=int, default=8, help="subjects on the contact sheet")
    return parser.parse_args()


def render(renderer: Renderer, character: Character, ways: Sequence[str] = tuple(NAMED)) -> Scenes:
    """One subject's scenes with these of :data:`NAMED`, and without pictures."""
    subjects = [character.naming(*NAMED[way]) for way in ways]
    vanilla = dict(zip((WITHOUT[way] for way in ways), renderer.vanilla_subjects(subjects), strict=True))
    return vanilla | dict(zip(ways, renderer.given(character.pictures, subjects), strict=True))


def measure(judge: Judge, characters: Sequence[Character], rendered: Sequence[Scenes]) -> Ways:
    """Every subject's scenes in every way beside the given pictures."""
    models = [Model(c.pictures, c.pictures_of_stranger, c.truth) for c in characters]
    bounds = [ceiling(judge, model) for model in models]
    scores = {
        way: [
            score_likeness(judge, [picture.image for picture in scenes[way]], character.subject, model)
            for character, model, scenes in zip(characters, models, rendered, strict=True)
        ]
        for way in WAYS
    }
    return Ways([best for best, _ in bounds], [other for _, other in bounds], **scores)


def of_each_subject(characters: Sequence[Character], ways: Ways) -> list[dict[str, Any]]:
    """What the results file tells of every subject."""
    found = []
    for index, character in enumerate(characters):
        row: dict[str, Any] = {"who": dataclasses.asdict(character.who), "ceiling": ways.ceilings[index]}
        row |= {way: dataclasses.asdict(getattr(ways, way)[index]) for way in WAYS}
        found.append(rounded_throughout(row))
    return found


def rounded_throughout(value: Any) -> Any:
    """Numbers of a report with four decimals, however deep."""
    if isinstance(value, dict):
        return {key: rounded_throughout(part) for key, part in value.items()}
    return rounded(value)


def sheet_rows(characters: Sequence[Character], rendered: Sequence[Scenes]) -> list[list[list[Any]]]:
    """Pictures of the contact sheet: given, then the first scenes in every way."""
    return [
        [character.pictures[:2], *([picture.image for picture in scenes[way][:SHEET_SCENES]] for way in SHOWN)]
        for character, scenes in zip(characters, rendered, strict=True)
    ]


def main() -> None:
    """Command line."""
    options = parse_arguments()
    pipeline = load_pipeline(options)
    pipeline.hold_fingerprint()
    settings = changed(
        pipeline.default_settings, num_inference_steps=options.steps, **CHANGES | parse_variant(options.set)
    )
    part, parts = (int(number) for number in options.part.split("/"))
    if parts > 1 and options.cache is None:
        raise SystemExit("--part needs --cache, where the parts meet")
    characters = draw_characters(options.subjects, options.pictures, options.scenes)
    renderer = renderer_of(pipeline, settings, options)
    scenes: dict[int, Scenes] = {}
    for number in sorted(range(len(characters)), key=lambda number: number % parts != part - 1):
        if number % parts != part - 1 and part < parts:
            print(json.dumps({"part": options.part, "subjects": len(scenes)}))
            return
        scenes[number] = render(renderer, characters[number])
        say(f"subject {number + 1}/{len(characters)}")
    rendered = [scenes[number] for number in range(len(characters))]
    ways = measure(Judge.load(), characters, rendered)
    numbers = rounded_throughout(ways.numbers)
    options.out.mkdir(parents=True, exist_ok=True)
    shown = slice(0, options.sheet_subjects)
    titles = [character.who.kind for character in characters[shown]]
    blocks_sheet(sheet_rows(characters[shown], rendered[shown]), LABELS, titles).save(
        options.out / "personalization.png", optimize=True
    )
    about = described_pipeline(pipeline) | {"steps": settings.num_inference_steps}
    report: dict[str, Any] = {"numbers": numbers, **about, "settings": settings.to_dict()}
    report["subjects"] = of_each_subject(characters, ways)
    (options.out / "personalization.json").write_text(json.dumps(stamped(report, pipeline), indent=1) + "\n")
    say(f"contact sheet: {options.out}")
    print(json.dumps(numbers | about))


if __name__ == "__main__":
    main()
