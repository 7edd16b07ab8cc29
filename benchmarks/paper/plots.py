"""The plane of consistency and variety, and contact sheets of what lies on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.paper.bench import Bench
from consistory_ray.evaluation.rendering import Rendered
from consistory_ray.evaluation.sheets import blocks_sheet

SHOWN_SUBJECTS, SHOWN_SCENES = 4, 2
MARKERS = "os^"
"""One for every ten variants: matplotlib's colours begin again then."""


def plane(variants: Mapping[str, Mapping[str, Any]], path: Path, title: str, line: bool = False) -> None:
    """Variety (layout diversity by vanilla's) against consistency (identity similarity), with 95 % intervals.

    Args:
        variants: numbers as :meth:`Bench.numbers` gives them, by name.
        path: of the plot.
        title: above it.
        line: whether neighbours are joined.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4.4), dpi=130)
    points: list[tuple[float, float]] = []
    for number, (name, numbers) in enumerate(variants.items()):
        x, y = numbers["layout_diversity_ratio"], numbers["identity_similarity"]
        bounds = numbers["layout_diversity_interval"], numbers["identity_similarity_interval"]
        if None in (x, y, *bounds[0], *bounds[1]):
            continue  # not known: a single scene has no variety
        spread = [[[max(v - low, 0)], [max(high - v, 0)]] for v, (low, high) in zip((x, y), bounds, strict=True)]
        axes.errorbar(
            x,
            y,
            xerr=spread[0],
            yerr=spread[1],
            fmt=MARKERS[number // 10 % len(MARKERS)],
            capsize=2,
            elinewidth=0.6,
            label=name,
        )
        points.append((x, y))
    if line:
        axes.plot(*zip(*points, strict=True), color="#8a8f9a", linewidth=1, zorder=0)
    axes.set_xlabel("variety: layout diversity by vanilla's")
    axes.set_ylabel("consistency: identity similarity of a subject's scenes")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="best")
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def variants_sheet(bench: Bench, pictures: Mapping[str, Sequence[Sequence[Rendered]]]) -> Image.Image:
    """The first subjects in rows, the first scenes of each variant in blocks."""
    rows = [
        [[one.image for one in scenes[row][:SHOWN_SCENES]] for scenes in pictures.values()]
        for row in range(min(SHOWN_SUBJECTS, len(bench.subjects)))
    ]
    return blocks_sheet(rows, list(pictures), [one.kind for one in bench.subjects[: len(rows)]], side=128)
