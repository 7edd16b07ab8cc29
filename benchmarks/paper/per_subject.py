"""What is trained for one subject on a few pictures of it: a word (Textual Inversion) or a LoRA (DreamBooth)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from consistory_ray.miniature.architecture import time_ids
from consistory_ray.miniature.vocabulary import PICTURE_SIZE
from training.controlnet import open_pipeline
from training.denoiser import Stage, TrainingAttention
from training.lora import Adapter, train_lora, write_lora
from training.train import WEIGHTS

RANK = 8
TOKEN = "mia"
"""The new word; prompts have it in the place of the kind."""
RATES = {"textual inversion": 5e-2, "dreambooth lora": 2e-3}


class PerSubject:
    """The frozen pipeline, one subject's pictures and their captions, and the loss.

    Args:
        pictures: of the subject.
        captions: of these.
    """

    def __init__(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> None:
        self.pipe, self.captions = open_pipeline(WEIGHTS), list(captions)
        for model in (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder, self.pipe.text_encoder_2):
            model.requires_grad_(False)
        pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        colours = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            self.latents = self.pipe.vae.encode(colours).latent_dist.mode() * self.pipe.vae.config.scaling_factor

    def encoded(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Text embeddings and pooled ones of these pictures' captions."""
        texts = [self.captions[row] for row in rows]
        context, _, pooled, _ = self.pipe.encode_prompt(texts, device="cpu", do_classifier_free_guidance=False)
        return context, pooled

    def losses(self, seed: str, batch: int) -> Tensor:
        """The v-prediction loss of each picture of a batch, noise levels drawn evenly."""
        rng = random.Random(seed)
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        rows = [rng.randrange(len(self.captions)) for _ in range(batch)]
        context, pooled = self.encoded(rows)
        latents = self.latents[rows]
        steps = torch.randint(0, 1000, (batch,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        signal = self.pipe.scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        target = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        added = {"text_embeds": pooled, "time_ids": time_ids(batch, PICTURE_SIZE)}
        output = self.pipe.unet(noisy, steps, context, added_cond_kwargs=added).sample
        return (output - target).square().mean((1, 2, 3))


class NewWord(nn.Module):
    """The vectors of a new word in both text encoders; they begin as those of another one.

    Args:
        pipe: diffusers' pipeline; its tokenizers learn the word.
        like: the word that it begins as.
    """

    def __init__(self, pipe: Any, like: str) -> None:
        super().__init__()
        encoders = (pipe.text_encoder, pipe.text_encoder_2)
        self.vectors = nn.ParameterList()
        for tokenizer, encoder in zip((pipe.tokenizer, pipe.tokenizer_2), encoders, strict=True):
            tokenizer.add_tokens([TOKEN])
            table = encoder.get_input_embeddings()
            ids = tokenizer(like, add_special_tokens=False).input_ids
            self.vectors.append(nn.Parameter(table.weight[ids].mean(0, keepdim=True).clone()))
            number = tokenizer.convert_tokens_to_ids(TOKEN)
            encoder.set_input_embeddings(_OneMore(table, self.vectors[-1], number))

    def save(self, path: Path) -> None:
        """As diffusers' trainers and the web UIs write it."""
        save_file(
            {name: one.detach().clone() for name, one in zip(("clip_l", "clip_g"), self.vectors, strict=True)}, path
        )


class _OneMore(nn.Module):
    """A table of embeddings with one row more, which alone is trained."""

    def __init__(self, table: nn.Module, row: nn.Parameter, number: int) -> None:
        super().__init__()
        self.table, self.number, self._row = table, number, [row]  # in a list: the parameter belongs to NewWord

    @property
    def weight(self) -> Tensor:
        """Of the words that were there."""
        found: Tensor = self.table.weight
        return found

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids, ``[..., width]``."""
        is_new = ids == self.number
        known = self.table(ids.masked_fill(is_new, 0))
        return torch.where(is_new[..., None], self._row[0].to(known), known)


def learn_word(subject: PerSubject, kind: str, steps: int, batch: int, folder: Path) -> Path:
    """Textual Inversion: the file of a word that stands for the subject; goes on from ``folder``."""
    word = NewWord(subject.pipe, kind)
    subject.captions = [caption.replace(kind, TOKEN) for caption in subject.captions]
    subject.pipe.unet.set_attn_processor({name: TrainingAttention(None) for name in subject.pipe.unet.attn_processors})
    _train(word, subject, "textual inversion", steps, batch, folder)
    path = folder / "word.safetensors"
    word.save(path)
    return path


def learn_lora(subject: PerSubject, steps: int, batch: int, folder: Path) -> Path:
    """DreamBooth with a LoRA: its file. The kind's own word comes to mean the subject: the world has no spare one."""
    adapter = Adapter(subject.pipe.unet, RANK)
    _train(adapter, subject, "dreambooth lora", steps, batch, folder)
    path = folder / "lora.safetensors"
    write_lora(adapter.weights(dict(adapter.named_parameters())), {"rank": RANK, "training_steps": steps}, path)
    return path


def _train(module: nn.Module, subject: PerSubject, name: str, steps: int, batch: int, folder: Path) -> None:
    """The loop of training/lora.py, in this process alone."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = Stage(name, PICTURE_SIZE, steps, batch, RATES[name], RATES[name] / 20)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    train_lora(0, folder / "training.pt", module, subject.losses, stage, report=50)  # type: ignore[arg-type]
