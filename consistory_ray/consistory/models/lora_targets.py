"""Which weights of a model a LoRA's file means: its modules under every name that files have for them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from consistory_ray.adapters.lora_files import Pair, Part

PARTS: tuple[Part, ...] = ("unet", "text_encoder", "text_encoder_2")

_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
_BLOCK = re.compile(
    r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)"
)
_OLD_ENCODER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Target:
    """A module whose weight can be changed.

    Attributes:
        path: in its network.
        shape: of its weight: [out, in], or [out, in, height, width] of a convolution.
    """

    path: str
    shape: tuple[int, ...]


class Targets:
    """The modules of a model, found by the names that files have for them.

    Args:
        networks: by their names in a diffusers pipeline; they may be without weights, on the device ``meta``.
    """

    def __init__(self, networks: Mapping[str, nn.Module | None]) -> None:
        self._found: dict[str, dict[str, Target]] = {}
        for part in PARTS:
            network = networks.get(part)
            found: dict[str, Target] = {}
            for path, module in network.named_modules() if network is not None else ():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    target = Target(path, tuple(module.weight.shape))
                    found |= dict.fromkeys(_plain_names(part, path), target)
            if part == "unet" and network is not None:
                found |= _original_names(found, network)
            self._found[part] = found

    def of(self, pair: Pair) -> Target | None:
        """The module that a pair of factors changes; None where the model has none of that name."""
        name = pair.module.replace(".processor.", ".").replace("_processor_", "_")
        found = self._found[pair.part]
        if pair.part == "unet":
            return found.get(name) or found.get(f"{name}.0")
        head, dot, last = name.removeprefix("text_model.").removeprefix("text_model_").rpartition(".")
        return found.get(f"{head}{dot}{_OLD_ENCODER.get(last, last)}")


def empty_networks(configs: Mapping[str, Mapping[str, Any] | None]) -> dict[str, nn.Module | None]:
    """Networks without weights of these configurations, to be looked at only; None where one lacks.

    Made once for each configuration: of SDXL in about two seconds.
    """
    return {part: _empty(part, json.dumps(configs[part])) if configs.get(part) else None for part in PARTS}


@functools.lru_cache(maxsize=8)
def _empty(part: Part, config: str) -> nn.Module:
    values = json.loads(config)
    with torch.device("meta"):
        if part == "unet":
            unet: nn.Module = UNet2DConditionModel.from_config(values)
            return unet
        kind = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
        return kind(CLIPTextConfig(**values))


def _plain_names(part: Part, path: str) -> tuple[str, str]:
    name = path if part == "unet" else path.removeprefix("text_model.")
    return name, name.replace(".", "_")


def _original_names(found: Mapping[str, Target], unet: nn.Module) -> dict[str, Target]:
    """The same modules as the original SDXL code calls them: blocks are numbered through from the first to the last."""
    per_block = {name: len(block.resnets) for name, block in unet.named_modules() if hasattr(block, "resnets")}
    names: dict[str, Target] = {}
    for path, target in {target.path: target for target in found.values()}.items():
        original = _ENDS.get(path) or _original_name(path, per_block, unet)
        if original is not None:
            names |= {original: target, original.replace(".", "_"): target}
    return names


def _original_name(path: str, per_block: Mapping[str, int], unet: nn.Module) -> str | None:
    match = _BLOCK.match(path)
    if match is None:
        return None
    block, number, kind, index = match[1], int(match[2] or 0), match[3], int(match[4])
    rest = path[match.end() + 1 :]
    if kind == "resnets":
        rest = _RESNET.get(rest, rest)
    if block == "mid_block":
        return f"middle_block.{2 * index if kind == 'resnets' else 2 * index + 1}.{rest}"
    before = sum(per_block[f"{block}.{earlier}"] for earlier in range(number))
    last = per_block[f"{block}.{number}"] - 1
    if block == "down_blocks":
        first = 1 + number + before  # a downsampler after each of the blocks before it
        if kind == "downsamplers":
            return f"input_blocks.{first + last + 1}.0.op"
        return f"input_blocks.{first + index}.{0 if kind == 'resnets' else 1}.{rest}"
    if kind == "upsamplers":
        slot = 2 if hasattr(unet.get_submodule(f"up_blocks.{number}"), "attentions") else 1
        return f"output_blocks.{before + last}.{slot}.conv"
    return f"output_blocks.{before + index}.{0 if kind == 'resnets' else 1}.{rest}"
