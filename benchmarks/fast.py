"""How much less may a scene cost, and what is lost by it? Profiles and single settings, paired with exact and vanilla.

    python benchmarks/fast.py --cache /tmp/fast                        # vanilla, exact, fast and turbo on 32 subjects
    python benchmarks/fast.py --cache /tmp/fast --singles-subjects 8   # and the single settings on the first 8 of them
    python benchmarks/fast.py --cache /tmp/tuning --tuning --variants vanilla exact fast   # on the other 16

Subjects, prompts and seeds are those of ``consistency.py``. A subject's anchors are made once, exactly, and all ways
read what they need of them, packed as they would keep it; all ways render the same scenes. The profiles were chosen on
``--tuning`` subjects, and the others report. ``fast_variants.py`` says what the ways are called; each is measured by

    flops_ratio          of SDXL's UNet at 1024 px, counted as in cost.py: a scene over a stock vanilla picture
    flops_ratio_alike    the same over a vanilla picture with the same savings: deep reuse, guidance
    cache_gb             10^9 bytes that scenes read of a subject of SDXL, in half precision and packed
    cpu_ratio            seconds of the scenes over those of the vanilla pictures rendered beside them, encoding and
                         decoding included: of the process, on a GPU of the clock. Ways take turns at being first
    gap_ratio            distance from perfect identity similarity, over vanilla's
    gain_kept            share of exact's gain in it that is kept, gain_kept_low: the lower end of its interval
    layout_drop          layout diversity (over vanilla's) less than exact's
    disagreement_rise    pairs of pictures in which the judge reads another attribute, over exact; by attribute too
    scene_probability_drop, colour_ratio, psnr (dB, against exact), ...

with 95 % bootstrap intervals over subjects (``..._interval``). The last line of stdout is JSON: ``subjects``, and by
name an object of these. Progress goes to stderr; an interrupted run goes on from --cache, which also keeps the seconds:
give another folder once the method has changed. 32 subjects take 50 CPU minutes, counting FLOPs some more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fast_report import plot_pareto, sheet, table
from benchmarks.fast_variants import EXACT, VANILLA, counted_costs, everything_recorded, singles, variants
from benchmarks.model_options import (
    add_model_options,
    add_rendering_options,
    changed,
    described_pipeline,
    load_pipeline,
    say,
    synchronise,
)
from benchmarks.random_sdxl import QUICK, SDXL
from benchmarks.result_stamp import stamped
from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, RenderResult
from consistory_ray.consistory.cache.contents import packed_for
from consistory_ray.evaluation.bootstrap import ratio_interval
from consistory_ray.evaluation.prompts import SubjectPrompts, consistency_subjects
from consistory_ray.evaluation.rendering import PictureStore, Rendered, Renderer, progress, split, stacked
from consistory_ray.evaluation.savings import SavingScores, compare_saving, score_saving
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import PROFILES, MethodSettings

REPORTED, TUNING = (0, 32), (32, 16)
"""First subject and number of subjects of each part of the subjects; choices were made on the second one."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_rendering_options(parser)
    parser.set_defaults(threads=1)
    parser.add_argument("--subjects", type=int, help="how many (32; 16 with --tuning)")
    parser.add_argument("--first", type=int, help="the first of them (0; 32 with --tuning)")
    parser.add_argument("--tuning", action="store_true", help="the subjects that choices were made on")
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--variants", nargs="+", default=[VANILLA, *PROFILES], metavar="NAME", help="ways to compare")
    parser.add_argument("--singles-subjects", type=int, default=0, help="on so many subjects single settings too")
    parser.add_argument("--timed", type=int, help="subjects whose seconds count, the first ones (all)")
    parser.add_argument("--topology", choices=("sdxl", "quick", "none"), default="sdxl", help="whose FLOPs are counted")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sheet-subjects", type=int, default=8, help="subjects on the contact sheet, the first ones")
    options = parser.parse_args(arguments)
    first, count = TUNING if options.tuning else REPORTED
    options.first = first if options.first is None else options.first
    options.subjects = count if options.subjects is None else options.subjects
    return options


@dataclasses.dataclass(frozen=True)
class Sample:
    """A subject's scenes made one way.

    Attributes:
        pictures: of the scenes, in order.
        seconds: that they took, None where they were not timed.
        vanilla_seconds: that the vanilla pictures took which were rendered beside them.
    """

    pictures: list[Rendered]
    seconds: float | None = None
    vanilla_seconds: float | None = None

    @property
    def timed(self) -> bool:
        """Whether its seconds are known, and what to compare them with."""
        return self.seconds is not None and self.vanilla_seconds is not None


