"""How much anchors agree, and which candidate is the best."""

from __future__ import annotations

import numpy as np
import pytest

from consistory_ray.quality.casting import agreement, best, to_the_others

EAST, NORTH = (1.0, 0.0), (0.0, 1.0)


def test_an_anchor_is_compared_with_the_others_and_not_with_itself() -> None:
    assert to_the_others(np.array([EAST, NORTH], np.float32)) == pytest.approx([0, 0])
    assert to_the_others(np.array([EAST, EAST, NORTH], np.float32)) == pytest.approx([0.5, 0.5, 0])
    assert to_the_others(np.array([EAST], np.float32)) == []


def test_the_one_that_stands_apart_counts() -> None:
    assert agreement([0.9, 0.2, 0.9]) == 0.2, "their mean would hide it"
    with pytest.raises(ValueError, match="two anchors"):
        agreement([])


def test_of_equals_the_first_is_chosen() -> None:
    assert best([0.1, 0.7, 0.7]) == 1
    assert best([0.7]) == 0
