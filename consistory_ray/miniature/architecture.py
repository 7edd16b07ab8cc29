"""The miniature's parts: SDXL's own classes and block layout at a size that two CPU cores can train.

The latent is 4x32x32 for a 128 px picture (the autoencoder reduces by 4, SDXL's by 8), so ConsiStory's coarse level is
8x8 tokens and its fine level 16x16.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from consistory_ray.miniature.vocabulary import PICTURE_SIZE, words

LATENT_SIZE = 32
TEXT_LENGTH = 24
TEXT_WIDTH = 64
TIME_WIDTH = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build_autoencoder() -> AutoencoderKL:
    """AutoencoderKL, f = 4, four latent channels."""
    model: AutoencoderKL = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=PICTURE_SIZE,
        scaling_factor=1.0,
        force_upcast=False,
    )
    return model


def build_unet() -> UNet2DConditionModel:
    """UNet2DConditionModel with SDXL's blocks and its ``text_time`` addition embedding, 9 M parameters."""
    model: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 96, 160),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 3, 5),
        cross_attention_dim=2 * TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_WIDTH + TEXT_WIDTH,
        use_linear_projection=True,
        norm_num_groups=16,
    )
    return model


def build_scheduler() -> DDIMScheduler:
    """DDIM over SDXL's scaled-linear betas; the network predicts v, which learns faster than epsilon at this size."""
    scheduler: DDIMScheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="v_prediction",
    )
    return scheduler


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the world is one token; other words fall apart into characters.

    Args:
        folder: where its vocabulary files are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789.,-'!"})
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[str] = []
    for word in words():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            left, right = pieces[-2:]
            merge, token = f"{left} {right}", left + right
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(token)
            pieces[-2:] = [token]
    vocabulary += [BOS, EOS]
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    for name, text in (("vocab.json", json.dumps(ids)), ("merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")):
        temporary = folder / f".{name}.{os.getpid()}"  # several training processes may get here at once
        temporary.write_text(text)
        temporary.replace(folder / name)
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=TEXT_LENGTH,
        unk_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
    )


def build_text_encoders(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Two small CLIP text encoders; as in SDXL only the second one's pooled output is used."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (
        CLIPTextModel._from_config(config, attn_implementation="eager"),  # type: ignore[no-untyped-call]
        CLIPTextModelWithProjection._from_config(config, attn_implementation="eager"),  # type: ignore[no-untyped-call]
    )


def time_ids(rows: int, size: int = PICTURE_SIZE) -> torch.Tensor:
    """SDXL's size conditioning ``[rows, 6]``: original size, crop corner, target size, in pixels."""
    return torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32).repeat(rows, 1)


def assemble(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
) -> StableDiffusionXLPipeline:
    """The parts as a plain diffusers pipeline."""
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoders[0],
        text_encoder_2=text_encoders[1],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),  # type: ignore[arg-type]
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