@dataclasses.dataclass(frozen=True)
class Bench:
    """What renders scenes in all ways and keeps them.

    Attributes:
        pipeline: the model.
        ways: settings of each way by name, see :func:`benchmarks.fast_variants.variants`.
        store: of earlier pictures, and of their seconds.
    """

    pipeline: ConsiStoryPipeline
    ways: Mapping[str, MethodSettings]
    store: PictureStore

    def keys(self, subject: SubjectPrompts, name: str) -> list[dict[str, object]]:
        """Under which scenes are stored: those of the other benchmarks."""
        renderer = Renderer(self.pipeline, self.ways[name], self.store, len(subject.prompts))
        if name == VANILLA:
            return renderer.vanilla_keys(subject.prompts, subject.seeds)
        return renderer.subject_keys(subject)[1]

    def seconds_path(self, subject: SubjectPrompts, name: str) -> Path | None:
        """Where the seconds of a subject's scenes are kept."""
        if self.store.folder is None:
            return None
        key = {"seconds of": self.keys(subject, name), "device": described_pipeline(self.pipeline)}
        return self.store.path(key).with_suffix(".json")

    def known(self, subject: SubjectPrompts, name: str) -> Sample | None:
        """What an earlier run left."""
        pictures, path = self.store.get_all(self.keys(subject, name)), self.seconds_path(subject, name)
        if pictures is None:
            return None
        return Sample(pictures, **(json.loads(path.read_text()) if path is not None and path.exists() else {}))

    def keep(self, subject: SubjectPrompts, name: str, sample: Sample) -> None:
        """Leave it to later runs."""
        for key, picture in zip(self.keys(subject, name), sample.pictures, strict=True):
            self.store.put(key, picture)
        path = self.seconds_path(subject, name)
        if path is not None and sample.timed:
            path.write_text(json.dumps({"seconds": sample.seconds, "vanilla_seconds": sample.vanilla_seconds}))

    def clock(self) -> float:
        """Seconds of the process, on a GPU of the clock, once everything begun is done."""
        synchronise(self.pipeline.device)
        return time.process_time() if self.pipeline.device.type == "cpu" else time.perf_counter()

    def render(self, subject: SubjectPrompts, name: str, caches: Mapping[str, AnchorCache]) -> tuple[float, Sample]:
        """A subject's scenes and their seconds."""
        settings, started = self.ways[name], self.clock()
        if name == VANILLA:
            result: RenderResult = self.pipeline.render_vanilla(subject.prompts, subject.seeds, settings=settings)
        else:
            result = self.pipeline.render(subject.prompts, caches[name], subject.seeds, settings=settings)
        seconds = self.clock() - started
        return seconds, Sample(split(result))

    def subject(
        self, subject: SubjectPrompts, names: Collection[str], timed: Collection[str] = (), turn: int = 0
    ) -> dict[str, Sample]:
        """A subject's scenes in several ways.

        Args:
            subject: whose.
            names: of the ways.
            timed: those whose seconds must be known; if one is rendered, vanilla is rendered beside it.
            turn: by how many the order of the ways is rotated.
        """
        known = {name: self.known(subject, name) for name in names}
        found = {name: sample for name, sample in known.items() if sample is not None}
        absent = [name for name in names if name not in found or (name in timed and not found[name].timed)]
        if set(absent) & set(timed) and VANILLA not in absent:
            absent.insert(0, VANILLA)
        caches: dict[str, AnchorCache] = {}
        if set(absent) - {VANILLA}:
            with everything_recorded():
                made = self.pipeline.create_subject(
                    subject.anchors, subject.kind, subject.anchor_seeds, settings=self.ways[EXACT]
                )
            caches = {name: packed_for(made.cache, self.ways[name]) for name in absent if name != VANILLA}
        seconds: dict[str, float] = {}
        for index in range(len(absent)):
            name = absent[(index + turn) % len(absent)]
            seconds[name], found[name] = self.render(subject, name, caches)
        for name in absent:
            found[name] = dataclasses.replace(found[name], seconds=seconds[name], vanilla_seconds=seconds.get(VANILLA))
            self.keep(subject, name, found[name])
        return {name: found[name] for name in names}

    def warm_up(self, subject: SubjectPrompts) -> None:
        """A picture of two steps, so that the first one that counts finds everything ready."""
        few = self.ways[EXACT].replace(num_inference_steps=2)
        self.pipeline.render_vanilla(subject.prompts[:1], subject.seeds[:1], settings=few)


