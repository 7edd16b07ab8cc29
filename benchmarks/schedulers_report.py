"""What ``benchmarks/schedulers.py`` found, to be looked at: a table, a plot and a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from consistory_ray.evaluation.rendering import Rendered
from consistory_ray.evaluation.sheets import blocks_sheet

PLAIN, OURS = "#8a8f9a", "#d6542c"
SCENES_SHOWN = 5
COLUMNS = (
    ("gain kept", "gain_kept", "gain_kept_interval", 2),
    ("identity gap, vanilla = 1", "identity_gap_ratio", "identity_gap_interval", 3),
    ("gap", "identity_gap", None, 3),
    ("vanilla's gap", "identity_gap_vanilla", None, 3),
    ("scene shown", "scene_accuracy", "scene_accuracy_interval", 3),
    ("by vanilla", "scene_accuracy_vanilla", "scene_accuracy_vanilla_interval", 3),
    ("layouts vary, vanilla = 1", "layout_diversity_ratio", "layout_diversity_interval", 2),
    ("seconds", "seconds", "seconds_interval", 2),
    ("vanilla's", "seconds_vanilla", "seconds_vanilla_interval", 2),
    ("ratio", "seconds_ratio", "seconds_ratio_interval", 2),
    ("subjects", "subjects", None, 0),
)

Numbers = Mapping[str, Mapping[str, Any]]


def table(numbers: Numbers, titles: Mapping[str, str]) -> str:
    """A Markdown table, a schedule in each row; brackets hold 95 % intervals."""
    lines = [["schedule, steps", *(title for title, *_ in COLUMNS)], ["---"] * (1 + len(COLUMNS))]
    for name, own in numbers.items():
        lines.append([titles[name], *(_cell(own, *column) for _, *column in COLUMNS)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(own: Mapping[str, Any], key: str, bounds: str | None, digits: int) -> str:
    if key not in own:
        return ""
    text = f"{own[key]:.{digits}f}"
    if bounds is None:
        return text
    low, high = own[bounds]
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def plot(numbers: Numbers, titles: Mapping[str, str], path: Path) -> None:
    """Identity similarity with and without the method, the gain that is kept, and the spread of layouts.

    Args:
        numbers: of each schedule.
        titles: what each is called.
        path: where the picture goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 0.42 * len(numbers) + 1.9), dpi=130, sharey=True)
    for row, own in enumerate(numbers.values()):
        _bar(panels[0], row - 0.12, own, "identity_similarity_vanilla", "identity_similarity_vanilla_interval", PLAIN)
        _bar(panels[0], row + 0.12, own, "identity_similarity", "identity_similarity_interval", OURS)
        _bar(panels[1], row, own, "gain_kept", "gain_kept_interval", OURS)
        _bar(panels[2], row, own, "layout_diversity_ratio", "layout_diversity_interval", OURS)
        if "seconds" in own:
            text = f"{own['seconds']:.1f} s, vanilla {own['seconds_vanilla']:.1f} s"
            panels[0].annotate(text, (0.02, row), fontsize=7, color="#6d5a80", va="center")
    panels[0].set_xlim(0, 1)
    panels[0].set_xlabel("likeness of scenes: vanilla (gray), ours")
    panels[1].set_xlim(0, max(1.15, panels[1].get_xlim()[1]))
    panels[1].set_xlabel("gain that is kept (DDIM, 50 steps = 1)")
    panels[2].set_xlim(0, max(1.15, panels[2].get_xlim()[1]))
    panels[2].set_xlabel("how much layouts vary (vanilla = 1)")
    most = max(own["subjects"] for own in numbers.values())
    counts = {name: "" if own["subjects"] == most else f" (of {own['subjects']})" for name, own in numbers.items()}
    panels[0].set_yticks(range(len(numbers)), [titles[name] + counts[name] for name in numbers])
    panels[0].set_ylim(len(numbers) - 0.5, -0.5)
    for axes in panels:
        axes.grid(alpha=0.3)
    for axes in panels[1:]:
        axes.axvline(1, color="#999999", linewidth=1, zorder=1)
    figure.suptitle(f"{most} subjects, 95 % bootstrap intervals over subjects", fontsize=10)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _bar(axes: Any, y: float, own: Mapping[str, Any], key: str, bounds: str, colour: str) -> None:
    low, high = own[bounds]
    errors = [[max(own[key] - low, 0)], [max(high - own[key], 0)]]
    axes.errorbar(own[key], y, xerr=errors, fmt="o", color=colour, capsize=3, markersize=6, zorder=3)


def sheet(pictures: Sequence[Mapping[str, Sequence[Sequence[Rendered]]]], kinds: Sequence[str]) -> Image.Image:
    """A row for each schedule of each subject: the first scenes without the method, and with it beside them.

    Args:
        pictures: by title of the schedule ``[vanilla, ours][scenes]``, of each subject shown.
        kinds: of the subjects.
    """
    rows, titles = [], []
    for kind, own in zip(kinds, pictures, strict=False):
        for title, ways in own.items():
            rows.append([[picture.image for picture in scenes[:SCENES_SHOWN]] for scenes in ways])
            titles.append(title if len(titles) % len(own) else f"{kind}: {title}")
    return blocks_sheet(rows, ["vanilla", "ConsiStory"], titles, side=128)
