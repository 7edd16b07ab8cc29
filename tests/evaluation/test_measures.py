"""The measures, on cases whose answer is known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consistory_ray.evaluation.bootstrap import difference_interval, interval, mean_interval, ratio_interval
from consistory_ray.evaluation.consistency import SubjectScores, compare, layout_spread
from consistory_ray.evaluation.measures import best_token_overlap, enlarged, overlap, srgb_to_lab, token_overlap
from consistory_ray.evaluation.rendering import PictureStore, Rendered
from consistory_ray.evaluation.sheets import comparison_sheet, grid_sheet, plot_plane


def test_lab_agrees_with_published_values() -> None:
    lab = srgb_to_lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255], [119, 119, 119]]))
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [50.03, 0, 0]]
    assert np.abs(lab - expected).max() < 0.05


def test_overlap() -> None:
    a, b = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    assert overlap(a, b) == 1
    a[:, :2], b[:, 1:3] = True, True
    assert overlap(a, b) == pytest.approx(1 / 3)


def test_tokens_cover_the_pixels_nearest_to_them() -> None:
    tokens = np.array([[True, False], [False, True]])
    assert enlarged(tokens, 4, 6).sum() == 12 and enlarged(tokens, 4, 6)[:2, :3].all()
    assert token_overlap(tokens, enlarged(tokens, 8, 8)) == 1


def test_the_bound_is_what_trying_every_mask_gives() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        pixels = np.kron(rng.random((6, 6)) < 0.5, np.ones((2, 2))).astype(bool)
        masks = (np.array(bits).reshape(3, 3) for bits in itertools.product((False, True), repeat=9))
        best = max(token_overlap(mask, pixels) for mask in masks)
        assert best_token_overlap(pixels, 3, 3) == pytest.approx(best)
    assert best_token_overlap(np.ones((8, 8), bool), 2, 2) == 1
    with pytest.raises(ValueError, match="does not divide"):
        best_token_overlap(np.ones((8, 8), bool), 3, 3)


def test_intervals_cover_the_truth_about_as_often_as_they_claim() -> None:
    rng, covered = np.random.default_rng(1), 0
    for trial in range(200):
        values = rng.normal(3.0, 1.0, 40)
        low, high = interval(lambda rows, v=values: v[rows].mean(1), 40, resamples=400, seed=trial)  # type: ignore[misc]
        covered += low <= 3.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_intervals_are_paired_and_repeatable() -> None:
    vanilla = np.random.default_rng(2).uniform(1, 9, 30)
    assert ratio_interval(vanilla / 2, vanilla) == pytest.approx((0.5, 0.5))
    assert difference_interval(vanilla + 1, vanilla) == pytest.approx((1, 1))
    assert mean_interval(vanilla) == mean_interval(vanilla)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval(np.array([]))


def box(x: int, y: int, side: int) -> np.ndarray:
    mask = np.zeros((100, 100), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_layout_spread_measures_place_and_size() -> None:
    assert layout_spread([box(10, 10, 20)] * 3) == pytest.approx(0)
    moved = layout_spread([box(10, 10, 20), box(50, 10, 20)])
    assert moved == pytest.approx(0.2 / 3)
    assert layout_spread([box(10, 10, 20), box(10, 10, 60)]) == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    assert layout_spread([box(10, 10, 20), box(50, 10, 20), np.zeros((100, 100), bool)]) == pytest.approx(moved)
    assert np.isnan(layout_spread([box(1, 1, 5)]))


def test_comparison_reports_ratios_of_means() -> None:
    plain = SubjectScores(0.4, 30.0, 0.5, 1.0, 0.9, 0.1)
    vanilla = [plain, replace(plain, similarity=0.6, spread=float("nan"))]
    ours = [replace(plain, similarity=0.8, colour_distance=15.0, scene_accuracy=0.9), replace(plain, similarity=0.7)]
    numbers = compare(ours, vanilla)
    assert numbers["identity_gap_ratio"] == pytest.approx(0.25 / 0.5)
    assert numbers["colour_distance_ratio"] == pytest.approx(22.5 / 30)
    assert numbers["scene_accuracy_drop"] == pytest.approx(5)
    assert numbers["layout_diversity_ratio"] == 1, "subjects without a known spread are left out"
    assert (numbers["subjects"], numbers["subjects_better"]) == (2, 2)
    low, high = numbers["identity_gap_interval"]  # type: ignore[misc]
    assert low <= 0.5 <= high


def test_pictures_are_kept_by_everything_that_decides_them(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    store = PictureStore(tmp_path, "f" * 64)
    store.put({"seed": 1}, Rendered(image, {"coarse": np.eye(2, dtype=bool)}))
    found = store.get({"seed": 1})
    assert found is not None and np.array_equal(np.asarray(found.image), np.asarray(image))
    assert np.array_equal(found.masks["coarse"], np.eye(2, dtype=bool))
    assert store.get({"seed": 2}) is None
    assert store.get_all([{"seed": 1}, {"seed": 2}]) is None
    assert PictureStore(tmp_path, "e" * 64).get({"seed": 1}) is None
    assert not list(tmp_path.rglob("*.tmp"))
    nowhere = PictureStore(None, "f" * 64)
    nowhere.put({"seed": 1}, Rendered(image, {}))
    assert nowhere.get({"seed": 1}) is None


def test_sheets_hold_every_picture(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))
    sheet = comparison_sheet([[red] * 3] * 3, [[blue] * 3] * 3, ["a", "b", "c"], width=600)
    pixels = np.asarray(sheet)
    assert sheet.width == 600
    reds, blues = (pixels == (255, 0, 0)).all(2).sum(), (pixels == (0, 0, 255)).all(2).sum()
    assert reds == blues == 9 * round((reds / 9) ** 0.5) ** 2
    grid = np.asarray(grid_sheet([red] * 5, ["a long caption of many words " * 3] * 5, columns=2, side=32))
    assert (grid == (255, 0, 0)).all(2).sum() == 5 * 32 * 32


def test_the_plane_is_plotted(tmp_path: Path) -> None:
    scores = [SubjectScores(0.4, 30.0, 0.5, 1.0, 0.9, 0.1), SubjectScores(0.5, 20.0, 0.6, 0.8, 1.0, 0.2)]
    plot_plane(compare(scores, scores), tmp_path / "plane.png")
    with Image.open(tmp_path / "plane.png") as plane:
        assert plane.size[0] > 400