def seconds_ratio(samples: list[Sample]) -> dict[str, Any]:
    """``cpu_ratio`` with its interval over subjects, and how many were timed; nothing where none was."""
    timed = [(sample.seconds, sample.vanilla_seconds) for sample in samples if sample.timed]
    if not timed:
        return {}
    ours, plain = np.array(timed, dtype=float).T
    scenes = sum(len(sample.pictures) for sample in samples if sample.timed)
    return {
        "cpu_ratio": float(ours.sum() / plain.sum()),
        "cpu_ratio_interval": list(ratio_interval(ours, plain)),
        "cpu_seconds": float(ours.sum() / scenes),
        "timed_subjects": len(timed),
    }


def compared(
    scores: list[dict[str, SavingScores]], samples: list[dict[str, Sample]], names: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Each way's numbers, over the subjects that were made this way."""
    numbers = {}
    for name in names:
        rows = [row for row, own in enumerate(scores) if name in own]
        if rows:
            columns = [[scores[row][way] for row in rows] for way in (name, EXACT, VANILLA)]
            numbers[name] = compare_saving(*columns) | seconds_ratio([samples[row][name] for row in rows])
    return numbers


def rounded(value: Any) -> Any:
    """All numbers of a report with four decimals."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def report_of(options: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """What the results say about where they come from."""
    return {
        "half": "tuning" if options.first >= sum(REPORTED) else "report",
        "first": options.first,
        "scenes": options.scenes,
        "topology": options.topology,
        **described_pipeline(bench.pipeline),
        "seconds": "process" if bench.pipeline.device.type == "cpu" else "clock",
        "threads": options.threads,
        "settings": {name: settings.to_dict() for name, settings in bench.ways.items()},
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print everything; returns what the last line holds."""
    options = parse_arguments(arguments)
    pipeline = load_pipeline(options)
    pipeline.hold_fingerprint()
    names = list(dict.fromkeys([VANILLA, EXACT, *options.variants]))
    single = [name for name in (singles() if options.singles_subjects else ()) if name not in names]
    base = changed(pipeline.default_settings, num_inference_steps=options.steps)
    bench = Bench(pipeline, variants([*names, *single], base), PictureStore(options.cache, pipeline.fingerprint))
    every = consistency_subjects(options.first + options.subjects, options.scenes)[options.first :]
    timed = len(every) if options.timed is None else options.timed
    judge, started = Judge.load(), time.monotonic()
    bench.warm_up(every[0])
    samples: list[dict[str, Sample]] = []
    scores: list[dict[str, SavingScores]] = []
    for row, subject in enumerate(every):
        wanted = [*names, *(single if row < options.singles_subjects else ())]
        samples.append(bench.subject(subject, wanted, names if row < timed else (), row))
        images = {name: stacked(sample.pictures) for name, sample in samples[-1].items()}
        scores.append({name: score_saving(judge, own, images[EXACT], subject) for name, own in images.items()})
        progress(row + 1, len(every), "subjects", started)
    numbers = compared(scores, samples, bench.ways)
    if options.topology != "none":
        topology = SDXL if options.topology == "sdxl" else QUICK
        counted = MethodSettings(num_inference_steps=base.num_inference_steps)
        costs = counted_costs(topology, variants(list(numbers), counted), options.cache)
        costs[VANILLA] = {"flops_ratio": 1.0}
        numbers = {name: costs[name] | own for name, own in numbers.items()}
    report = report_of(options, bench) | {"numbers": rounded(numbers)}
    report["subjects"] = [
        {
            "kind": subject.kind,
            "scores": {name: dataclasses.asdict(score) for name, score in own.items()},
            "seconds": {name: [sample.seconds, sample.vanilla_seconds] for name, sample in made.items()},
        }
        for subject, own, made in zip(every, scores, samples, strict=True)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "fast.json").write_text(json.dumps(stamped(report, pipeline), indent=1) + "\n")
    (options.out / "fast.md").write_text(table(report["numbers"]))
    plot_pareto(report["numbers"], names, options.out / "fast.png")
    shown = slice(0, options.sheet_subjects)
    pictures = [{name: made[name].pictures for name in names} for made in samples[shown]]
    sheet(pictures, [subject.kind for subject in every[shown]]).save(options.out / "fast_sheet.webp", quality=85)
    say(f"report, table, plot and contact sheet: {options.out}")
    result = {"subjects": len(every), **report["numbers"], "half": report["half"], **described_pipeline(pipeline)}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
