"""A tiny randomly initialised model with SDXL's topology, and a tokenizer of whole words, made on the spot."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from benchmarks.random_sdxl import TINY, build_pipeline, build_unet
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


def make_diffusers_pipeline(folder: Path, **scheduler: object) -> StableDiffusionXLPipeline:
    """The tiny model with a tokenizer of whole words: 16x16 latents of two pixels each."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = build_unet(TINY)
    options = {"tokenizer": write_tokenizer(folder), "halvings": 1, "force_upcast": True}
    pipe = build_pipeline(TINY, unet, torch.float32, **options, **scheduler)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        module.requires_grad_(False)
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
