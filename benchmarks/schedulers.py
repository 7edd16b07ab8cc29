"""What is left of the method's effect on other schedules? DDIM, DPM++, Euler, and models distilled to a few steps.

    python benchmarks/schedulers.py --cache /tmp/schedules                       # all schedules, 32 subjects
    python benchmarks/schedulers.py --cache /tmp/schedules --schedules euler_25  # this one, beside the reference
    python benchmarks/schedulers.py --cache /tmp/tuning --tuning --change '{"injection_alpha": 0.9}'

Subjects, prompts and seeds are those of ``consistency.py``. Under each schedule the same scenes are rendered with the
method (as profile ``exact`` has it) and without, from the same noise, by the same model: for the distilled schedules
the bundled one with the LoRA that makes it draw in 8 or 4 steps. Whatever was chosen was chosen on the ``--tuning``
subjects, and the others report. For each schedule, with 95 % bootstrap intervals over subjects (``..._interval``):

    gain_kept               (vanilla's gap - the method's) / (the same at DDIM with 50 steps)
    identity_gap_ratio      distance from perfect identity similarity, over vanilla's under the same schedule
    scene_accuracy          share of pictures that show the prompt's scene; ..._vanilla: of vanilla's
    layout_diversity_ratio  how much layouts vary, over vanilla's
    seconds                 of the process for a scene, encoding and decoding included, anchors not (on a GPU of the
                            clock); seconds_vanilla: for a vanilla picture, rendered in turns with the scenes
    seconds_ratio           the one over the other

The last line of stdout is JSON: ``subjects``, and by name of the schedule an object of these. Progress goes to stderr;
an interrupted run goes on from --cache, which also keeps the seconds: give another folder once the method has changed.
A subject takes about four CPU minutes. Without --schedules, other models than the bundled one leave out the distilled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fast import REPORTED, TUNING, Bench, Sample, rounded
from benchmarks.fast_variants import EXACT, VANILLA
from benchmarks.model_options import (
    add_model_options,
    described_pipeline,
    load_pipeline,
    say,
)
from benchmarks.result_stamp import stamped
from benchmarks.schedulers_report import plot, sheet, table
from consistory_ray.errors import InputError, Problem
from consistory_ray.evaluation.bootstrap import mean_interval, ratio_interval
from consistory_ray.evaluation.consistency import score_subject
from consistory_ray.evaluation.prompts import SubjectPrompts, consistency_subjects
from consistory_ray.evaluation.rendering import PictureStore, progress, stacked
from consistory_ray.evaluation.schedules import Pair, compare_schedules
from consistory_ray.guards.setting_ranges import setting_problems
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import BUNDLED_MODEL, MethodSettings

WAYS = (VANILLA, EXACT)
SCENES = 6
"""Of a subject."""
REFERENCE = "ddim_50"
"""The schedule whose gain is the yardstick."""


@dataclass(frozen=True)
class Schedule:
    """A way through the noise levels.

    Attributes:
        title: what plots and sheets call it.
        changes: of the model's settings.
        loras: which the model is loaded with.
    """

    title: str
    changes: Mapping[str, Any]
    loras: Sequence[str] = field(default=())

    def settings(self, base: MethodSettings, steps: int | None = None) -> MethodSettings:
        """Everything exact, under this schedule; ``steps`` for a quick look."""
        changes = dict(self.changes)
        if steps is not None:
            changes["num_inference_steps"] = steps
            changes.pop("timesteps", None)
        return base.exact.replace(**changes)


EIGHT, FOUR = (999, 874, 749, 624, 499, 374, 249, 124), (999, 749, 499, 249)
"""Timesteps that the bundled model was distilled for."""


def _distilled(*timesteps: int, **more: Any) -> Schedule:
    steps = len(timesteps)
    changes = {"num_inference_steps": steps, "timesteps": timesteps, "guidance_scale": 1.0, **more}
    title = f"distilled, {steps}" if more else f"distilled, {steps}, default"
    return Schedule(title, changes, (f"miniature/distilled-{steps}",))


SCHEDULES: Mapping[str, Schedule] = {
    REFERENCE: Schedule("DDIM, 50", {"num_inference_steps": 50}),
    "ddim_20": Schedule("DDIM, 20", {"num_inference_steps": 20}),
    "dpmpp_2m_karras_20": Schedule(
        "DPM++ Karras, 20", {"num_inference_steps": 20, "scheduler": "dpmpp_2m", "sigma_schedule": "karras"}
    ),
    "euler_25": Schedule("Euler, 25", {"num_inference_steps": 25, "scheduler": "euler"}),
    "euler_a_25": Schedule("Euler ancestral, 25", {"num_inference_steps": 25, "scheduler": "euler_a"}),
    "blueprint_20": Schedule(
        "blueprint, 20",
        {"num_inference_steps": 20, "scheduler": "dpmpp_2m", "sigma_schedule": "karras"},
        ("miniature/blueprint",),
    ),
    "distilled_8": _distilled(*EIGHT, injection_window=(0.1, 0.4)),
    "distilled_8_default": _distilled(*EIGHT),
    "distilled_4": _distilled(*FOUR, injection_window=(0.1, 0.5)),
    "distilled_4_default": _distilled(*FOUR),
}
"""By name; one that ends in ``_default`` has no setting of its own besides the sampler's."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.set_defaults(threads=1)
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, metavar="NAME", help="which (all)")
    parser.add_argument("--subjects", type=int, help="how many (32; 16 with --tuning)")
    parser.add_argument("--first", type=int, help="the first of them (0; 32 with --tuning)")
    parser.add_argument("--tuning", action="store_true", help="the subjects that choices were made on")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--change", type=json.loads, default={}, help="settings of all but the reference, as JSON")
    parser.add_argument("--steps", type=int, help="of every schedule, in place of its own: for a quick look")
    parser.add_argument("--cache", type=Path, help="folder to keep pictures in, for going on after an interruption")
    parser.add_argument("--known", action="store_true", help="report what --cache holds, and render nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sheet-subjects", type=int, default=2, help="subjects on the contact sheet, the first ones")
    options = parser.parse_args(arguments)
    if options.schedules is None:
        options.schedules = [
            name for name, schedule in SCHEDULES.items() if options.model == BUNDLED_MODEL or not schedule.loras
        ]
    options.schedules = list(dict.fromkeys([REFERENCE, *options.schedules]))
    first, count = TUNING if options.tuning else REPORTED
    options.first = first if options.first is None else options.first
    options.subjects = count if options.subjects is None else options.subjects
    check_change(options.change)
    return options


