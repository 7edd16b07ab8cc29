"""Pipelines of SDXL's topology with random, or with no, weights: for counting, timing and tests, not for pictures.

The UNet has SDXL base 1.0's published configuration, or the same block layout with narrower channels. The text encoders
are minimal at every size, since no number here is about them; their widths fit the UNet. So is the autoencoder, unless
SDXL's own is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from consistory_ray.consistory.pipeline import ConsiStoryPipeline

TEXT_LENGTH = 77
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Topology:
    """Sizes of a UNet with SDXL's block layout; ``latent_size`` is the model's own height and width in latents."""

    channels: tuple[int, int, int]
    heads: tuple[int, int, int]
    layers_per_block: int
    transformer_layers: tuple[int, int, int]
    text_widths: tuple[int, int]
    time_width: int
    norm_groups: int
    latent_size: int


SDXL = Topology((320, 640, 1280), (5, 10, 20), 2, (1, 2, 10), (768, 1280), 256, 32, 128)
QUICK = Topology((32, 64, 128), (1, 1, 2), 2, (1, 1, 3), (32, 32), 8, 8, 32)
"""The same layout with 1.4 M parameters, for a CPU."""
SCHEDULE: Mapping[str, Any] = MappingProxyType(
    {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
)
"""SDXL's scheduler constants."""
SDXL_AUTOENCODER: Mapping[str, Any] = MappingProxyType(
    {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "mid_block_add_attention": True,
    }
)
"""SDXL's own, of 84 M parameters."""


def build_unet(topology: Topology) -> UNet2DConditionModel:
    """The UNet, on torch's default device, with diffusers' initialisation."""
    return UNet2DConditionModel(
        sample_size=topology.latent_size,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=topology.channels,
        layers_per_block=topology.layers_per_block,
        transformer_layers_per_block=topology.transformer_layers,
        attention_head_dim=topology.heads,
        cross_attention_dim=sum(topology.text_widths),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=topology.time_width,
        projection_class_embeddings_input_dim=6 * topology.time_width + topology.text_widths[1],
        norm_num_groups=topology.norm_groups,
    )


def build_tokenizer() -> CLIPTokenizer:
    """Lower-case letters are its tokens, so that ``"cat"`` is a concept of three."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(letter + "</w>" for letter in letters), BOS, EOS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=[],
        model_max_length=TEXT_LENGTH,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=EOS,
    )


def _text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=min(TEXT_LENGTH, int(tokenizer.model_max_length)),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _minimal_autoencoder(halvings: int) -> dict[str, Any]:
    return {
        "block_out_channels": (8,) * (halvings + 1),
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    }


def build_pipeline(
    topology: Topology,
    unet: UNet2DConditionModel,
    dtype: torch.dtype,
    seed: int = 0,
    *,
    tokenizer: CLIPTokenizer | None = None,
    halvings: int = 3,
    force_upcast: bool = False,
    autoencoder: Mapping[str, Any] = MappingProxyType({}),
    **scheduler: object,
) -> StableDiffusionXLPipeline:
    """A pipeline around ``unet`` on DDIM.

    Args:
        topology: of the UNet; text encoders and autoencoder fit it.
        unet: with whatever weights.
        dtype: of the other parts.
        seed: of their weights.
        tokenizer: for both text encoders; that of :func:`build_tokenizer` when None.
        halvings: of the autoencoder, which makes a latent of 2**halvings pixels.
        force_upcast: as the autoencoder's configuration says it.
        autoencoder: what its configuration has in place of the smallest numbers, such as :data:`SDXL_AUTOENCODER`.
        scheduler: what its configuration has besides, or in place of, :data:`SCHEDULE`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = tokenizer or build_tokenizer()
        first, second = (_text_config(tokenizer, width) for width in topology.text_widths)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * (halvings + 1),
            up_block_types=("UpDecoderBlock2D",) * (halvings + 1),
            latent_channels=4,
            sample_size=2**halvings * topology.latent_size,
            scaling_factor=0.13025,
            force_upcast=force_upcast,
            **(_minimal_autoencoder(halvings) | dict(autoencoder)),
        )
        encoders = CLIPTextModel(first), CLIPTextModelWithProjection(second)
    pipe = StableDiffusionXLPipeline(
        vae=vae.to(dtype).eval(),
        text_encoder=encoders[0].to(dtype).eval(),
        text_encoder_2=encoders[1].to(dtype).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(**{**SCHEDULE, **scheduler}),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_model(
    topology: Topology,
    device: torch.device,
    dtype: torch.dtype,
    autoencoder: Mapping[str, Any] = MappingProxyType({}),
) -> ConsiStoryPipeline:
    """A model whose weights are drawn on the device itself, always the same ones: SDXL's take seconds on a GPU.

    Args:
        topology: of the UNet.
        device: where it is made, and stays.
        dtype: of everything.
        autoencoder: as of :func:`build_pipeline`; one that is given is upcast as SDXL's.
    """
    default = torch.get_default_dtype()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            with device:
                unet = build_unet(topology)
        finally:
            torch.set_default_dtype(default)
    pipe = build_pipeline(topology, unet, dtype, force_upcast=bool(autoencoder), autoencoder=autoencoder).to(device)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.requires_grad_(False)
    return ConsiStoryPipeline(pipe)
