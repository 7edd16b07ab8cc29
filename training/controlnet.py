"""Training of the miniature's ControlNet, one net for silhouettes, outlines and poses; the miniature stays as it is."""

from __future__ import annotations

import random
import time
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers import ControlNetModel, StableDiffusionXLPipeline
from torch import nn

from consistory_ray.miniature.architecture import time_ids
from consistory_ray.miniature.vocabulary import PICTURE_SIZE
from training.checkpoints import Ema, restore, save_atomically, snapshot
from training.dataset import TRAIN_SEED, imagine
from training.denoiser import EMPTY_PROMPTS, Stage, TrainingAttention
from training.hints import HINTS, draw_hint
from training.parallel import average
from training.world import draw

PICTURES = 4000
"""So many of the training set's pictures, drawn as they are needed."""
SHARES = (0.35, 0.25, 0.4)
"""How often a picture comes with each of the hints."""
EMBEDDING_CHANNELS = (16, 32, 96)
"""Of the layers that take in the hint: they halve it twice, as often as the miniature's autoencoder."""
FRESH_RATE = 5.0
"""Layers that start from nothing learn so many times faster than those copied from the UNet."""
STAGES = (
    Stage("half", pixels=64, steps=450, batch=16, learning_rate=4e-4, final_rate=4e-4),
    Stage("full", pixels=128, steps=1300, batch=8, learning_rate=4e-4, final_rate=2e-4),
    Stage("settle", pixels=128, steps=850, batch=8, learning_rate=2e-4, final_rate=2e-6),
)


