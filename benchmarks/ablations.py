"""What does each part of the method contribute, and what would other settings do?

    python benchmarks/ablations.py --subjects 16 --cache /tmp/pictures
    python benchmarks/ablations.py --subjects 8 --set mask_dropout=0 --set 'mask_dropout=0 injection_window=[0.1,0.6]'

Every variant is the model's own settings with some of them changed, measured as benchmarks/consistency.py does, on the
same subjects, prompts and seeds. Without --set: the method whole and without each of its parts. A table goes to stderr
as it grows; the last line of stdout is JSON, variant -> numbers, and under ``on`` the device and dtype. An interrupted
run goes on from --cache.
"""

from __future__ import annotations

import argparse
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
from consistory_ray.miniature.judge import Judge

ABLATIONS: dict[str, dict[str, Any]] = {
    "whole method": {},
    "no attention sharing": {"sdsa": False},
    "no injection": {"injection": False},
    "no query blending": {"query_blending": False},
    "no mask dropout": {"mask_dropout": 0.0},
    "no FreeU": {"freeu": None},
}
COLUMNS = (
    "identity_gap_ratio",
    "colour_distance_ratio",
    "scene_accuracy",
    "scene_accuracy_drop",
    "subject_accuracy",
    "layout_diversity_ratio",
)


def parse_variant(text: str) -> dict[str, Any]:
    """``"mask_dropout=0.25 injection_window=[0.1,0.6]"`` as changes of settings; values are JSON."""
    changes = {}
    for part in text.split():
        name, _, value = part.partition("=")
        parsed = json.loads(value)
        changes[name] = tuple(parsed) if isinstance(parsed, list) else parsed
    return changes


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_rendering_options(parser)
    parser.add_argument("--subjects", type=int, default=16)
    parser.add_argument("--set", action="append", metavar="'NAME=JSON ...'", help="a variant; may be repeated")
    options = parser.parse_args()
    pipeline = load_pipeline(options)
    print(described_pipeline(pipeline), file=sys.stderr, flush=True)
    judge, subjects = Judge.load(), consistency_subjects(options.subjects)
    base = changed(pipeline.default_settings, num_inference_steps=options.steps)
    variants = {text: parse_variant(text) for text in options.set} if options.set else ABLATIONS
    results: dict[str, dict[str, float]] = {}
    for name, changes in variants.items():
        numbers = compare_with_vanilla(renderer_of(pipeline, base.replace(**changes), options), judge, subjects).numbers
        results[name] = {column: round(numbers[column], 4) for column in COLUMNS}
        print(name, results[name], file=sys.stderr, flush=True)
    print(json.dumps({**results, "on": described_pipeline(pipeline)}))


if __name__ == "__main__":
    main()
