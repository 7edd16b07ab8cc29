"""Training of the miniature's UNet together with its two text encoders."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file
from torch import nn

from consistory_ray.miniature.architecture import (
    build_scheduler,
    build_text_encoders,
    build_tokenizer,
    build_unet,
    time_ids,
)
from consistory_ray.miniature.vocabulary import KINDS, PICTURE_SIZE
from training.dataset import open_pictures
from training.parallel import Ema, average, save_atomically

EMPTY_PROMPTS = 0.1
SNR_CAP = 5.0
MAP_WEIGHT = 1.0
MAP_TARGET = 0.5
"""Attention that a covered token should pay to the word naming its subject; the rest is left to the other words."""


@dataclass
class Batch:
    """A training batch: latents ``[B, 4, h, w]``, token ids ``[B, 24]``, where each subject's kind stands in the
    caption ``[B, 2]`` (-1: no second subject) and which cells it covers ``[B, 2, 8, 8]``."""

    latents: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    coverage: torch.Tensor


class TrainingSet:
    """Captions, masks and latents of the drawn pictures, batches of them at random."""

    def __init__(self, folder: Path, size: int) -> None:
        pictures = open_pictures(folder / "pictures")
        self.tokenizer = build_tokenizer(folder / "tokenizer")
        self.latents = np.load(folder / f"latents-{size}.npy", mmap_mode="r")
        count = len(self.latents)
        captions = [caption for row in pictures.captions[:count] for caption in row]
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="np").input_ids
        self.tokens = ids.reshape(count, -1, ids.shape[-1]).astype(np.int64)
        kind_ids = {kind: self.tokenizer.convert_tokens_to_ids(f"{kind}</w>") for kind in KINDS}
        kinds = np.full((count, 2), -1)
        for index in range(count):
            for slot, kind in enumerate(pictures.kinds(index)):
                kinds[index, slot] = kind_ids[kind]
        self.kinds = kinds
        cells = pictures.coverage[:count].astype(np.float32)
        self.coverage = cells.reshape(count, 2, 8, 2, 8, 2).mean((3, 5))

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """``size`` pictures drawn with replacement."""
        rows = np.sort(rng.integers(0, len(self.latents), size))
        tokens = self.tokens[rows, rng.integers(0, self.tokens.shape[1], size)]
        found = tokens[:, None, :] == self.kinds[rows][:, :, None]
        positions = np.where(found.any(-1), found.argmax(-1), -1)
        return Batch(
            torch.from_numpy(self.latents[rows].astype(np.float32)),
            torch.from_numpy(tokens),
            torch.from_numpy(positions),
            torch.from_numpy(self.coverage[rows]),
        )


class TrainingAttention:
    """Plain matmul attention (on CPU its backward is faster than the fused kernel's) that can keep its maps."""

    def __init__(self, maps: list[torch.Tensor] | None) -> None:
        self.maps = maps

    def __call__(
        self, attn: Attention, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows, tokens, width = hidden_states.shape

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(rows, -1, attn.heads, width // attn.heads).transpose(1, 2)

        query, key, value = heads(attn.to_q(hidden_states)), heads(attn.to_k(context)), heads(attn.to_v(context))
        weights = ((query * attn.scale) @ key.transpose(-1, -2)).softmax(-1)
        if self.maps is not None and encoder_hidden_states is not None:
            self.maps.append(weights.float().mean(1))
        output = (weights.to(value.dtype) @ value).transpose(1, 2).reshape(rows, tokens, width)
        return attn.to_out[0](output)  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """UNet and text encoders as one module, and the training loss."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.unet = build_unet()
        self.text_encoder, self.text_encoder_2 = build_text_encoders(build_tokenizer(folder / "tokenizer"))
        self.maps: list[torch.Tensor] = []
        coarse = ("down_blocks.2", "mid_block", "up_blocks.0")
        processors: dict[str, Any] = {
            name: TrainingAttention(self.maps if name.startswith(coarse) and "attn2" in name else None)
            for name in self.unet.attn_processors
        }
        self.unet.set_attn_processor(processors)
        cumulative = build_scheduler().alphas_cumprod
        self.register_buffer("alphas_cumprod", cumulative, persistent=False)

    def loss(self, batch: Batch, generator: torch.Generator, pixels: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Min-SNR-weighted v-prediction loss, and how far the subject words' maps are from where the subjects are."""
        rows = len(batch.latents)
        steps = torch.randint(0, 1000, (rows,), generator=generator)
        noise = torch.randn(batch.latents.shape, generator=generator)
        signal = self.alphas_cumprod[steps].view(-1, 1, 1, 1)  # type: ignore[index]
        noisy = signal.sqrt() * batch.latents + (1 - signal).sqrt() * noise
        target = signal.sqrt() * noise - (1 - signal).sqrt() * batch.latents
        first = self.text_encoder(batch.tokens, output_hidden_states=True).hidden_states[-2]
        second = self.text_encoder_2(batch.tokens, output_hidden_states=True)
        keep = (torch.rand(rows, generator=generator) >= EMPTY_PROMPTS).float()
        context = torch.cat([first, second.hidden_states[-2]], -1) * keep.view(-1, 1, 1)
        pooled = second.text_embeds * keep.view(-1, 1)
        self.maps.clear()
        output = self.unet(
            noisy, steps, context, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids(rows, pixels)}
        ).sample.float()
        snr = signal.flatten() / (1 - signal.flatten())
        weight = snr.clamp(max=SNR_CAP) / (snr + 1)
        denoising = ((output - target).square().mean((1, 2, 3)) * weight).mean() / weight.mean()
        return denoising, self.map_loss(batch, keep)

    def map_loss(self, batch: Batch, keep: torch.Tensor) -> torch.Tensor:
        """Mean squared distance of the coarse maps' mean over layers from ``MAP_TARGET * coverage``."""
        maps = torch.stack(self.maps).mean(0)  # [B, tokens, text]
        side = int(maps.shape[1] ** 0.5)
        target = F.adaptive_avg_pool2d(batch.coverage, side).flatten(2) * MAP_TARGET
        index = batch.positions.clamp(min=0)[:, None, :].expand(-1, maps.shape[1], -1)
        found = maps.gather(2, index).transpose(1, 2)  # [B, subjects, tokens]
        used = (batch.positions >= 0).float() * keep[:, None]
        return ((found - target).square().mean(-1) * used).sum() / used.sum().clamp(min=1)


@dataclass(frozen=True)
class Stage:
    """One stage of training: picture size, steps, batch per process, learning rate at its start and end."""

    name: str
    pixels: int
    steps: int
    batch: int
    learning_rate: float
    final_rate: float


def train_stage(rank: int, processes: int, folder: str, stage: Stage, start_from: str | None) -> None:
    """One process of one stage; resumes from ``folder/<stage>.pt``, or starts from ``start_from``: another stage's
    checkpoint, or an exported pipeline folder."""
    checkpoint = Path(folder, f"{stage.name}.pt")
    data = TrainingSet(Path(folder), stage.pixels // (PICTURE_SIZE // 32))
    torch.manual_seed(7)
    model = Denoiser(Path(folder))
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    ema = Ema(model, 0.9993)
    first = _resume(model, optimizer, ema, checkpoint, Path(start_from) if start_from else None)
    dist.barrier()
    generator = torch.Generator().manual_seed(1000 * first + rank)
    rng = np.random.default_rng([rank, first])
    started, losses = time.time(), []
    for step in range(first, stage.steps):
        rate = stage.final_rate + (stage.learning_rate - stage.final_rate) * (1 - step / stage.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1 - first) / 100)
        with torch.autocast("cpu", torch.bfloat16):
            denoising, maps = model.loss(data.batch(rng, stage.batch), generator, stage.pixels)
        optimizer.zero_grad()
        (denoising + MAP_WEIGHT * maps).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            average(model.parameters())
        ema.update(model)
        losses.append((float(denoising.detach()), float(maps.detach())))
        if rank == 0 and ((step + 1) % 100 == 0 or step + 1 == stage.steps):
            mean = np.mean(losses[-100:], axis=0)
            seen = (step + 1 - first) * stage.batch * processes
            print(
                f"{stage.name} {step + 1}/{stage.steps} loss {mean[0]:.4f} maps {mean[1]:.4f} lr {rate:.1e} "
                f"{seen / (time.time() - started):.0f} pictures/s {time.time() - started:.0f} s",
                flush=True,
            )
        if rank == 0 and ((step + 1) % 250 == 0 or step + 1 == stage.steps):
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.state(),
                "step": step + 1,
            }
            save_atomically(state, checkpoint)
    dist.barrier()


@torch.no_grad()
def load_weights(model: Denoiser, folder: Path) -> None:
    """Start from an exported pipeline folder, where the run folder with its checkpoints is lost."""
    for name in ("unet", "text_encoder", "text_encoder_2"):
        file = next((folder / name).glob("*.safetensors"))
        getattr(model, name).load_state_dict({key: value.float() for key, value in load_file(file).items()})


def _resume(model: Denoiser, optimizer: torch.optim.Optimizer, ema: Ema, own: Path, other: Path | None) -> int:
    path = own if own.exists() else other
    if path is None:
        return 0
    if path.is_dir():
        load_weights(model, path)
        ema.load({"steps": ema.steps, "shadow": dict(model.named_parameters())})
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    ema.load(state["ema"])
    return int(state["step"]) if path == own else 0
