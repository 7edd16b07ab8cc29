"""How much more do one subject's pictures agree with the method than without it, and what does that cost?

    python benchmarks/consistency.py --subjects 32 --cache /tmp/pictures
    python benchmarks/consistency.py --strengths paper,strong --details --baselines --cache /tmp/p  # the whole evidence
    ... --part 1/2 & ... --part 2/2: two processes that render, then the same without: it finds all pictures
    ... --summarise: what there is in the cache by now

Every subject is a kind of the miniature's world, made from two anchors and rendered in six further scenes. Prompts name
the kind and the scene ("a drawing of a dragon in the forest") and leave the individual open. "Vanilla" is the same
model with the same prompts, seeds, sampler and FreeU, without the method. Only the six scenes are measured, never the
anchors.

*Identity similarity* of two pictures: the subject is cut out along the judge's segmentation, everything else made gray;
the judge's identifier embeds it; the cosine of the two embeddings. It was trained to be the weighted share of the
identity in common: kind 15 %, body colour 30 %, second colour 15 %, pattern 15 %, accessory 15 % and its colour 5 %,
variant 5 %, colours agreeing by degrees. A subject's similarity is the mean over all pairs of its scenes, its *gap* the
distance from perfect, 1 - similarity. Colours make up 45 % of it and agree by degrees, so it flatters whoever keeps
only those. *Hard attributes* do not: body colour, second colour, pattern, accessory, its colour and variant, each as
the judge reads it, are equal in two pictures or not, and count alike. The last line of stdout is JSON:

    identity_gap_ratio       mean gap with the method / mean gap of vanilla, with identity_gap_interval
    hard_attribute_ratio     mean share of (pair, attribute) that differs / vanilla's, with hard_attribute_interval
    attributes               the same of each attribute
    scene_probability_drop   points of the mean probability that the judge gives to the prompt's scene, where it sees
                             another one too; kind_probability_drop: of the kind
    colour_distance_ratio    the same in CIELAB: distance between mean colours inside the masks (nothing learned)
    scene_accuracy_drop      percentage points of pictures no longer showing the prompt's scene
    layout_diversity_ratio   spread (standard deviation) of centre x, centre y and size over a subject's scenes
    drawing_distance_rise    how much farther from drawings than vanilla's pictures, in the judge's features
    outline_ratio, sharpness_ratio   how dark outlines are, and the variance of the Laplacian, of vanilla's
    chroma_ratio, distinctness_ratio   how colourful subjects are, and how much those of one kind differ, of vanilla's
    subject_accuracy         pictures showing the prompt's kind
    ..._vanilla, ..._interval  without the method; 95 % bootstrap intervals over subjects
    device, dtype, strength  what it ran on, in, and of which strength these numbers are

``--details`` adds prompts, the anchors' too, that name what makes the individual, "a red striped dragon with a hat", as
people do who want that one: body colour, pattern and accessory of the first vanilla scene, which are what the model's
captions name. They are rendered with the method and without it; the last line has the first under ``with_details``.

``--cast N`` adds the first strength with anchors that were cast: of N candidates, the first of which has the subject's
own seeds, the one whose anchors agree best. A second judge casts (:mod:`consistory_ray.quality.casting`), the judge
measures. With ``--details``, prompts that name details are cast, too.

``--baselines`` adds what the simplest means reach: vanilla with one seed for all scenes of a subject; vanilla whose
prompts name two colours, those of its first picture; vanilla with the colours of its first picture painted over; and
drawings of the same individual, which are the floor. results/consistency.json has every subject's row in every way,
from which all numbers can be computed without pictures; results/consistency.md has the tables, also kind by kind.
Progress goes to stderr; an interrupted run goes on from --cache. The settings are the model's own unless changed here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from benchmarks.casting import METRIC
from benchmarks.consistency_report import tables
from benchmarks.consistency_ways import (
    BLURRED,
    CAST,
    DETAILS,
    NAMED_DETAILS,
    SAME_INDIVIDUAL,
    STRANGERS,
    VANILLA,
    Ways,
    label,
)
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
from consistory_ray.evaluation.evidence import Way
from consistory_ray.evaluation.evidence_numbers import by_kind, numbers
from consistory_ray.evaluation.evidence_plots import plot_planes
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.evaluation.sheets import comparison_sheet
from consistory_ray.miniature.judge import Judge
from consistory_ray.quality.metrics import Metric, load_metric
from consistory_ray.settings import STRENGTHS, MethodSettings

GOALS = (
    "subjects",
    "identity_gap_ratio",
    "identity_gap_interval",
    "hard_attribute_ratio",
    "hard_attribute_interval",
    "scene_probability_drop",
    "layout_diversity_ratio",
)
"""What the last line tells of other ways than the strength's own."""
WAYS_TOLD = {"with_details": DETAILS, "with_cast": CAST, "with_details_and_cast": DETAILS + CAST}


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
    parser.add_argument("--strength", choices=tuple(STRENGTHS), help="whose numbers are told (default: the first one)")
    parser.add_argument("--strengths", default="", help="all that are rendered, such as paper,strong")
    parser.add_argument("--baselines", action="store_true", help="also what the simplest means reach")
    parser.add_argument("--details", action="store_true", help="also prompts that name details")
    parser.add_argument("--cast", type=int, default=1, metavar="N", help="also anchors cast among N candidates")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="render this share, and measure nothing if N > 1")
    parser.add_argument("--summarise", action="store_true", help="render nothing: tell what the cache has")
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


