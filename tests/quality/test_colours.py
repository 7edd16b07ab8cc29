"""The metric of colours: alike where shares of colours are, whatever the shapes, the size and the noise around."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from consistory_ray.errors import InputError
from consistory_ray.quality.colours import ColourMetric
from consistory_ray.quality.metrics import Metric, MetricOptions, load_metric

RED, BLUE, GREEN = (200, 40, 40), (40, 60, 200), (40, 170, 60)


def picture(*colours: tuple[int, int, int], noise: int | None = None, size: int = 128) -> Image.Image:
    """Stripes of the colours on the left half; on the right half more of them, or noise."""
    pixels = np.empty((size, size, 3), np.uint8)
    for number, rows in enumerate(np.array_split(np.arange(size), len(colours))):
        pixels[rows] = colours[number]
    if noise is not None:
        pixels[:, size // 2 :] = np.random.default_rng(noise).integers(0, 256, (size, size // 2, 3))
    return Image.fromarray(pixels)


def likeness(a: Image.Image, b: Image.Image) -> float:
    first, second = ColourMetric().embed([a, b])
    return float(first @ second)


def test_rows_are_of_length_one_and_depend_on_their_picture_alone() -> None:
    metric = load_metric("colours", MetricOptions())
    assert isinstance(metric, ColourMetric) and isinstance(metric, Metric)
    pictures = [picture(RED), picture(RED, BLUE), picture(GREEN, noise=1)]
    rows = metric.embed(pictures)
    assert rows.shape == (3, 405) and rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert np.array_equal(metric.embed(pictures[1:2])[0], rows[1])
    assert metric.embed([]).shape == (0, 405)


def test_the_same_colours_are_alike_in_another_order_and_size() -> None:
    assert likeness(picture(RED, BLUE), picture(BLUE, RED)) == pytest.approx(1, abs=0.01)
    assert likeness(picture(RED, BLUE), picture(RED, BLUE, size=256)) == pytest.approx(1, abs=0.01)


def test_other_colours_and_other_shares_are_less_alike() -> None:
    same, shares, other = (
        likeness(picture(RED, RED, BLUE), picture(*colours))
        for colours in ((RED, RED, BLUE), (RED, BLUE, BLUE), (GREEN, GREEN, GREEN))
    )
    assert same > shares + 0.02 and shares > other + 0.5


def test_noise_in_the_place_of_backgrounds_counts_little() -> None:
    assert likeness(picture(RED, noise=1), picture(RED, noise=2)) > 0.97
    assert likeness(picture(RED, noise=1), picture(GREEN, noise=1)) < 0.3


def test_weights_are_refused() -> None:
    with pytest.raises(InputError, match="colours takes no weights"):
        ColourMetric(MetricOptions(weights={"colours": "/models/colours"}))
