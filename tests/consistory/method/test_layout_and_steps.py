"""Where and when the method acts, for full-size SDXL and at the edges of the settings."""

from __future__ import annotations

import subprocess
import sys

import pytest

from consistory_ray.consistory.method.layout import Grid
from consistory_ray.consistory.method.steps import StepPlan, check_settings, nearest_step
from consistory_ray.consistory.models.sdxl_layout import (
    LEVELS,
    SDXL_UNET_CONFIG,
    expected_layer_names,
    level_channels,
    level_grids,
    read_layers,
)
from consistory_ray.errors import CheckpointError, InputError
from consistory_ray.settings import MethodSettings


def test_sdxl_has_the_layers_of_the_paper() -> None:
    layers = read_layers(expected_layer_names(SDXL_UNET_CONFIG), 3)
    assert len(layers) == 140
    shared = {level: [x for x in layers if x.shared_slot is not None and x.level == level] for level in LEVELS.names}
    assert {level: len(found) for level, found in shared.items()} == {"coarse": 30, "fine": 6}
    assert sum(layer.injected_slot is not None for layer in layers) == 10
    assert sum(layer.makes_maps for layer in layers) == 60
    assert [layer.name for layer in layers if layer.is_last_shared] == [
        "up_blocks.1.attentions.2.transformer_blocks.1.attn1"
    ]
    assert [level_channels(SDXL_UNET_CONFIG, level) for level in LEVELS.names] == [1280, 640]


def test_grids_round_up() -> None:
    assert level_grids(128, 128) == {"coarse": Grid(32, 32), "fine": Grid(64, 64)}
    assert level_grids(101, 62) == {"coarse": Grid(26, 16), "fine": Grid(51, 31)}


@pytest.mark.parametrize(
    "names",
    [
        ["up_blocks.2.attentions.0.transformer_blocks.0.attn1", "up_blocks.1.attentions.0.transformer_blocks.0.attn1"],
        ["up_blocks.0.attentions.0.transformer_blocks.0.attn1"],
        ["mid_block.attentions.0.something.to_q"],
    ],
)
def test_other_arrangements_are_refused(names: list[str]) -> None:
    with pytest.raises(CheckpointError, match="not of the SDXL architecture"):
        read_layers(names, 3)


def test_fifty_steps() -> None:
    plan = StepPlan.from_settings(MethodSettings())
    assert (plan.blended, plan.injected, plan.fork) == (range(6), range(5, 17), 5)
    assert (plan.shared_in(1), plan.shared_in(2), plan.masked) == (range(1, 50), range(5, 50), range(30, 50))
    assert plan.blend_weight(0) == 0.9 and plan.blend_weight(5) == pytest.approx(0.81836735)
    assert plan.blend_weight(2) == pytest.approx(0.9 - 2 / 5 * (0.9 - 0.81836735)) and plan.blend_weight(6) == 0


@pytest.mark.parametrize("steps", range(1, 60))
def test_any_number_of_steps(steps: int) -> None:
    plan = StepPlan.from_settings(MethodSettings(num_inference_steps=steps))
    assert plan.blended == range(min(steps // 10, steps - 1) + 1)
    assert plan.injected == range(steps // 10, min(steps // 3 + 1, steps))
    assert plan.shared_in(2).start >= 1 and plan.fork == steps // 10


def test_switched_off() -> None:
    plan = StepPlan.from_settings(MethodSettings(sdsa=False))
    assert not plan.shared_in(1) and not plan.shared_in(2) and not plan.blended and plan.fork == 5
    assert StepPlan.from_settings(MethodSettings(injection=False)).fork is None
    assert StepPlan.from_settings(MethodSettings(injection_window=(1.0, 1.0))).fork is None
    assert StepPlan.from_settings(MethodSettings(query_blending=False)).blend_weight(0) == 0


def test_nearest_visited_timestep() -> None:
    assert nearest_step([981, 521, 261, 1], 261) == 2
    assert nearest_step([999, 749, 499, 249], 261) == 3
    assert nearest_step([271, 251], 261) == 0


def test_all_bad_settings_are_named() -> None:
    with pytest.raises(InputError) as caught:
        check_settings(MethodSettings(num_inference_steps=0, mask_dropout=-0.1, map_steps=0, injection_alpha=2))
    paths = {problem.path for problem in caught.value.problems}
    assert paths == {"num_inference_steps", "mask_dropout", "map_steps", "injection_alpha"}


def test_planning_needs_no_torch() -> None:
    code = "import sys; import consistory_ray.consistory.cache.estimates; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
