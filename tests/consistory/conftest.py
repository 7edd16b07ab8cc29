"""A tiny randomly initialised model with SDXL's topology, and a tokenizer of whole words, made on the spot."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from consistory_ray.consistory import ConsiStoryPipeline

WORDS = (
    "a", "the", "photo", "of", "in", "on", "with", "red", "cat", "hat", "dog", "fire", "truck", "beach",
    "garden", "snow", "night", "kitchen", "space", "at",
)  # fmt: skip
MAX_LENGTH = 16


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer with one token per word of WORDS; other words fall into letters."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = list(string.ascii_lowercase) + list(string.digits) + list("!,.'-")
    pieces = letters + [f"{letter}</w>" for letter in letters]
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            parts = [parts[0] + parts[1], *parts[2:]]
            if merge not in merges:
                merges.append(merge)
                pieces.append(parts[0])
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(dict.fromkeys(pieces))}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH)


def _text_config(tokenizer: CLIPTokenizer, hidden_size: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def make_diffusers_pipeline(folder: Path, **scheduler: object) -> StableDiffusionXLPipeline:
    """The tiny model: 16x16 latents, so that the levels are 4x4 and 8x8."""
    tokenizer = write_tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(1, 2, 4),
            transformer_layers_per_block=(1, 1, 2),
            cross_attention_dim=16 + 24,
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
            force_upcast=True,
        )
        text_encoder = CLIPTextModel(_text_config(tokenizer, 16))
        text_encoder_2 = CLIPTextModelWithProjection(_text_config(tokenizer, 24))
    defaults = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    scheduler = {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading", **defaults, **scheduler}
    pipe = StableDiffusionXLPipeline(
        vae, text_encoder, text_encoder_2, tokenizer, tokenizer, unet, DDIMScheduler(**scheduler)
    )
    for module in (unet, vae, text_encoder, text_encoder_2):
        module.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors are faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def diffusers_pipe(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    """The tiny model as plain diffusers has it. Shared: leave it as found."""
    return make_diffusers_pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def pipe(diffusers_pipe: StableDiffusionXLPipeline) -> ConsiStoryPipeline:
    """The tiny model with the method. Shared: leave it as found."""
    return ConsiStoryPipeline(diffusers_pipe)
