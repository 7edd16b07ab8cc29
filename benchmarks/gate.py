"""Does a gate that renders again what falls short make better use of the same number of pictures?

    python benchmarks/gate.py --cache /tmp/takes                     # 16 subjects of 6 scenes, up to 4 takes each
    python benchmarks/gate.py --cache /tmp/tuning --tuning           # other subjects, on which the gate was chosen

Every scene of every subject is rendered in ``--takes`` takes, with the seeds that a job's takes have, by the bundled
model with the LoRA that makes it draw in eight steps. The gate (:mod:`consistory_ray.quality.gate`, the state machine
that runs use) then asks for takes as it would in a run, and keeps the best one. It is compared with a run *of the same
number of pictures* that nobody looks at: one that makes the same takes and keeps any of them. What that comes to on
average is known exactly, it is the mean over all takes.

What gates does not measure: the gate compares colours inside the method's own subject masks, with nothing learned
(``colours``, :mod:`consistory_ray.quality.colours`). What measures is the judge: a picture's *gap* is one less the mean
cosine of its identity embedding and its anchors', by the judge's own masks. A gate by the judge itself would be
measured by what it has chosen by, and look better than it is; ``--metric judge`` shows by how much. An *outlier* is a
picture whose gap is more than twice the median gap of all takes.

The last line of stdout is JSON:

    subjects, pictures   how many, and how many pictures the gated run takes for each picture that it keeps
    outlier_ratio        share of outliers among what the gate keeps / among all takes, with outlier_interval
    gap_ratio            the same of the mean gap, with gap_interval: 95 % bootstrap intervals over subjects
    outliers, outliers_ungated, gap, gap_ungated    the shares and means themselves
    short                share of scenes of which no take passes
    with_cast            with --cast N: the same gate on subjects whose anchors were cast among N candidates
                         (benchmarks/casting.py), against all takes of the subjects as they were; cast_alone: without a
                         gate. Candidates' anchors count as pictures. A gap is to a subject's own anchors;
                         among_ratio is of the mean distance of scenes to each other, in which no anchor has a part
    score_share          seconds of scoring a picture / seconds of rendering it, both measured here

Progress goes to stderr; an interrupted run goes on from --cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.casting import cast
from benchmarks.fast import REPORTED, TUNING
from benchmarks.model_options import add_model_options, add_rendering_options, load_pipeline, renderer_of, say
from benchmarks.result_stamp import stamped
from consistory_ray.adapters import LoRA
from consistory_ray.evaluation.bootstrap import ratio_interval
from consistory_ray.evaluation.prompts import SubjectPrompts, consistency_subjects
from consistory_ray.evaluation.rendering import Rendered, Renderer
from consistory_ray.plan.takes import take_seed
from consistory_ray.quality.gate import Bar, Gate, Verdict
from consistory_ray.quality.identity import likeness, likeness_among, subject_embeddings
from consistory_ray.quality.judged import JudgeMetric
from consistory_ray.quality.metrics import Metric, load_metric
from consistory_ray.quality.scorer import Looked, Scorer

LORA = "miniature/distilled-8"
STEPS = {
    "scheduler": "ddim",
    "timesteps": (999, 874, 749, 624, 499, 374, 249, 124),
    "num_inference_steps": 8,
    "guidance_scale": 1.0,
    "injection_window": (0.1, 0.4),
}
"""As pipelines/few_steps.yaml has them."""
OUTLIER = 2.0
"""How many median gaps make an outlier."""
THRESHOLD = 0.8
"""Of judge-2's scores, chosen with --tuning."""


@dataclass(frozen=True)
class Takes:
    """One subject: all takes of all of its scenes, measured.

    Attributes:
        gaps: by what measures, ``[scenes, takes]``.
        scores: by what gates, ``[scenes, takes]``.
        embeddings: by what measures, ``[scenes, takes, D]``.
        extra: pictures that were made besides, of candidates' anchors.
    """

    gaps: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    extra: int = 0

    def among(self, kept: Sequence[tuple[int, int]]) -> float:
        """Mean distance from each other of pictures of different scenes."""
        shown = np.stack([self.embeddings[place] for place in kept])
        return 1 - float(likeness_among(shown).mean())

    def among_all(self) -> float:
        """The same, if any take of a scene stands for it."""
        means = self.embeddings.mean(1).astype(np.float64)
        cosines, count = means @ means.T, len(means)
        return 1 - float((cosines.sum() - cosines.trace()) / (count * (count - 1)))


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_rendering_options(parser)
    parser.add_argument("--subjects", type=int, default=16)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--takes", type=int, default=4, help="at most, of a scene; the gate's max_takes")
    bar = parser.add_mutually_exclusive_group()
    bar.add_argument("--threshold", type=float, default=THRESHOLD, help="the gate's: a score that passes")
    bar.add_argument("--within", type=float, help="the gate's, in its place: how far below the subject's median")
    parser.add_argument("--metric", default="judge-2", help="what gates")
    parser.add_argument("--cast", type=int, default=1, metavar="N", help="also anchors cast among N candidates")
    parser.add_argument("--tuning", action="store_true", help="other subjects than those that are reported")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def cast_subjects(
    renderer: Renderer, judge: Metric, gating: Metric, prompts: Sequence[SubjectPrompts], options: argparse.Namespace
) -> list[Takes]:
    """The subjects with anchors that were cast by what gates, measured."""
    found = []
    for number, subject in enumerate(prompts):
        chosen = cast(renderer, gating, subject, options.cast).subject
        takes = measured(renderer, judge, gating, f"{subject.kind}-{number}", chosen, options.takes)
        found.append(replace(takes, extra=(options.cast - 1) * len(subject.anchors)))
        say(f"{number + 1}/{len(prompts)} subjects cast")
    return found


