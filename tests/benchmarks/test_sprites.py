"""The benchmark of sprites: what it counts, what it compares with; its committed result is made of its rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import sprites
from benchmarks.sprites import (
    MEANS,
    Measured,
    by_scene,
    ellipse,
    from_tokens,
    iou,
    is_found,
    means_of_drawings,
    sheet,
    summed_up,
)
from consistory_ray.export.segmenting import TUNED
from consistory_ray.miniature.judge import Reading
from consistory_ray.miniature.vocabulary import KINDS

RESULT = Path(sprites.__file__).parent / "results" / "sprites.json"


def reading(kind: str, side: int) -> Reading:
    labels = np.zeros((100, 100), np.uint8)
    labels[:side, :side] = 1 + KINDS.index(kind)
    return Reading("in space", 1.0, labels, {}, {})


def test_a_subject_is_found_where_its_kind_covers_enough() -> None:
    assert is_found(reading("cat", 20), "cat")
    assert not is_found(reading("cat", 14), "cat"), "1.96 % of the picture"
    assert not is_found(reading("dragon", 20), "cat")


def test_the_ellipse_is_the_best_of_its_sizes() -> None:
    rows, columns = np.mgrid[:64, :64]
    truth = (rows - 30) ** 2 / 400 + (columns - 34) ** 2 / 144 <= 1
    assert iou(ellipse([truth, truth]), truth) > 0.95


def test_matting_from_tokens_alone_goes_by_edges() -> None:
    where = np.zeros((64, 64), bool)
    where[18:46, 18:46] = True
    pixels = np.where(where[..., None], (222, 62, 58), (200, 224, 240)).astype(np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[4:12, 4:12] = True
    assert iou(from_tokens(Image.fromarray(pixels), mask) >= 0.5, where) > 0.95


def test_intervals_are_over_subjects() -> None:
    rows = [
        Measured(subject, "in space", (value, 0.8, 0.85, 0.6), False)
        for subject, value in ((0, 0.9), (0, 0.9), (1, 1.0))
    ]
    found = summed_up(rows, 4)
    assert (found["n"], found["pictures"]) == (3, 4) and found["alpha_iou"] == pytest.approx(2.8 / 3)
    assert found["alpha_iou_interval"] == pytest.approx([0.9, 1.0]) and found["mask_iou"] == pytest.approx(0.8)


def test_a_sheet_is_as_large_as_its_tiles() -> None:
    assert sheet([Image.new("RGB", (20, 10))] * 5).size == (80, 20)


def test_the_committed_result_is_made_of_its_rows_with_the_tuning_of_the_export() -> None:
    report = json.loads(RESULT.read_text())
    rows = [Measured(subject, scene, tuple(values), touches) for subject, scene, *values, touches in report["rows"]]
    again = summed_up(rows, report["numbers"]["pictures"])
    for name, value in again.items():
        assert report["numbers"][name] == pytest.approx(value, abs=2e-3), name
    assert report["by_scene"].keys() == by_scene(rows).keys()
    for scene, told in by_scene(rows).items():
        assert report["by_scene"][scene] == pytest.approx(told, abs=1e-3)
    for name, value in means_of_drawings(report["drawings"]).items():
        assert report["numbers"][name] == pytest.approx(value, abs=1e-3), name
    assert report["half"] == "report" and report["means"] == list(MEANS)
    assert report["tuning"] == {name: getattr(TUNED, name) for name in report["tuning"]}
    assert set(report["tuning"]) == set(type(TUNED).__dataclass_fields__)
    assert report["numbers"]["alpha_iou"] > report["numbers"]["matting_iou"] > report["numbers"]["mask_iou"]


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    few = ["--subjects", "1", "--scenes", "2", "--drawings", "3", "--threads", "1", "--out", str(tmp_path)]
    command = [sys.executable, sprites.__file__, *few]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    last = json.loads(done.stdout.splitlines()[-1])
    assert 0.8 < last["drawn_judge_iou"] <= 1 and 0.8 < last["drawn_alpha_iou"] <= 1
    assert last["n"] <= last["pictures"] == 2 and last["alpha_iou"] > last["mask_iou"] and last["seconds"] < 60
    assert last == json.loads((tmp_path / "sprites.json").read_text())["numbers"]
    with Image.open(tmp_path / "sprites.webp") as image:
        assert image.format == "WEBP"
