"""Writes LoRAs with random factors in the layouts in which they are handed around, and says what they change."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA = 2, 3.0

SHORT = (
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "unet.mid_block.attentions.0.transformer_blocks.1.attn1.to_out.0",
    "unet.up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2",
    "unet.up_blocks.0.attentions.0.proj_in",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    "text_encoder_2.text_model.encoder.layers.1.mlp.fc2",
)
"""Modules of the UNet and of both text encoders, as diffusers writes their paths."""

CONVOLUTIONS = (
    "unet.conv_in",
    "unet.down_blocks.0.resnets.0.conv1",
    "unet.down_blocks.0.downsamplers.0.conv",
    "unet.down_blocks.1.resnets.0.conv_shortcut",
    "unet.mid_block.resnets.1.time_emb_proj",
    "unet.up_blocks.0.upsamplers.0.conv",
    "unet.up_blocks.2.resnets.0.conv2",
)
"""What LoCon files change beside."""

_PATHS = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": "input_blocks.3.1.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.1.attn1.to_out.0": "middle_block.1.transformer_blocks.1.attn1.to_out.0",
    "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2": "output_blocks.3.1.transformer_blocks.0.ff.net.2",
    "up_blocks.0.attentions.0.proj_in": "output_blocks.0.1.proj_in",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.3.0.skip_connection",
    "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.2.resnets.0.conv2": "output_blocks.4.0.out_layers.3",
}
ORIGINAL = {f"unet.{ours}": theirs for ours, theirs in _PATHS.items()}
"""The same in the original UNet, for blocks of one layer: counted by hand."""

Write = Callable[[str, Tensor, Tensor], dict[str, Tensor]]


def module_of(pipe: Any, name: str) -> Any:
    """A module of a pipeline by its path, whatever the version of transformers calls it."""
    part, _, path = name.partition(".")
    network = getattr(pipe, part)
    known = dict(network.named_modules())
    return known[path if path in known else path.removeprefix("text_model.")]


def write_lora(
    pipe: Any, path: Path, write: Write, modules: Sequence[str] = SHORT, seed: int = 0, **metadata: str
) -> dict[str, Tensor]:
    """Write a LoRA to a file; returns ``up @ down`` of each module in its weight's shape."""
    random = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    products = {}
    for name in modules:
        weight = module_of(pipe, name).weight
        out, into, *kernel = weight.shape
        down = torch.randn(RANK, into, *kernel, generator=random)
        up = torch.randn(out, RANK, *([1] * len(kernel)), generator=random)
        products[name] = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        weights |= write(name, down, up)
    save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata or None)
    return products


def kohya(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """sd-scripts and most trainers; paths of diffusers, as LCM-LoRA has them."""
    part, _, path = name.partition(".")
    short = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[part]
    stem = f"{short}_{path.replace('.', '_')}"
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(ALPHA)}


def kohya_original(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """The same with the original UNet's paths, as sd-scripts writes SDXL."""
    return kohya(f"unet.{ORIGINAL[name]}" if name in ORIGINAL else name, down, up)


def comfy(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """Original paths with dots; no alpha."""
    stem = f"diffusion_model.{ORIGINAL[name]}" if name in ORIGINAL else name
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}


def diffusers(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """``save_lora_weights`` of today; no alpha."""
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def diffusers_plain(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """``save_lora_weights`` with text encoders in the older form."""
    return {f"{name}.lora.down.weight": down, f"{name}.lora.up.weight": up}


def diffusers_old(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """Attention processors with weights, and ``lora_linear_layer`` in text encoders."""
    found = re.fullmatch(r"(unet\..*attn\d)\.(to_[qkv]|to_out)(?:\.0)?", name)
    if found:
        return {f"{found[1]}.processor.{found[2]}_lora.{each}.weight": w for each, w in (("down", down), ("up", up))}
    return {f"{name}.lora_linear_layer.{each}.weight": w for each, w in (("down", down), ("up", up))}


def peft(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """``PeftModel.save_pretrained`` of a UNet alone."""
    stem = f"base_model.model.{name.removeprefix('unet.')}"
    return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