def chosen_strengths(options: argparse.Namespace) -> list[str]:
    """The strengths that are rendered; the first one's numbers are told."""
    names = [name for name in options.strengths.split(",") if name]
    told = options.strength or (names[0] if names else next(iter(STRENGTHS)))
    unknown = [name for name in names if name not in STRENGTHS]
    if unknown:
        raise SystemExit(f"--strengths: no strength is called {unknown[0]!r}; there are {', '.join(STRENGTHS)}")
    return list(dict.fromkeys([told, *names]))


def rounded(value: object, digits: int = 4) -> object:
    """Numbers of a report with so many decimals, however deep; null for those that are unknown."""
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: rounded(part, digits) for key, part in value.items()}
    return [rounded(part, digits) for part in value] if isinstance(value, list | tuple) else value


def shares(options: argparse.Namespace) -> list[int]:
    """The numbers of the subjects that this process is about."""
    part, parts = (int(number) for number in options.part.split("/"))
    return [number for number in range(options.subjects) if number % parts == part - 1]


def evidence(ways: Mapping[str, Way], settings: Mapping[str, MethodSettings]) -> dict[str, Any]:
    """What the results file tells of every way: its numbers against vanilla, by kind, its settings, its rows."""
    found = {}
    for name, way in ways.items():
        told: dict[str, Any] = {"label": label(name)}
        if name != VANILLA and set(way.subjects) & set(ways[VANILLA].subjects):
            told["numbers"] = rounded(numbers(way, ways[VANILLA]))
        if (strength := name.removesuffix(CAST).removesuffix(DETAILS)) in settings:
            told["by_kind"] = rounded(by_kind(way, ways[VANILLA]))
            told["settings"] = settings[strength].to_dict()
        if name.removesuffix(CAST).endswith(DETAILS) and NAMED_DETAILS in ways and name != NAMED_DETAILS:
            told["numbers_against_the_same_words"] = rounded(numbers(way, ways[NAMED_DETAILS]))
        found[name] = told | {"way": rounded(way.to_dict(), 6)}
    return found