class ControlTraining(nn.Module):
    """The frozen pipeline, the drawn pictures and the loss of a ControlNet."""

    def __init__(self, pipe: Any, control: Any) -> None:
        super().__init__()
        self.pipe, self.control = pipe, control
        for model in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
            model.requires_grad_(False)
        for model in (pipe.unet, control):
            model.set_attn_processor({name: TrainingAttention(None) for name in model.attn_processors})
        self.text = lru_cache(8 * PICTURES)(self._text)
        self.picture = lru_cache(PICTURES)(self._picture)

    @torch.no_grad()
    def _text(self, caption: str) -> tuple[torch.Tensor, torch.Tensor]:
        context, _, pooled, _ = self.pipe.encode_prompt(caption, device="cpu", do_classifier_free_guidance=False)
        return context, pooled

    @torch.no_grad()
    def _picture(self, index: int, pixels: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Latents ``[4, h, w]``, hints uint8 ``[len(HINTS), 3, pixels, pixels]`` and captions of a training picture."""
        spec, captions = imagine(TRAIN_SEED, index)
        drawing = draw(spec)
        shrink = PICTURE_SIZE // pixels
        image = np.array(drawing.image.reduce(shrink))
        hints = np.stack([np.asarray(draw_hint(name, spec, drawing).reduce(shrink)) for name in HINTS])
        colours = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = self.pipe.vae.encode(colours).latent_dist.mode()[0] * self.pipe.vae.config.scaling_factor
        return latents, torch.from_numpy(hints).permute(0, 3, 1, 2).contiguous(), captions

    def losses(self, seed: str, stage: Stage, led: bool = True) -> tuple[torch.Tensor, list[str]]:
        """The v-prediction loss of every picture of a batch, and the names of their hints.

        Layout is decided early, so that noisy steps are drawn more often: with a density that grows linearly.

        Args:
            seed: of the batch.
            stage: with the size of pictures and batch.
            led: by the ControlNet; otherwise the loss of the UNet alone, for comparison.
        """
        rng, generator = (
            random.Random(seed),
            torch.Generator().manual_seed(random.Random(f"noise/{seed}").getrandbits(60)),
        )
        rows = [self.picture(rng.randrange(PICTURES), stage.pixels) for _ in range(stage.batch)]
        kinds = rng.choices(range(len(HINTS)), SHARES, k=stage.batch)
        latents = torch.stack([row[0] for row in rows])
        hints = torch.stack([row[1][kind] for row, kind in zip(rows, kinds, strict=True)]).float() / 255
        texts = [self.text(rng.choice(row[2])) for row in rows]
        keep = torch.tensor([float(rng.random() >= EMPTY_PROMPTS) for _ in rows])
        context = torch.cat([text[0] for text in texts]) * keep.view(-1, 1, 1)
        added = {"text_embeds": torch.cat([text[1] for text in texts]) * keep.view(-1, 1)}
        added["time_ids"] = time_ids(stage.batch, stage.pixels)
        steps = (torch.rand(stage.batch, generator=generator).sqrt() * 999).long()
        noise = torch.randn(latents.shape, generator=generator)
        signal = self.pipe.scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        target = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        residuals: dict[str, Any] = {}
        if led:
            down, middle = self.control(noisy, steps, context, hints, added_cond_kwargs=added, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        output = self.pipe.unet(noisy, steps, context, added_cond_kwargs=added, **residuals).sample
        return (output - target).square().mean((1, 2, 3)), [HINTS[kind] for kind in kinds]


def open_pipeline(folder: Path | str) -> Any:
    """An exported pipeline, to train against."""
    return StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)  # type: ignore[no-untyped-call]


def new_controlnet(pipe: Any) -> Any:
    """An untrained ControlNet of a pipeline: it changes nothing."""
    return ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=EMBEDDING_CHANNELS)


def train_controlnet(
    rank: int, processes: int, folder: str, pipeline: str, stages: tuple[Stage, ...] = STAGES, report: int = 50
) -> None:
    """One process of the training; resumes from ``folder/controlnet.pt``.

    Args:
        rank: of this process.
        processes: how many there are.
        folder: the run folder.
        pipeline: an exported pipeline folder.
        stages: one after the other, with one optimizer and moving average.
        report: progress is printed, and a checkpoint written, after so many steps.
    """
    pipe = open_pipeline(pipeline)
    torch.manual_seed(7)
    training = ControlTraining(pipe, new_controlnet(pipe))
    model, checkpoint = training.control, Path(folder, "controlnet.pt")
    named = list(model.named_parameters())
    fresh = [value for name, value in named if name.startswith("controlnet_")]
    copied = [value for name, value in named if not name.startswith("controlnet_")]
    groups = [{"params": fresh, "speed": FRESH_RATE}, {"params": copied, "speed": 1.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-3)
    ema = Ema(model, 0.995)
    first = restore(checkpoint, model, optimizer, ema)
    dist.barrier()
    ends = list(accumulate(stage.steps for stage in stages))
    started, seen = time.process_time(), []
    for step in range(first, ends[-1]):
        stage, end = next((stage, end) for stage, end in zip(stages, ends, strict=True) if step < end)
        left = (end - step) / stage.steps
        rate = stage.final_rate + (stage.learning_rate - stage.final_rate) * left
        for group in optimizer.param_groups:
            group["lr"] = group["speed"] * rate * min(1, (step + 1) / 30)
        losses, hints = training.losses(f"{rank}/{step}", stage)
        optimizer.zero_grad()
        losses.mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            average(model.parameters())
        ema.update(model)
        seen += list(zip(hints, losses.detach().tolist(), strict=True))
        if rank == 0 and ((step + 1) % report == 0 or step + 1 == ends[-1]):
            save_atomically(snapshot(step + 1, model, optimizer, ema), checkpoint)
            with torch.no_grad():
                alone = float(training.losses(f"{rank}/{step}", stage, led=False)[0].mean())
            means = {name: np.mean([loss for hint, loss in seen if hint == name] or [np.nan]) for name in HINTS}
            told = " ".join(f"{name} {mean:.4f}" for name, mean in means.items())
            print(
                f"{stage.name} {step + 1}/{ends[-1]} loss {told}; last batch {losses.detach().mean():.4f}, "
                f"without {alone:.4f}; lr {rate:.1e} {time.process_time() - started:.0f} CPU s",
                flush=True,
            )
            seen.clear()
    dist.barrier()


def export_controlnet(run: Path, pipeline: Path, out: Path) -> None:
    """Write the checkpoint's averaged (EMA) weights as a diffusers folder in float16."""
    pipe = open_pipeline(pipeline)
    model, state = new_controlnet(pipe), torch.load(run / "controlnet.pt", weights_only=True)
    model.load_state_dict({**state["model"], **state["ema"]["shadow"]})
    model.to(torch.float16).save_pretrained(out, safe_serialization=True)
    print(f"ControlNet at step {state['step']} written to {out}")
