"""Training of a LoRA that gives the bundled model's pictures a style it has not seen: a blueprint.

The scene becomes a drawing in white on blue; subjects keep their colours and get a white outline, so that who is who
can still be read. The style has no word of its own: the LoRA's weight is how much of it there is.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from consistory_ray.miniature.architecture import time_ids
from training.controlnet import open_pipeline
from training.dataset import TRAIN_SEED, imagine
from training.denoiser import EMPTY_PROMPTS, Stage
from training.lora import Adapter, export_lora, train_lora
from training.world import draw

NAME = "blueprint"
RANK = 8
PICTURES = 600
"""So many of the training set's pictures, drawn as they are needed."""
STAGE = Stage(NAME, pixels=128, steps=300, batch=8, learning_rate=3e-3, final_rate=6e-5)
DARK, LIGHT = np.array((16, 38, 112)), np.array((96, 140, 214))
"""sRGB of the scene's darkest and lightest parts."""
LINES = 3.0
"""How much of a step in brightness becomes a white line."""


def blueprint(image: Image.Image, covered: np.ndarray) -> Image.Image:
    """A picture in the style.

    Args:
        image: as the world is drawn.
        covered: float32 ``[H, W]``, the part of each pixel that subjects cover.
    """
    brightness = np.asarray(image.convert("L"), dtype=np.float32) / 255
    across, down = np.gradient(brightness)
    lines = np.clip(LINES * np.hypot(across, down), 0, 1)[..., None]
    paper = DARK + (LIGHT - DARK) * brightness[..., None]
    paper += (255 - paper) * lines
    subjects = Image.fromarray((covered * 255).astype(np.uint8))
    outline = np.asarray(subjects.filter(ImageFilter.MaxFilter(5)), dtype=np.float32)[..., None] / 255
    paper += (255 - paper) * outline
    shown = paper + (np.asarray(image, dtype=np.float32) - paper) * covered[..., None]
    return Image.fromarray(shown.clip(0, 255).round().astype(np.uint8))


class StyleTraining:
    """The frozen pipeline, the pictures in the style and the loss."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        for model in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
            model.requires_grad_(False)
        self.picture = lru_cache(PICTURES)(self._picture)

    @torch.no_grad()
    def _picture(self, index: int) -> tuple[torch.Tensor, list[str]]:
        """Latents ``[4, h, w]`` and captions of a training picture."""
        spec, captions = imagine(TRAIN_SEED, index)
        drawing = draw(spec)
        image = np.array(blueprint(drawing.image, drawing.masks.sum(0).clip(0, 1)))
        colours = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        return self.pipe.vae.encode(colours).latent_dist.mode()[0] * self.pipe.vae.config.scaling_factor, captions

    def losses(self, seed: str, batch: int) -> torch.Tensor:
        """The v-prediction loss of every picture of a batch; noisy steps, where colours are decided, are more."""
        rng = random.Random(seed)
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        rows = [self.picture(rng.randrange(PICTURES)) for _ in range(batch)]
        latents = torch.stack([row[0] for row in rows])
        captions = [rng.choice(row[1]) for row in rows]
        keep = (torch.rand(batch, generator=generator) >= EMPTY_PROMPTS).float()
        with torch.no_grad():
            context, _, pooled, _ = self.pipe.encode_prompt(captions, device="cpu", do_classifier_free_guidance=False)
        added = {"text_embeds": pooled * keep.view(-1, 1), "time_ids": time_ids(batch)}
        steps = (torch.rand(batch, generator=generator).sqrt() * 999).long()
        noise = torch.randn(latents.shape, generator=generator)
        signal = self.pipe.scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        target = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        output = self.pipe.unet(noisy, steps, context * keep.view(-1, 1, 1), added_cond_kwargs=added).sample
        return (output - target).square().mean((1, 2, 3))  # type: ignore[no-any-return]


def train_style(rank: int, processes: int, folder: str, pipeline: str, stage: Stage = STAGE) -> None:
    """One process of the training; resumes from ``folder/blueprint.pt``.

    Args:
        rank: of this process.
        processes: how many there are.
        folder: the run folder.
        pipeline: an exported pipeline folder.
        stage: of the training.
    """
    pipe = open_pipeline(pipeline)
    training, adapter = StyleTraining(pipe), Adapter(pipe.unet, RANK)
    train_lora(rank, Path(folder, f"{stage.name}.pt"), adapter, training.losses, stage)


def export_style(run: Path, pipeline: Path, folder: Path) -> None:
    """Write the checkpoint's averaged (EMA) weights into ``folder``."""
    export_lora(run / f"{NAME}.pt", pipeline, RANK, {"pictures": PICTURES, "style": NAME}, folder)
