"""Do led scenes follow their hints, does the subject stay itself in them, and what does a hint cost?

    python benchmarks/control.py --subjects 24 --cache /tmp/pictures

Every subject is made from two free anchors, as in benchmarks/consistency.py. Its scenes are rendered twice with the
same prompts and seeds: free, and led by hints that the world's own code draws, of individuals and placements that no
training picture shows: two silhouettes, an outline and a pose. The drawn individuals are of the subject's kind and wear
nothing, as prompts name nothing to wear; their build (ears pointed or folded, and so on) is chance and so often not the
subject's own. The same scenes are rendered without the method too ("vanilla"). The last line of stdout is JSON; those
without a hint's name are of scenes led by silhouettes, the others end with ``_outline`` or ``_pose``:

    silhouette_iou           IoU of the judge's foreground in led scenes with the silhouette that is asked for
    ..._without, ..._ceiling of the same scenes free; of the drawing itself
    ..._vanilla, ..._vanilla_without  led and free without the method
    led_gap_over_free        identity gap of led scenes to their anchors (1 - cosine of the judge's embeddings) over
                             that of the same scenes free, with led_gap_interval
    scene_accuracy_..., subject_accuracy_...  pictures showing the prompt's scene and kind
    colour_distance_...      CIELAB distance to the anchors of mean colours inside the judge's masks (nothing learned)
    roughness_...            lower quartile of CIELAB distances to the mean of 3 x 3 pixels there: mottled colours
    cost_ratio               CPU seconds of a led scene over those of a free one, in turns, one at a time (median)
    flops_ratio              the same of counted floating point operations
    ..._interval             95 % bootstrap intervals over subjects

Progress goes to stderr; an interrupted run goes on from --cache. --tuning takes other subjects, for choosing settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.consistency import rounded
from benchmarks.hollow_tensors import count_flops
from benchmarks.model_options import (
    add_model_options,
    add_rendering_options,
    changed,
    described_pipeline,
    load_pipeline,
    say,
)
from benchmarks.result_stamp import stamped
from consistory_ray.consistory import ConsiStoryPipeline, ControlHint, SubjectResult
from consistory_ray.evaluation.control import ControlScores, control_numbers, score_scenes
from consistory_ray.evaluation.prompts import SubjectPrompts, consistency_subjects
from consistory_ray.evaluation.rendering import METHOD_FIELDS, PictureStore, Rendered, progress, split, stacked
from consistory_ray.evaluation.sheets import grid_sheet
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import MethodSettings
from training.led import LedScene, led_scenes

HINTS = ("silhouette", "silhouette", "outline", "pose")
WAYS = ("led", "free", "vanilla_led", "vanilla")
REPORTED, TUNING = 2027, 2028
"""Seeds of the subjects."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_rendering_options(parser)
    parser.set_defaults(steps=20)
    parser.add_argument("--subjects", type=int, default=24)
    parser.add_argument("--controlnet", default="miniature", help="'miniature', a hub id, a folder or a file")
    parser.add_argument("--scale", type=float, default=1.0, help="of the hints")
    parser.add_argument("--end", type=float, default=1.0, help="share of the steps after which hints act no more")
    parser.add_argument("--mask-dropout", type=float)
    parser.add_argument("--tuning", action="store_true", help="other subjects")
    parser.add_argument("--timed", type=int, default=5, help="pairs of pictures for cost_ratio")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What renders the scenes and keeps them."""

    pipeline: ConsiStoryPipeline
    settings: MethodSettings
    store: PictureStore
    scale: float = 1.0
    end: float = 1.0

    def hints(self, scenes: list[LedScene]) -> list[ControlHint]:
        """As the pipeline takes them."""
        return [ControlHint(scene.hint, scale=self.scale, end=self.end) for scene in scenes]

    def subject(self, subject: SubjectPrompts) -> SubjectResult:
        """Make one."""
        return self.pipeline.create_subject(subject.anchors, subject.kind, subject.anchor_seeds, settings=self.settings)

    def pictures(self, subject: SubjectPrompts, scenes: list[LedScene]) -> dict[str, list[Rendered]]:
        """A subject's anchors, and its scenes in all ways."""
        common = {"subject": dataclasses.asdict(subject), "dtype": str(self.pipeline.pipe.unet.dtype)}
        ours = self.settings.to_dict()
        plain = {key: value for key, value in ours.items() if key not in METHOD_FIELDS}
        led = {"hints": [hashlib.sha256(scene.hint.tobytes()).hexdigest() for scene in scenes]}
        led |= {"nets": list(self.pipeline.control_fingerprints), "scale": self.scale, "end": self.end}
        counts = {"anchors": len(subject.anchors)} | dict.fromkeys(WAYS, len(scenes))
        keys = {
            way: [
                common
                | {"way": way, "row": row, "settings": plain if "vanilla" in way else ours}
                | (led if "led" in way else {})
                for row in range(count)
            ]
            for way, count in counts.items()
        }
        found = {way: self.store.get_all(keys[way]) for way in keys}  # type: ignore[arg-type]
        absent = [way for way, pictures in found.items() if pictures is None]
        made = self.subject(subject) if {"anchors", "led", "free"} & set(absent) else None
        for way in absent:
            controls = self.hints(scenes) if "led" in way else None
            if way == "anchors":
                result: Any = made
            elif "vanilla" in way:
                result = self.pipeline.render_vanilla(
                    subject.prompts, subject.seeds, concepts=[subject.kind], settings=self.settings, controls=controls
                )
            else:
                result = self.pipeline.render(subject.prompts, made, subject.seeds, controls=controls)
            found[way] = split(result)
            for key, picture in zip(keys[way], found[way], strict=True):
                self.store.put(key, picture)
        return found  # type: ignore[return-value]