def check_change(change: Any) -> None:
    """Refuse settings that do not exist, or cannot be.

    Raises:
        InputError: naming them.
    """
    known = {item.name for item in dataclasses.fields(MethodSettings)}
    if not isinstance(change, dict):
        problems = [Problem("--change", repr(change), "write a JSON object of settings")]
    else:
        unknown = [Problem(f"--change {name}", repr(change[name]), "no setting") for name in change.keys() - known]
        problems = unknown or setting_problems(change)
    if problems:
        raise InputError("the settings cannot be used", problems)


def benches(options: argparse.Namespace) -> dict[str, Bench]:
    """What renders under each schedule, by its name; schedules without LoRAs share a model."""
    loaded: dict[tuple[str, ...], Any] = {}
    found = {}
    for name in options.schedules:
        schedule, loras = SCHEDULES[name], tuple(SCHEDULES[name].loras)
        if loras not in loaded:
            loaded[loras] = load_pipeline(options, **({"loras": list(loras)} if loras else {}))
            loaded[loras].hold_fingerprint()
        pipeline = loaded[loras]
        settings = schedule.settings(pipeline.default_settings, options.steps)
        if name != REFERENCE:
            settings = MethodSettings.from_dict(settings.to_dict() | options.change)
        store = PictureStore(options.cache, pipeline.fingerprint)
        found[name] = Bench(pipeline, dict.fromkeys(WAYS, settings), store)
    return found


def seconds_of(samples: Sequence[Mapping[str, Sample]]) -> dict[str, Any]:
    """Of a scene and a vanilla picture of the subjects that were timed, with intervals; nothing where none was."""
    timed = [own[EXACT] for own in samples if own[EXACT].timed]
    if not timed:
        return {}
    ours, plain = (
        np.array([getattr(one, name) / len(one.pictures) for one in timed]) for name in ("seconds", "vanilla_seconds")
    )
    return {
        "seconds": float(ours.mean()),
        "seconds_interval": list(mean_interval(ours)),
        "seconds_vanilla": float(plain.mean()),
        "seconds_vanilla_interval": list(mean_interval(plain)),
        "seconds_ratio": float(ours.sum() / plain.sum()),
        "seconds_ratio_interval": list(ratio_interval(ours, plain)),
        "timed_subjects": len(timed),
    }


