"""The paper's figures on the bundled model, each with a picture and its numbers.

    python benchmarks/paper.py                                  all of them
    python benchmarks/paper.py dropout seeds --subjects 8 --cache /tmp/pictures

    components   what each part contributes, and what masks are for: the method without each of them
    dropout      mask dropout 0, 0.25, 0.5, 0.75 on the plane of consistency and variety
    levers       what was tried to be more alike: dropout, injection, the anchors' weight, led anchors, details named
    seeds        another seed for the anchors is another individual: distances between them and within one
    baselines    an IP-Adapter that is shown the anchors, and Textual Inversion and DreamBooth-LoRA, trained for each
                 subject on its anchors, under stated budgets
    several, personalization, control      as benchmarks/multi_subject.py, personalization.py and control.py measured
    plus         a file in the layout of ConsiStory+, 192 subjects and 1,100 prompts: planned and rendered by the fake
                 renderer, then for real the subjects whose words the bundled model knows

Every figure writes NAME.json with its stamp (see benchmarks/result_stamp.py) and NAME.webp into --out; plots of the
plane are in NAME_plane.webp. Subjects are those of benchmarks/consistency.py from --first on: those that settings were
chosen with lie before 32, those of the parameter search from 32 to 39. The last line of stdout is JSON: figure -> its
main numbers. An interrupted run goes on from --cache.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.model_options import add_model_options, add_rendering_options, described_pipeline, load_pipeline, say
from benchmarks.paper.baselines import BUDGETS, baselines
from benchmarks.paper.bench import Bench
from benchmarks.paper.components import DROPOUTS, components, dropout, levers
from benchmarks.paper.consistory_plus import plus
from benchmarks.paper.ip_adapter import SCALE
from benchmarks.paper.panels import control, personalization, several
from benchmarks.paper.seeds import seeds
from consistory_ray.miniature.judge import Judge

FIGURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "components": components,
    "dropout": dropout,
    "levers": levers,
    "seeds": seeds,
    "baselines": baselines,
    "several": several,
    "personalization": personalization,
    "control": control,
    "plus": plus,
}


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)} (default: all)")
    add_model_options(parser)
    add_rendering_options(parser)
    parser.set_defaults(threads=1, steps=20, batch_size=4)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--first", type=int, default=32, help="number of the first subject")
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3, help="of anchors for each subject, in the figure seeds")
    parser.add_argument("--dropouts", type=float, nargs="+", default=list(DROPOUTS), help="in the figure dropout")
    parser.add_argument("--budgets", type=int, nargs="*", default=list(BUDGETS), help="training steps of baselines")
    parser.add_argument("--scales", type=float, nargs="*", default=[SCALE], help="of the IP-Adapter, in baselines")
    parser.add_argument("--file", type=Path, help="the ConsiStory+ file, for the figure plus (default: one of ours)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "paper")
    options = parser.parse_args()
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"there is no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    return options


def main() -> None:
    """Command line."""
    options = parse_arguments()
    bench = Bench(load_pipeline(options), Judge.load(), options)
    found = {}
    for name in options.figures or FIGURES:
        say(f"figure {name}")
        found[name] = FIGURES[name](bench)
    print(json.dumps({**found, **described_pipeline(bench.pipeline)}))


if __name__ == "__main__":
    main()
