"""Where attention happens in an SDXL UNet: parts, levels, and each layer's place in the anchor cache.

This module is pure (no torch), so that a plan can estimate bytes without loading a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from consistory_ray.errors import CheckpointError, Problem

Level = Literal["coarse", "fine"]
Part = Literal["down", "mid", "up"]

COARSE: Level = "coarse"
FINE: Level = "fine"
LEVELS: tuple[Level, Level] = (COARSE, FINE)

_LEVEL_OF_DEPTH: Mapping[int, Level] = {1: FINE, 2: COARSE}  # depth: how many times the latent grid was halved
_DEPTH_OF_LEVEL: Mapping[Level, int] = {level: depth for depth, level in _LEVEL_OF_DEPTH.items()}
_LAYER_NAME = re.compile(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\..*\.(attn[12])$")

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


@dataclass(frozen=True, slots=True)
class Layer:
    """One attention layer of the UNet.

    Attributes:
        name: module path, e.g. ``up_blocks.0.attentions.1.transformer_blocks.3.attn1``.
        is_self: self-attention (``attn1``) rather than cross-attention (``attn2``).
        part, level: where it is; level is None for grids the method does not use.
        shared_slot: for self-attention of the ``up`` part, its place among those of its level, else None.
        injected_slot: for fine self-attention of the ``down`` and ``up`` parts, its place among them, else None.
        is_last_shared: the last ``up`` self-attention that a UNet call reaches.
    """

    name: str
    is_self: bool
    part: Part
    level: Level | None
    shared_slot: int | None = None
    injected_slot: int | None = None
    is_last_shared: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows and columns of a level's tokens."""

    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.height * self.width


def level_grids(latent_height: int, latent_width: int) -> dict[Level, Grid]:
    """The token grid of each level: latent/4 (coarse) and latent/2 (fine), rounded up as the UNet does."""
    grids: dict[Level, Grid] = {}
    for level in LEVELS:
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
    placed = []
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
        placed.append(Layer(name, kind == "attn1", part, _LEVEL_OF_DEPTH.get(depth)))
    return _with_slots(placed)


def _with_slots(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    shared = [layer for layer in layers if layer.is_self and layer.part == "up"]
    odd = [layer.name for layer in shared if layer.level is None]
    if odd or {layer.level for layer in shared} != set(LEVELS):
        fix = "use a model with `up` self-attention at a half and at a quarter of the latent size, and only there"
        raise CheckpointError("the UNet is not of the SDXL architecture", [Problem("unet", ", ".join(odd), fix)])
    injected = [layer for layer in layers if layer.is_self and layer.part != "mid" and layer.level == FINE]
    shared_names = {level: [layer.name for layer in shared if layer.level == level] for level in LEVELS}
    injected_names = [layer.name for layer in injected]

    def slotted(layer: Layer) -> Layer:
        is_shared = layer.is_self and layer.part == "up" and layer.level is not None
        return Layer(
            layer.name,
            layer.is_self,
            layer.part,
            layer.level,
            shared_slot=shared_names[layer.level].index(layer.name) if is_shared and layer.level else None,
            injected_slot=injected_names.index(layer.name) if layer.name in injected_names else None,
            is_last_shared=layer.name == shared[-1].name,
        )

    return tuple(slotted(layer) for layer in layers)


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