def write(report: Mapping[str, Any], found: Ways, strength: str, options: argparse.Namespace) -> None:
    """JSON, tables, plot and contact sheet."""
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "consistency.json").write_text(json.dumps(report, indent=None, separators=(",", ":")) + "\n")
    told = {name: way["numbers"] for name, way in report["ways"].items() if "numbers" in way}
    kinds = {name: way["by_kind"] for name, way in report["ways"].items() if "by_kind" in way}
    (options.out / "consistency.md").write_text(tables(told, kinds))
    points = {
        label(name): numbers for name, numbers in told.items() if name not in (BLURRED, SAME_INDIVIDUAL, STRANGERS)
    }
    plot_planes(points, told.get(SAME_INDIVIDUAL), options.out / "consistency_plane.png")
    sheet(found, VANILLA, strength, options.sheet_subjects).save(options.out / "consistency.png", optimize=True)
    if options.details:
        told_sheet = sheet(found, NAMED_DETAILS, strength + DETAILS, options.sheet_subjects)
        told_sheet.save(options.out / "consistency_details.webp", quality=85, method=6)
    say(f"tables, plot and contact sheets: {options.out}")


def sheet(found: Ways, without: str, ours: str, subjects: int) -> Image.Image:
    """The first subjects' scenes in two ways, the one without the method above the other."""
    both = sorted(set(found.pictures[without]) & set(found.pictures[ours]))[:subjects]
    rows = [
        [[Image.fromarray(image) for image in found.pictures[way][number]] for number in both]
        for way in (without, ours)
    ]
    return comparison_sheet(rows[0], rows[1], [found.subjects[number].kind for number in both])


def progress(found: Ways, strengths: list[str], done: int, total: int) -> None:
    """One line of what is known so far."""
    told, plain = [], found.way(VANILLA)
    for name in strengths:
        so_far = numbers(found.way(name), plain)
        told.append(f"{name}: gap {so_far['identity_gap_ratio']:.3f}, hard {so_far['hard_attribute_ratio']:.3f}")
    say(f"{done}/{total} subjects; {'; '.join(told)}")


def main() -> None:
    """Command line."""
    options = parse_arguments()
    strengths = chosen_strengths(options)
    if (options.summarise or options.part != "1/1") and options.cache is None:
        raise SystemExit("--summarise and --part need --cache, where the pictures are")
    pipeline = load_pipeline(options)
    pipeline.hold_fingerprint()
    settings = {name: settings_from(options, pipeline.default_settings.with_strength(name)) for name in strengths}
    renderers = {name: renderer_of(pipeline, own, options) for name, own in settings.items()}
    subjects = consistency_subjects(options.subjects, options.scenes, options.anchors)
    caster = load_metric(METRIC) if options.cast > 1 else None
    assert caster is None or isinstance(caster, Metric)
    judge, vae = Judge.load(), pipeline.pipe.vae
    found = Ways(renderers, options.baselines, options.details, judge, subjects, vae, options.cast, caster)
    mine = shares(options)
    if options.summarise:
        found.read(mine)
    else:
        for done in found.render(mine):
            progress(found, strengths, done, len(mine))
    if options.part != "1/1":
        print(json.dumps({"part": options.part, "subjects": len(mine)}))
        return
    ways = found.summary()
    if not set(ways.get(VANILLA, Way.empty()).subjects) & set(ways.get(strengths[0], Way.empty()).subjects):
        raise SystemExit("no subject has been rendered both ways yet")
    told = evidence(ways, settings)
    for name, agreements in found.agreements.items():
        by_subject = {number: rounded(agreed) for number, agreed in sorted(agreements.items())}
        told[name]["cast"] = {"candidates": options.cast, "by": METRIC, "agreements": by_subject}
    report = {"numbers": told[strengths[0]]["numbers"], "strength": strengths[0], "steps": options.steps, "ways": told}
    write(stamped(report, pipeline), found, strengths[0], options)
    last = report["numbers"] | {"strength": strengths[0]} | described_pipeline(pipeline)
    for name, ending in WAYS_TOLD.items():
        if (way := strengths[0] + ending) in told:
            last[name] = {goal: told[way]["numbers"][goal] for goal in GOALS}
    print(json.dumps(last))


if __name__ == "__main__":
    main()
