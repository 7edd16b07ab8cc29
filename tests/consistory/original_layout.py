"""Writes a pipeline as one file in the original SDXL layout, as models are commonly distributed; to test loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE = {
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "down_blocks": "down",
    "resnets": "block",
}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "encoder.layers": "transformer.resblocks",
    "final_layer_norm": "ln_final",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
}


def write_original_layout(pipe: Any, path: Path) -> None:
    """Write UNet, VAE and both text encoders to one safetensors file."""
    weights: Weights = {}
    _add(weights, "model.diffusion_model", _unet(pipe.unet))
    _add(weights, "first_stage_model", _vae(pipe.vae))
    clip = {key.removeprefix("text_model."): value for key, value in pipe.text_encoder.state_dict().items()}
    _add(weights, "conditioner.embedders.0.transformer.text_model", clip)
    _add(weights, "conditioner.embedders.1.model", _open_clip(pipe.text_encoder_2))
    safetensors.torch.save_file({key: value.contiguous() for key, value in weights.items()}, path)


def _add(weights: Weights, prefix: str, found: Weights) -> None:
    weights.update({f"{prefix}.{key}": value for key, value in found.items()})


def _renamed(key: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        key = key.replace(ours, theirs)
    return key


def _unet(unet: Any) -> Weights:
    state = unet.state_dict()
    found = {_renamed(k, _UNET): v for k, v in state.items() if any(k.startswith(name) for name in _UNET)}

    def move(module: nn.Module, target: str, names: dict[str, str] | None = None) -> None:
        _add(found, target, {_renamed(key, names or {}): value for key, value in module.state_dict().items()})

    index = 1
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            move(resnet, f"input_blocks.{index}.0", _RESNET)
            if attention is not None:
                move(attention, f"input_blocks.{index}.1")
            index += 1
        for downsampler in block.downsamplers or ():
            move(downsampler.conv, f"input_blocks.{index}.0.op")
            index += 1
    move(unet.mid_block.resnets[0], "middle_block.0", _RESNET)
    move(unet.mid_block.attentions[0], "middle_block.1")
    move(unet.mid_block.resnets[1], "middle_block.2", _RESNET)
    index = 0
    for block in unet.up_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        for number, (resnet, attention) in enumerate(zip(block.resnets, attentions, strict=True)):
            move(resnet, f"output_blocks.{index}.0", _RESNET)
            if attention is not None:
                move(attention, f"output_blocks.{index}.1")
            if block.upsamplers and number == len(block.resnets) - 1:
                move(block.upsamplers[0].conv, f"output_blocks.{index}.{1 if attention is None else 2}.conv")
            index += 1
    return found


def _vae(vae: Any) -> Weights:
    found: Weights = {}
    last = len(vae.decoder.up_blocks) - 1
    for key, value in vae.state_dict().items():
        for block in range(last + 1):
            key = key.replace(f"up_blocks.{block}.", f"up.{last - block}.")
        name = _renamed(key, _VAE)
        is_projection = "attn_1" in name and value.ndim == 2
        found[name] = value[:, :, None, None] if is_projection else value
    return found


def _open_clip(encoder: Any) -> Weights:
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    found: Weights = {"text_projection": state.pop("text_projection.weight").T}
    for layer in range(encoder.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            found[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
    return found | {_renamed(key, _OPEN_CLIP): value for key, value in state.items() if "position_ids" not in key}


def write_original_vae(pipe: Any, path: Path) -> None:
    """Write the VAE alone to one safetensors file, as the web UIs have them."""
    safetensors.torch.save_file({key: value.contiguous() for key, value in _vae(pipe.vae).items()}, path)