def bar_of(options: argparse.Namespace) -> Bar:
    """What the gate demands; a distance from the median stands in the place of a threshold."""
    if options.within is not None:
        return Bar(within=options.within, max_takes=options.takes)
    return Bar(threshold=options.threshold, max_takes=options.takes)


def with_takes(subject: SubjectPrompts, takes: int) -> SubjectPrompts:
    """The subject with each scene so many times in a row, with the seeds of its takes."""
    numbers = range(1, takes + 1)
    return replace(
        subject,
        prompts=tuple(prompt for prompt in subject.prompts for _ in numbers),
        seeds=tuple(take_seed(seed, number) for seed in subject.seeds for number in numbers),
        scenes=tuple(scene for scene in subject.scenes for _ in numbers),
    )


def looked(pictures: Sequence[Rendered], name: str) -> list[Looked]:
    """Pictures as scorers take them, with the finest of the method's masks."""
    finest = [max(picture.masks.values(), key=lambda mask: mask.shape[-1]) for picture in pictures]
    return [
        Looked(picture.image, mask, f"{name}/{number}")
        for number, (picture, mask) in enumerate(zip(pictures, finest, strict=True))
    ]


def measured(
    renderer: Renderer, judge: Metric, gating: Metric, name: str, subject: SubjectPrompts, takes: int
) -> Takes:
    """Render and measure one subject."""
    anchors, pictures = renderer.subject(with_takes(subject, takes))
    shape = (len(subject.prompts), takes)
    seen, references = looked(pictures, name), looked(anchors, f"{name}/anchors")
    own, others = ([one.image for one in some] for some in (seen, references))
    none: list[None] = [None] * len(own)
    keys = [one.key for one in seen]
    reference = subject_embeddings(judge, others, none[: len(others)], [one.key for one in references])
    embedded = subject_embeddings(judge, own, none, keys)
    gaps = 1 - likeness(embedded, reference)
    scorer = Scorer(gating, "identity", gating.name)
    scores = [scorer.score(one, name, lambda: references) for one in seen]
    return Takes(gaps.reshape(shape), np.array(scores).reshape(shape), np.reshape(embedded, (*shape, -1)))


def gated(takes: Takes, bar: Bar) -> tuple[list[tuple[int, int]], list[int], int]:
    """What the gate does with one subject.

    Returns:
        For each scene its place and that of the take that is kept, how many takes each scene has, and how many scenes
        fall short.
    """
    names = [str(scene) for scene in range(len(takes.scores))]
    gate = Gate(bar, {"subject": names})
    waiting = [(name, 1) for name in names]
    while waiting:
        name, number = waiting.pop(0)
        waiting += [tuple(one) for one in gate.came(name, number, float(takes.scores[int(name), number - 1]))]
    kept = []
    for name in names:
        best = gate.best(name)
        assert best is not None
        kept.append((int(name), best[0] - 1))
    short = sum(gate.verdict(name) is Verdict.SHORT for name in names)
    return kept, [gate.takes(name) for name in names], short


def compared(subjects: Sequence[Takes], bar: Bar) -> dict[str, Any]:
    """What the gate keeps against all takes."""
    limit = OUTLIER * float(np.median(np.concatenate([one.gaps.ravel() for one in subjects])))
    rows = []
    made = short = 0
    for one in subjects:
        kept, counts, missed = gated(one, bar)
        own = np.array([one.gaps[place] for place in kept])
        rows.append((own.mean(), one.gaps.mean(), (own > limit).mean(), (one.gaps > limit).mean()))
        made, short = made + sum(counts), short + missed
    gap, gap_all, out, out_all = np.array(rows).T
    scenes = sum(len(one.gaps) for one in subjects)
    return {
        "subjects": len(subjects),
        "pictures": made / scenes,
        "outlier_ratio": out.mean() / out_all.mean() if out_all.any() else None,
        "outlier_interval": list(ratio_interval(out, out_all)) if out_all.any() else None,
        "gap_ratio": gap.mean() / gap_all.mean(),
        "gap_interval": list(ratio_interval(gap, gap_all)),
        "outliers": out.mean(),
        "outliers_ungated": out_all.mean(),
        "gap": gap.mean(),
        "gap_ungated": gap_all.mean(),
        "short": short / scenes,
    }


