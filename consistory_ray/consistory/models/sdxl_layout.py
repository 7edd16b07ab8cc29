"""Where attention happens in a UNet of the SDXL architecture: its layers, by their names alone, and its levels.

The ``up`` part's self-attention is shared; cross-attention at a quarter of the latent size makes the masks; features
are injected at half of it, in the ``down`` and ``up`` parts. Pure (no torch), so that a plan can estimate bytes without
loading a model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from consistory_ray.consistory.method.layout import Grid, Layer, Level, Levels
from consistory_ray.errors import CheckpointError, Problem

COARSE: Level = "coarse"
FINE: Level = "fine"
LEVELS = Levels((COARSE, FINE), masks=COARSE, features=FINE)

_LEVEL_OF_DEPTH: Mapping[int, Level] = {1: FINE, 2: COARSE}  # depth: how many times the latent grid was halved
_DEPTH_OF_LEVEL: Mapping[Level, int] = {level: depth for depth, level in _LEVEL_OF_DEPTH.items()}
_LAYER_NAME = re.compile(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\..*\.(attn[12])$")

Part = Literal["down", "mid", "up"]

SDXL_UNET_CONFIG: Mapping[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
}
"""The part of SDXL base's UNet configuration that decides where attention happens."""


def level_grids(latent_height: int, latent_width: int) -> dict[Level, Grid]:
    """The token grid of each level: latent/4 (coarse) and latent/2 (fine), rounded up as the UNet does."""
    grids: dict[Level, Grid] = {}
    for level in LEVELS.names:
        scale = 2 ** _DEPTH_OF_LEVEL[level]
        grids[level] = Grid(-(-latent_height // scale), -(-latent_width // scale))
    return grids


def level_channels(config: Mapping[str, Any], level: Level) -> int:
    """Channels of the hidden states at a level."""
    return int(config["block_out_channels"][_DEPTH_OF_LEVEL[level]])


def read_layers(names: Iterable[str], blocks: int) -> tuple[Layer, ...]:
    """Place every attention layer of a UNet.

    Args:
        names: module paths of the attention layers, in the order of the modules.
        blocks: number of ``down`` (and ``up``) blocks.

    Raises:
        CheckpointError: the layers are not arranged as the SDXL architecture has them.
    """
    placed: list[tuple[Part, Layer]] = []
    for name in names:
        match = _LAYER_NAME.match(name)
        if match is None:
            raise CheckpointError(
                "the UNet is not of the SDXL architecture",
                [Problem("unet", name, "use a model whose attention layers are attn1/attn2 of transformer blocks")],
            )
        block, number, kind = match.groups()
        part: Part = "mid" if block == "mid_block" else "down" if block == "down_blocks" else "up"
        depth = {"down": int(number or 0), "mid": blocks - 1, "up": blocks - 1 - int(number or 0)}[part]
        level, is_self = _LEVEL_OF_DEPTH.get(depth), kind == "attn1"
        placed.append((part, Layer(name, is_self, level, makes_maps=level == LEVELS.masks and not is_self)))
    return _with_slots(placed)


def _with_slots(placed: Sequence[tuple[Part, Layer]]) -> tuple[Layer, ...]:
    shared = [layer for part, layer in placed if layer.is_self and part == "up"]
    odd = [layer.name for layer in shared if layer.level is None]
    if odd or {layer.level for layer in shared} != set(LEVELS.names):
        fix = "use a model with `up` self-attention at a half and at a quarter of the latent size, and only there"
        raise CheckpointError("the UNet is not of the SDXL architecture", [Problem("unet", ", ".join(odd), fix)])
    injected = [layer for part, layer in placed if layer.is_self and part != "mid" and layer.level == LEVELS.features]

    def slot(layer: Layer, among: Sequence[Layer]) -> int | None:
        return among.index(layer) if layer in among else None

    return tuple(
        dataclasses.replace(
            layer,
            shared_slot=slot(layer, [other for other in shared if other.level == layer.level]),
            injected_slot=slot(layer, injected),
            is_last_shared=layer == shared[-1],
        )
        for _, layer in placed
    )


def expected_layer_names(config: Mapping[str, Any]) -> list[str]:
    """Module paths of the attention layers that a UNet of this configuration has, without building it."""
    blocks = len(config["down_block_types"])
    resnets = _per_block(config["layers_per_block"], blocks)
    depths = _per_block(config["transformer_layers_per_block"], blocks)
    up_depths = config.get("reverse_transformer_layers_per_block") or list(reversed(depths))
    names: list[str] = []
    for index, kind in enumerate(config["down_block_types"]):
        if "CrossAttn" in kind:
            names += _block_names(f"down_blocks.{index}", _nested(depths[index], resnets[index]))
    for index, kind in enumerate(config["up_block_types"]):
        if "CrossAttn" in kind:
            count = resnets[blocks - 1 - index] + 1
            names += _block_names(f"up_blocks.{index}", _nested(up_depths[index], count))
    if "CrossAttn" in (config.get("mid_block_type") or ""):
        names += _block_names("mid_block", _nested(depths[-1], 1)[:1])
    return names


def _per_block(value: Any, blocks: int) -> list[Any]:
    return [value] * blocks if isinstance(value, int) else list(value)


def _nested(depth: Any, attentions: int) -> list[int]:
    return [depth] * attentions if isinstance(depth, int) else [int(value) for value in depth]


def _block_names(block: str, depths: Sequence[int]) -> list[str]:
    return [
        f"{block}.attentions.{attention}.transformer_blocks.{index}.{kind}"
        for attention, depth in enumerate(depths)
        for index in range(depth)
        for kind in ("attn1", "attn2")
    ]
