"""What ``benchmarks/fast.py`` found, to be looked at: a table, a plot and a contact sheet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from consistory_ray.evaluation.rendering import Rendered
from consistory_ray.evaluation.savings import HIGHEST_PSNR
from consistory_ray.evaluation.sheets import blocks_sheet

COLOURS = {"vanilla": "#8a8f9a", "exact": "#3a3542", "fast": "#d6542c", "turbo": "#2c7fb8"}
SINGLE = "#b9a7c9"
SCENES_SHOWN = 3

Numbers = Mapping[str, Mapping[str, Any]]


def table(numbers: Numbers) -> str:
    """A Markdown table, a way in each row; brackets hold 95 % intervals."""
    columns = (
        ("UNet FLOPs", "flops_ratio", 2),
        ("over vanilla alike", "flops_ratio_alike", 2),
        ("seconds", "cpu_ratio", 2),
        ("cache, GB", "cache_gb", 2),
        ("identity gap", "gap_ratio", 3),
        ("gain kept", "gain_kept", 3),
        ("layout drop", "layout_drop", 3),
        ("attributes disagree, rise", "disagreement_rise", 3),
        ("scene probability, drop", "scene_probability_drop", 4),
        ("colour", "colour_ratio", 3),
        ("PSNR, dB", "psnr", 1),
        ("subjects", "subjects", 0),
    )
    lines = [["way", *(title for title, _, _ in columns)], ["---"] * (1 + len(columns))]
    for name, own in numbers.items():
        lines.append([name, *(_cell(own, key, digits) for _, key, digits in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(own: Mapping[str, Any], key: str, digits: int) -> str:
    if key not in own or (key == "psnr" and own[key] >= HIGHEST_PSNR):
        return ""
    bounds = own.get(f"{key}_interval")
    text = f"{own[key]:.{digits}f}"
    return text if bounds is None else f"{text} [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def plot_pareto(numbers: Numbers, profiles: Collection[str], path: Path) -> None:
    """Identity gap and layout diversity over what a scene costs, each over vanilla's, with 95 % intervals.

    Args:
        numbers: of each way. Where FLOPs were not counted they are at their seconds; ways without these are left out.
        profiles: the ways that are shown large, the others are single settings.
        path: where the picture goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10.4, 4.6), dpi=130)
    counted = all("flops_ratio" in own for name, own in numbers.items() if name != "vanilla")
    cost = "flops_ratio" if counted else "cpu_ratio"
    numbers = {name: own for name, own in numbers.items() if name == "vanilla" or cost in own}
    legend = list[str]()
    for axes, key in zip(panels, ("gap_ratio", "layout_ratio"), strict=True):
        for name, own in numbers.items():
            large = name in profiles
            x = 1.0 if name == "vanilla" else own[cost]
            low, high = own[f"{key}_interval"]
            errors = [[max(own[key] - low, 0)], [max(high - own[key], 0)]]
            axes.errorbar(
                x,
                own[key],
                yerr=errors if large or key == "layout_ratio" else None,
                fmt="o" if large else ".",
                color=COLOURS.get(name, SINGLE),
                capsize=4 if large else 0,
                markersize=8 if large else 6,
                linewidth=1.5 if large else 0.6,
                zorder=3 if large else 2,
            )
            label = name
            if not large:
                legend += [] if name in legend else [name]
                label = str(1 + legend.index(name))
            axes.annotate(
                label,
                (x, high if large else own[key]),
                xytext=(0, 5) if large else (4, 3),
                ha="center" if large else "left",
                textcoords="offset points",
                fontsize=10 if large else 7,
                color=COLOURS.get(name, "#6d5a80"),
                fontweight="bold" if large else "normal",
                zorder=4,
            )
        axes.axvline(1, color="#cccccc", linewidth=1, zorder=1)
        axes.margins(x=0.12, y=0.1)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.set_xlabel("UNet FLOPs of a scene of SDXL (vanilla = 1)" if counted else "seconds (vanilla = 1)")
    panels[0].set_ylim(0, 1.1)
    panels[0].set_ylabel("identity gap (vanilla = 1), lower is better")
    panels[1].set_ylabel("layout diversity (vanilla = 1)")
    subjects = max(own["subjects"] for own in numbers.values())
    figure.suptitle(f"{subjects} subjects, 95 % bootstrap intervals over subjects", fontsize=10)
    if legend:
        entries = [f"{number} {name}" for number, name in enumerate(legend, start=1)]
        lines = ["   ".join(entries[first : first + 6]) for first in range(0, len(entries), 6)]
        figure.text(0.5, 0.01, "\n".join(lines), ha="center", va="bottom", fontsize=7, color="#6d5a80")
    figure.tight_layout(rect=(0, 0.03 * -(-len(legend) // 6), 1, 1))
    figure.savefig(path)
    pyplot.close(figure)


def sheet(pictures: Sequence[Mapping[str, Sequence[Rendered]]], titles: Sequence[str]) -> Image.Image:
    """Subjects in rows, with the first scenes made each way side by side.

    Args:
        pictures: by way, of each subject.
        titles: one per subject.
    """
    rows = [[[picture.image for picture in own[:SCENES_SHOWN]] for own in ways.values()] for ways in pictures]
    return blocks_sheet(rows, list(pictures[0]), titles)