def subjects_of(options: argparse.Namespace) -> list[SubjectPrompts]:
    """Those that a command line names; with fewer scenes these are the first ones of six."""
    every = consistency_subjects(options.first + options.subjects, max(SCENES, options.scenes))[options.first :]
    kept = slice(0, options.scenes)
    return [
        dataclasses.replace(one, prompts=one.prompts[kept], seeds=one.seeds[kept], scenes=one.scenes[kept])
        for one in every
    ]


Samples = Mapping[str, Mapping[int, Mapping[str, Sample]]]
"""Scenes by schedule, number of the subject, and way."""


def rendered(bench: Mapping[str, Bench], subjects: Sequence[SubjectPrompts], only_known: bool = False) -> Samples:
    """All subjects' scenes under all schedules with and without the method, each subject under all before the next.

    What is rendered is timed; pictures whose seconds nobody kept are not rendered again for them.

    Args:
        bench: what renders, by schedule.
        subjects: whose scenes.
        only_known: take what there is, and render nothing.
    """
    found: dict[str, dict[int, Mapping[str, Sample]]] = {name: {} for name in bench}
    started = time.monotonic()
    if not only_known:
        next(iter(bench.values())).warm_up(subjects[0])
    for row, subject in enumerate(subjects):
        for name, own in bench.items():
            known = {way: own.known(subject, way) for way in WAYS}
            there = {way: sample for way, sample in known.items() if sample is not None}
            if len(there) == len(WAYS):
                found[name][row] = there
            elif not only_known:
                found[name][row] = own.subject(subject, WAYS, WAYS, row)
        progress(row + 1, len(subjects), "subjects", started)
    return found


def measured(samples: Samples, subjects: Sequence[SubjectPrompts]) -> dict[str, dict[int, Pair]]:
    """The same, as the judge sees it."""
    judge = Judge.load()
    return {
        name: {
            row: Pair(*(score_subject(judge, stacked(own[way].pictures), subjects[row]) for way in (EXACT, VANILLA)))
            for row, own in rows.items()
        }
        for name, rows in samples.items()
    }


def report_of(options: argparse.Namespace, bench: Mapping[str, Bench]) -> dict[str, Any]:
    """What the results say about where they come from."""
    pipeline = bench[REFERENCE].pipeline
    return {
        "half": "tuning" if options.first >= sum(REPORTED) else "report",
        "first": options.first,
        "scenes": options.scenes,
        **described_pipeline(pipeline),
        "seconds": "process" if pipeline.device.type == "cpu" else "clock",
        "threads": options.threads,
        "schedules": {
            name: {
                "loras": list(SCHEDULES[name].loras),
                "model_fingerprint": own.pipeline.fingerprint,
                "settings": own.ways[EXACT].to_dict(),
            }
            for name, own in bench.items()
        },
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print everything; returns what the last line holds."""
    options = parse_arguments(arguments)
    bench, subjects = benches(options), subjects_of(options)
    samples = rendered(bench, subjects, options.known)
    scores = measured(samples, subjects)
    compared = compare_schedules(scores, REFERENCE)
    numbers = rounded({name: own | seconds_of(list(samples[name].values())) for name, own in compared.items()})
    report = report_of(options, bench) | {"numbers": numbers}
    report["subjects"] = [
        {
            "kind": subject.kind,
            "scores": {
                name: {EXACT: dataclasses.asdict(own[row].ours), VANILLA: dataclasses.asdict(own[row].vanilla)}
                for name, own in scores.items()
                if row in own
            },
            "seconds": {
                name: [own[row][way].seconds for way in (EXACT, VANILLA)] for name, own in samples.items() if row in own
            },
        }
        for row, subject in enumerate(subjects)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "schedulers.json").write_text(
        json.dumps(stamped(report, bench[REFERENCE].pipeline), indent=1) + "\n"
    )
    titles = {name: SCHEDULES[name].title for name in numbers}
    (options.out / "schedulers.md").write_text(table(numbers, titles))
    plot(numbers, titles, options.out / "schedulers.png")
    shown = [
        {titles[name]: [samples[name][row][way].pictures for way in WAYS] for name in numbers if row in samples[name]}
        for row in range(min(options.sheet_subjects, len(subjects)))
    ]
    sheet(shown, [subject.kind for subject in subjects]).save(options.out / "schedulers_sheet.webp", quality=85)
    say(f"report, table, plot and contact sheet: {options.out}")
    result = {
        "subjects": numbers[REFERENCE]["subjects"],
        **numbers,
        "half": report["half"],
        "scenes": options.scenes,
        **described_pipeline(bench[REFERENCE].pipeline),
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
