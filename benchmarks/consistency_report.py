"""The tables of benchmarks/consistency.py: every way against vanilla, attribute by attribute, and kind by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.consistency_ways import label
from consistory_ray.evaluation.hard_attributes import HARD_ATTRIBUTES

Numbers = Mapping[str, Any]
COLUMNS = (
    ("identity gap", "identity_gap_ratio", "identity_gap_interval"),
    ("hard attributes", "hard_attribute_ratio", "hard_attribute_interval"),
    ("CIELAB distance", "colour_distance_ratio", "colour_distance_interval"),
    ("scene probability lost, points", "scene_probability_drop", "scene_probability_drop_interval"),
    ("kind probability lost, points", "kind_probability_drop", "kind_probability_drop_interval"),
    ("variety of layouts", "layout_diversity_ratio", "layout_diversity_interval"),
)
QUALITY = (
    ("farther from drawings", "drawing_distance_rise", "drawing_distance_rise_interval"),
    ("outline strength", "outline_ratio", "outline_interval"),
    ("sharpness", "sharpness_ratio", "sharpness_interval"),
    ("chroma", "chroma_ratio", "chroma_interval"),
    ("subjects of a kind differ", "distinctness_ratio", "distinctness_interval"),
)
BY_KIND = (*COLUMNS[:2], COLUMNS[3], COLUMNS[5], QUALITY[1])


def tables(numbers: Mapping[str, Numbers], by_kind: Mapping[str, Mapping[str, Numbers]]) -> str:
    """Markdown.

    Args:
        numbers: by way, of all subjects.
        by_kind: by way and kind; ways without it have no table of kinds.
    """
    return "\n\n".join(["# Consistency", *sections(numbers, by_kind)]) + "\n"


def sections(numbers: Mapping[str, Numbers], by_kind: Mapping[str, Mapping[str, Numbers]]) -> list[str]:
    """The parts of the same, for another page."""
    ways = list(numbers)
    parts = [_HEAD, "## Every way, of vanilla's", _table("way", ways, COLUMNS, numbers)]
    parts += ["## Attributes that differ between two scenes of a subject", _attributes(numbers)]
    parts += ["## The pictures' quality", _QUALITY_HEAD, _table("way", ways, QUALITY, numbers)]
    for way, kinds in by_kind.items():
        parts += [f"## Kind by kind: {label(way)}", _table("kind", list(kinds), BY_KIND, kinds, name=str)]
        parts += [_kinds_attributes(kinds)]
    return parts


_HEAD = (
    "Made by `benchmarks/consistency.py` from `consistency.json`. 1 is vanilla, less is more consistent; in brackets "
    "95 % bootstrap intervals over subjects. *The same individual, drawn* is the floor: what the judge finds between "
    "drawings of one individual. *Other individuals, drawn* shows what it finds where everybody is drawn at random."
)
_QUALITY_HEAD = (
    "Distance from drawings of the same kinds in the same scenes (squared maximum mean discrepancy in the judge's "
    "features), how much more than vanilla's. Of vanilla's: outline strength, sharpness, CIELAB chroma of the subjects "
    "and how much subjects of one kind differ from each other by hard attributes (pale ones that are all alike would "
    "agree with themselves). *Vanilla, blurred* (a Gaussian of one pixel) shows what a visible loss would be."
)


def shown(numbers: Numbers, key: str, interval: str) -> str:
    """A number with its interval, as tables show it."""
    value, bounds = numbers.get(key), numbers.get(interval)
    if value is None:
        return "-"
    digits = 1 if "probability" in key else 2
    if not bounds or any(bound is None for bound in bounds):
        return _decimal(value, digits)
    return f"{_decimal(value, digits)} [{_decimal(bounds[0], digits)}, {_decimal(bounds[1], digits)}]"


def _decimal(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before a zero


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _table(
    first: str,
    keys: Sequence[str],
    columns: Sequence[tuple[str, str, str]],
    numbers: Mapping[str, Numbers],
    name: Any = label,
) -> str:
    rows = [[name(key), str(numbers[key]["subjects"]), *(shown(numbers[key], *c[1:]) for c in columns)] for key in keys]
    return _rows([first, "subjects", *(title for title, _, _ in columns)], rows)


def _attributes(numbers: Mapping[str, Numbers]) -> str:
    vanilla = next(iter(numbers.values()))["attributes"]
    rows = [["vanilla", *(_percent(vanilla[name]["disagreement_vanilla"]) for name in HARD_ATTRIBUTES)]]
    for way, found in numbers.items():
        own = [found["attributes"][name] for name in HARD_ATTRIBUTES]
        rows.append(
            [label(way), *(f"{_percent(one['disagreement'])}: {shown(one, 'ratio', 'interval')}" for one in own)]
        )
    return _rows(["share of pairs: of vanilla's", *(name.replace("_", " ") for name in HARD_ATTRIBUTES)], rows)


def _kinds_attributes(kinds: Mapping[str, Numbers]) -> str:
    rows = []
    for kind, found in kinds.items():
        pairs = [found["attributes"][name] for name in HARD_ATTRIBUTES]
        rows.append([kind, *(f"{_percent(p['disagreement'])} / {_percent(p['disagreement_vanilla'])}" for p in pairs)])
    return _rows(["differs / vanilla", *(name.replace("_", " ") for name in HARD_ATTRIBUTES)], rows)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
