"""Where do the ways of rendering lie between consistency and variety? Planes with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

VANILLA_COLOUR, FLOOR_COLOUR = "#8a8f9a", "#4c8f5a"
COLOURS = ("#d6542c", "#8c3fb0", "#2c6fd6", "#c79a1b", "#2ca6a4", "#a8324e", "#5f6b2f", "#e089b5", "#1f3a5f", "#8a5a33")


def plot_planes(ways: Mapping[str, Mapping[str, Any]], floor: Mapping[str, Any] | None, path: Path) -> None:
    """Hard attributes against the variety of layouts, and the identity gap against the scenes' probability.

    Args:
        ways: by the label that is shown, the numbers of each against vanilla (see
            :func:`~consistory_ray.evaluation.evidence_numbers.numbers`).
        floor: those of one individual drawn in every scene, a line; None draws none.
        path: where the picture goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5.4), dpi=130)
    left.errorbar(1, 1, fmt="s", color=VANILLA_COLOUR, label="vanilla")
    right.errorbar(0, 1, fmt="s", color=VANILLA_COLOUR, label="vanilla")
    for index, (name, numbers) in enumerate(ways.items()):
        colour = COLOURS[index % len(COLOURS)]
        _point(left, numbers, "layout_diversity", "hard_attribute", colour, name)
        _point(right, numbers, "scene_probability_drop", "identity_gap", colour, name)
    if floor is not None:
        for axes, key in ((left, "hard_attribute_ratio"), (right, "identity_gap_ratio")):
            axes.axhline(floor[key], color=FLOOR_COLOUR, linestyle=":", label="the same individual, drawn")
    left.set_xlabel("variety of layouts, of vanilla's")
    left.set_ylabel("hard attributes that differ, of vanilla's")
    right.set_xlabel("scene probability lost (percentage points)")
    right.set_ylabel("identity gap, of vanilla's")
    for axes in (left, right):
        axes.set_ylim(0, max(1.1, axes.get_ylim()[1]))
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="lower center", ncols=3)
    subjects = max((numbers["subjects"] for numbers in ways.values()), default=0)
    figure.suptitle(f"{subjects} subjects, 95 % bootstrap intervals; below is more consistent", fontsize=10)
    figure.tight_layout(rect=(0, 0.06 + 0.04 * ((len(ways) + 2) // 3), 1, 1))
    figure.savefig(path)
    pyplot.close(figure)


def _point(axes: Any, numbers: Mapping[str, Any], x_name: str, y_name: str, colour: str, label: str) -> None:
    x_key = x_name if x_name.endswith("_drop") else f"{x_name}_ratio"
    x, y = numbers[x_key], numbers[f"{y_name}_ratio"]
    reach = []
    for name, value in ((x_name, x), (y_name, y)):
        low, high = numbers[f"{name}_interval"]
        reach.append([[max(value - low, 0)], [max(high - value, 0)]])
    axes.errorbar(x, y, xerr=reach[0], yerr=reach[1], fmt="o", color=colour, capsize=3, label=label)
