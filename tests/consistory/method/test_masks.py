"""Otsu's threshold and the aggregation of attention maps against plain loops."""

from __future__ import annotations

import traceback
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.method import masks
from consistory_ray.consistory.method.masks import AttentionMaps, concept_maps, otsu_threshold
from consistory_ray.consistory.models.sdxl_layout import COARSE, level_grids


def plain_otsu(values: list[float]) -> float:
    """As written in textbooks: try every split of the histogram, keep the first best."""
    numbers = np.asarray(values, np.float64)
    low, high = numbers.min(), numbers.max()
    if low == high:
        return float(low)
    counts = np.zeros(256)
    for number in numbers:
        counts[min(int((number - low) / (high - low) * 256), 255)] += 1
    best, threshold = -1.0, low
    for split in range(255):
        below, above = counts[: split + 1], counts[split + 1 :]
        mean_below = (below * np.arange(split + 1)).sum() / below.sum()
        mean_above = (above * np.arange(split + 1, 256)).sum() / above.sum()
        between = below.sum() * above.sum() * (mean_below - mean_above) ** 2
        if between > best * (1 + 1e-12):
            best, threshold = between, low + (split + 0.5) / 256 * (high - low)
    return float(threshold)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=40), st.sampled_from([1.0, 1e-6, 37.5]))
def test_otsu_against_a_plain_loop(values: list[int], scale: float) -> None:
    numbers = torch.tensor(values, dtype=torch.float64) * scale
    assert otsu_threshold(numbers).item() == pytest.approx(plain_otsu(numbers.tolist()), rel=1e-9, abs=1e-15)


def test_otsu_separates_two_heaps_and_takes_the_first_of_equal_splits() -> None:
    heaps = torch.cat([torch.full((30,), 1.0), torch.full((10,), 9.0)])
    assert otsu_threshold(heaps).item() == pytest.approx(1 + 8 * 0.5 / 256)  # every split in the gap is as good
    assert (heaps > otsu_threshold(heaps)).sum() == 10


def test_otsu_rows_are_independent_and_a_constant_row_has_no_foreground() -> None:
    rows = torch.stack([torch.linspace(0, 1, 64), torch.full((64,), 0.3), torch.rand(64)])
    found = otsu_threshold(rows)
    assert torch.equal(found, torch.stack([otsu_threshold(row) for row in rows]))
    assert not (rows[1] > found[1]).any()


def random_layer(draw: torch.Generator, rows: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3, 16, 8, generator=draw), torch.randn(rows, 3, 5, 8, generator=draw)


def columns() -> Tensor:
    """Two images; the first has concept 0 in tokens 1 and 3 and concept 1 in token 2, the second lacks concept 1."""
    weights = torch.zeros(2, 5, 2)
    weights[0, 1, 0] = weights[0, 3, 0] = 0.5
    weights[0, 2, 1] = weights[1, 4, 0] = 1
    return weights


def test_maps_average_conditional_attention_over_heads_layers_and_the_last_steps() -> None:
    draw = torch.Generator().manual_seed(0)
    maps = AttentionMaps(columns(), 2, COARSE)
    expected = []
    for _ in range(3):
        step = torch.zeros(2, 2, 16)
        for _ in range(2):
            query, key = random_layer(draw)
            maps.add(concept_maps(query, key, maps.columns))
            for image in range(2):
                row = 2 + image  # the conditional half comes second
                probability = torch.zeros(16, 5)
                for head in range(3):
                    probability += (query[row, head] @ key[row, head].T / 8**0.5).softmax(-1) / 3
                step[image] += (probability @ columns()[image]).T / 2
        maps.end_step()
        expected.append(step)
    torch.testing.assert_close(maps.mean(), (expected[1] + expected[2]) / 2)


def test_a_lacking_concept_adds_nothing_to_the_mask() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key = random_layer(draw)
    both, alone = AttentionMaps(columns(), 1, COARSE), AttentionMaps(columns()[1:, :, :1], 1, COARSE)
    both.add(concept_maps(query, key, both.columns))
    both.end_step()
    alone.add(concept_maps(query[1::2], key[1::2], alone.columns))
    alone.end_step()
    grids = level_grids(16, 16)
    for level, mask in both.masks(grids).items():
        assert torch.equal(mask[1], alone.masks(grids)[level][0])
        assert mask.any() and not mask.all()


def test_a_fork_goes_its_own_way() -> None:
    draw = torch.Generator().manual_seed(0)
    maps = AttentionMaps(columns(), 3, COARSE)
    maps.add(concept_maps(*random_layer(draw), maps.columns))
    maps.end_step()
    fork, before = maps.fork(), maps.mean()
    maps.add(concept_maps(*random_layer(draw), maps.columns))
    maps.end_step()
    assert torch.equal(fork.mean(), before) and not torch.equal(maps.mean(), before)


def test_masks_before_any_map_are_a_bug() -> None:
    with pytest.raises(RuntimeError, match="no attention map"):
        AttentionMaps(columns(), 1, COARSE).masks(level_grids(16, 16))


class NoFloat64(TorchDispatchMode):
    """As on Apple's GPUs: numbers in float64 are met only while a threshold is found, which is done on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.thresholds = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            callers = {frame.name for frame in traceback.extract_stack(limit=12)}
            assert callers & {"otsu_threshold", "otsu_above", "otsu_below"}, f"{func} gives float64"
            self.thresholds += 1
        return result


def test_float64_is_used_for_thresholds_only(pipe: ConsiStoryPipeline) -> None:
    with NoFloat64() as met:
        subject = pipe.create_subject(["a cat", "a cat at night"], "cat", [1, 2], num_inference_steps=5)
        pipe.render(["a cat"], subject, [3])
    assert met.thresholds


@pytest.mark.parametrize("kind", ["mps", "xpu", "privateuseone"])
def test_devices_without_float64_leave_thresholds_to_the_cpu(kind: str) -> None:
    assert masks._float64_device(torch.device(kind)) == torch.device("cpu")
    assert masks._float64_device(torch.device("cuda", 1)) == torch.device("cuda", 1)


def test_what_lies_above_and_below_a_threshold() -> None:
    values = torch.rand(3, 50, generator=torch.Generator().manual_seed(1))
    threshold = otsu_threshold(values)[..., None]
    assert torch.equal(masks.otsu_above(values), values > threshold)
    assert torch.equal(masks.otsu_below(values), values < threshold)