def with_cast(plain: Sequence[Takes], cast: Sequence[Takes], bar: Bar) -> dict[str, Any]:
    """What gate and casting together come to, and casting alone, against all takes of the subjects as they were."""
    limit = OUTLIER * float(np.median(np.concatenate([one.gaps.ravel() for one in plain])))
    chosen = [gated(one, bar)[:2] for one in cast]
    before = {
        "gap": np.array([one.gaps.mean() for one in plain]),
        "outlier": np.array([(one.gaps > limit).mean() for one in plain]),
        "among": np.array([one.among_all() for one in plain]),
    }
    own = [np.array([one.gaps[place] for place in kept]) for one, (kept, _) in zip(cast, chosen, strict=True)]
    both = {
        "gap": np.array([gaps.mean() for gaps in own]),
        "outlier": np.array([(gaps > limit).mean() for gaps in own]),
        "among": np.array([one.among(kept) for one, (kept, _) in zip(cast, chosen, strict=True)]),
    }
    alone = {
        "gap": np.array([one.gaps.mean() for one in cast]),
        "outlier": np.array([(one.gaps > limit).mean() for one in cast]),
        "among": np.array([one.among_all() for one in cast]),
    }
    extra, scenes = sum(one.extra for one in cast), sum(len(one.gaps) for one in cast)
    made = sum(sum(counts) for _, counts in chosen)

    def compare(found: dict[str, np.ndarray], pictures: float) -> dict[str, Any]:
        numbers: dict[str, Any] = {"pictures": pictures}
        for name, values in found.items():
            some = before[name].any()
            numbers[f"{name}_ratio"] = values.mean() / before[name].mean() if some else None
            numbers[f"{name}_interval"] = list(ratio_interval(values, before[name])) if some else None
        return numbers | {"outliers": found["outlier"].mean()}

    return {"with_cast": compare(both, (made + extra) / scenes), "cast_alone": compare(alone, 1 + extra / scenes)}


def score_share(renderer: Renderer, gating: Metric, subject: SubjectPrompts) -> float:
    """Seconds of scoring a picture over seconds of rendering it; anchors are embedded once for all of a subject's."""
    made = renderer.pipeline.create_subject(
        subject.anchors, subject.kind, subject.anchor_seeds, settings=renderer.settings
    )
    renderer.scenes(subject.prompts, subject.seeds, made)  # warm
    started = time.process_time()
    pictures = renderer.scenes(subject.prompts, subject.seeds, made)
    rendering = time.process_time() - started
    seen = looked(pictures, "timed")
    scorer = Scorer(gating, "identity", gating.name)
    scorer.score(seen[0], "warm", lambda: seen[:2])
    started = time.process_time()
    for one in seen:
        scorer.score(one, "timed", lambda: seen[:2])
    return (time.process_time() - started) / rendering


def rounded(value: Any) -> Any:
    """Numbers with four decimals."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(float(value), 4) if isinstance(value, float | np.floating) else value


def told(prompts: Sequence[SubjectPrompts], subjects: Sequence[Takes]) -> list[dict[str, Any]]:
    """The rows of subjects, as the result has them."""
    return [
        {
            "kind": subject.kind,
            "gaps": rounded(one.gaps.astype(float).tolist()),
            "scores": one.scores.tolist(),
            "extra": one.extra,
        }
        for subject, one in zip(prompts, subjects, strict=True)
    ]


def main() -> None:
    """Command line."""
    options = parse_arguments()
    pipeline = load_pipeline(options, loras=[LoRA(LORA)])
    settings = pipeline.default_settings.replace(**STEPS)
    renderer = renderer_of(pipeline, settings, options)
    bar = bar_of(options)
    judge, gating = JudgeMetric(), load_metric(options.metric)
    assert isinstance(gating, Metric)
    first, _ = TUNING if options.tuning else REPORTED
    prompts = consistency_subjects(first + options.subjects, options.scenes)[first:]
    subjects = []
    for number, subject in enumerate(prompts):
        subjects.append(measured(renderer, judge, gating, f"{subject.kind}-{number}", subject, options.takes))
        say(f"{number + 1}/{len(prompts)} subjects")
    numbers, rows = rounded(compared(subjects, bar)), {"subjects": told(prompts, subjects)}
    if options.cast > 1:
        cast = cast_subjects(renderer, judge, gating, prompts, options)
        numbers |= rounded(with_cast(subjects, cast, bar))
        rows |= {"cast": told(prompts, cast)}
    numbers["score_share"] = rounded(score_share(renderer, gating, prompts[0]))
    report = {
        "numbers": numbers,
        "gate": {"metric": f"{gating.name} {gating.version}", **dataclasses.asdict(bar)},
        "measured_by": f"{judge.name} {judge.version}",
        "settings": settings.to_dict(),
        "loras": [LORA],
        **rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gate.json").write_text(json.dumps(stamped(report, pipeline), indent=1) + "\n")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
