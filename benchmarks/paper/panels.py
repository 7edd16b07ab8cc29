"""Figures that other benchmarks measure: their committed numbers and the top of their contact sheets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.paper.bench import Bench

RESULTS = Path(__file__).parents[1] / "results"
WIDTH, HEIGHT = 1200, 620


def several(bench: Bench) -> dict[str, Any]:
    """Two subjects in one picture (benchmarks/multi_subject.py)."""
    keys = ("jobs", "gap_ratio", "gap_ratio_interval", "crossing_share", "both_present", "scene_accuracy")
    return _panel(bench, "several", "multi_subject", keys)


def personalization(bench: Bench) -> dict[str, Any]:
    """Given pictures as anchors (benchmarks/personalization.py)."""
    keys = ("subjects", "gap_ratio_to_ceiling", "gap_ratio_to_ceiling_interval", "gap_ratio_with_details")
    return _panel(bench, "personalization", "personalization", keys)


def control(bench: Bench) -> dict[str, Any]:
    """Scenes that a ControlNet leads (benchmarks/control.py)."""
    keys = ("subjects", "silhouette_iou", "silhouette_iou_without", "led_gap_over_free", "led_gap_interval")
    return _panel(bench, "control", "control", keys)


def _panel(bench: Bench, name: str, source: str, keys: Sequence[str]) -> dict[str, Any]:
    """Some numbers of another benchmark's result, with the top of its sheet."""
    report = json.loads((RESULTS / f"{source}.json").read_text())
    numbers = report["numbers"]
    chosen = {key: numbers[key] for key in keys}
    sheet = Image.open(RESULTS / f"{source}.png").convert("RGB")
    shown = sheet.resize((WIDTH, round(sheet.height * WIDTH / sheet.width)), Image.Resampling.LANCZOS)
    bench.write(
        name,
        {"from": f"benchmarks/{source}.py", "of_model": _fingerprint(report), "numbers": chosen},
        shown.crop((0, 0, WIDTH, min(HEIGHT, shown.height))),
    )
    return chosen


def _fingerprint(report: dict[str, Any]) -> str:
    """Of the model that a result is of."""
    found: str = report.get("stamp", report)["model_fingerprint"]
    return found