def cost(bench: Bench, subject: SubjectPrompts, scenes: list[LedScene], pairs: int) -> dict[str, float]:
    """What a led scene costs in CPU seconds and in floating point operations, over a free one."""
    made, hint = bench.subject(subject), bench.hints(scenes)[:1]
    prompt, seed = subject.prompts[:1], subject.seeds[:1]

    def render(controls: list[ControlHint] | None) -> float:
        started = time.process_time()
        bench.pipeline.render(prompt, made, seed, controls=controls)
        return time.process_time() - started

    operations = []
    for controls in (hint, None):  # which warms up too
        with count_flops() as counter:
            render(controls)
        operations.append(counter.get_total_flops())
    ratios = [render(hint) / render(None) for _ in range(pairs)]
    return {"cost_ratio": statistics.median(ratios), "flops_ratio": operations[0] / operations[1]}


def sheet(
    found: list[dict[str, list[Rendered]]], hints: list[list[LedScene]], subjects: list[SubjectPrompts]
) -> Image.Image:
    """An anchor of every subject, and of its scenes the hint, the led and the free picture, row by row."""
    images, captions = [], []
    for pictures, scenes, subject in zip(found, hints, subjects, strict=True):
        images.append(pictures["anchors"][0].image)
        captions.append(f"{subject.kind}: an anchor")
        for row in (0, 2, 3):
            images += [scenes[row].hint, pictures["led"][row].image, pictures["free"][row].image]
            captions += [scenes[row].name, f"led, {subject.scenes[row]}", "free"]
    return grid_sheet(images, captions, columns=10, side=120)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print everything; returns what the last line holds."""
    options = parse_arguments(arguments)
    pipeline = load_pipeline(options, controlnets=[options.controlnet])
    settings = changed(
        pipeline.default_settings, num_inference_steps=options.steps, mask_dropout=options.mask_dropout
    ).replace(map_steps=max(1, round(pipeline.default_settings.map_steps * options.steps / 50)))
    bench = Bench(pipeline, settings, PictureStore(options.cache, pipeline.fingerprint), options.scale, options.end)
    seed, judge = TUNING if options.tuning else REPORTED, Judge.load()
    subjects = consistency_subjects(options.subjects, len(HINTS), seed=seed)
    hints = [led_scenes(subject, HINTS, f"{seed}/{index}") for index, subject in enumerate(subjects)]
    started, found, scores = time.monotonic(), [], []
    for done, (subject, scenes) in enumerate(zip(subjects, hints, strict=True), start=1):
        pictures = bench.pictures(subject, scenes)
        wanted, anchors = [scene.silhouette for scene in scenes], stacked(pictures["anchors"])
        ways = {way: score_scenes(judge, stacked(pictures[way]), anchors, wanted, subject) for way in WAYS}
        drawings = np.stack([np.asarray(scene.drawing) for scene in scenes])
        ways["drawings"] = score_scenes(judge, drawings, anchors, wanted, subject)
        scores.append(ControlScores([scene.name for scene in scenes], **ways))
        found.append(pictures)
        progress(done, len(subjects), "subjects", started)
    numbers = control_numbers(scores)
    if options.timed:
        numbers |= cost(bench, subjects[0], hints[0], options.timed)
    numbers = {key: rounded(value) for key, value in numbers.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    sheet(found[:8], hints[:8], subjects[:8]).save(options.out / "control.png", optimize=True)
    report: dict[str, Any] = {"numbers": numbers, **described_pipeline(pipeline), "settings": settings.to_dict()}
    report |= {"scale": options.scale, "end": options.end, "tuning": options.tuning}
    report["control_fingerprints"] = list(pipeline.control_fingerprints)
    report["subjects"] = [
        {"kind": subject.kind, **dataclasses.asdict(score)} for subject, score in zip(subjects, scores, strict=True)
    ]
    (options.out / "control.json").write_text(json.dumps(stamped(report, pipeline), indent=1) + "\n")
    say(f"report and contact sheet: {options.out}")
    print(json.dumps(numbers | described_pipeline(pipeline)))
    return numbers


if __name__ == "__main__":
    main()
