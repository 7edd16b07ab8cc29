"""Distillation of the bundled model to few steps: LoRAs whose one step goes where several guided steps of it go.

The model itself is the teacher. Its *paths* are sampled once and kept: from noise, by guided DDIM with
:data:`SUBSTEPS` steps between every two of the 8-step student's timesteps, a path keeps the latents at those. What a
student should predict at a timestep follows from two latents of a path, since a DDIM step is linear in the prediction:
it is the velocity with which one step, without guidance, lands where the teacher's guided steps did (Salimans & Ho
2022, with guidance distilled as Meng et al. 2023 do). The 4-step student starts from the 8-step one and takes every
second latent of the same paths.
"""

from __future__ import annotations

import random
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consistory_ray.miniature.architecture import LATENT_SIZE, time_ids
from training.controlnet import open_pipeline
from training.dataset import TRAIN_SEED, imagine
from training.denoiser import Stage
from training.lora import Adapter, export_lora, train_lora

GUIDANCE = 5.0
SUBSTEPS = 3
"""The teacher's steps for one of the 8-step student."""
FINEST = 8
"""Steps of the student that paths are kept for; those of other students divide it."""
PATHS = 208
BLOCK = 16
"""Paths that are sampled together and lie in one file."""
RANK = 28
STAGES = {
    8: Stage("distilled-8", pixels=128, steps=775, batch=8, learning_rate=1.2e-3, final_rate=2.4e-5),
    4: Stage("distilled-4", pixels=128, steps=260, batch=8, learning_rate=1.5e-3, final_rate=3e-5),
}
"""The bundled 8-step student had one process and higher rates (up to 2.3e-3) in its first 550 steps, with which the
error stood still, then two processes and a rate that fell from 1.2e-3 to 2.7e-4; the 4-step one had one process and was
taken at step 150."""


def trailing(steps: int, train_steps: int = 1000) -> list[int]:
    """Timesteps of so many steps with diffusers' "trailing" spacing: [999, 749, 499, 249] for 4."""
    return [round(train_steps - index * train_steps / steps) - 1 for index in range(steps)]


class Levels:
    """DDIM between the noise levels of one model's training."""

    def __init__(self, alphas_cumprod: torch.Tensor) -> None:
        self.signal, self.noise = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()

    def _at(self, timestep: torch.Tensor | int) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.as_tensor(timestep).clamp(min=0)  # the end is the lowest level of training, not a clean picture
        return self.signal[index].view(-1, 1, 1, 1), self.noise[index].view(-1, 1, 1, 1)

    def step(
        self, latents: torch.Tensor, velocity: torch.Tensor, start: torch.Tensor | int, end: torch.Tensor | int
    ) -> torch.Tensor:
        """One DDIM step of ``[B, C, h, w]`` from timesteps ``start`` to ``end``; -1 is the end of sampling."""
        (signal, noise), (signal_to, noise_to) = self._at(start), self._at(end)
        picture, noise_part = signal * latents - noise * velocity, noise * latents + signal * velocity
        return signal_to * picture + noise_to * noise_part

    def velocity(
        self, latents: torch.Tensor, reached: torch.Tensor, start: torch.Tensor | int, end: torch.Tensor | int
    ) -> torch.Tensor:
        """The prediction with which :meth:`step` takes ``latents`` to ``reached``."""
        (signal, noise), (signal_to, noise_to) = self._at(start), self._at(end)
        along = signal_to * signal + noise_to * noise
        across = noise_to * signal - signal_to * noise
        return (reached - along * latents) / across


class Sampler:
    """A pipeline's UNet, texts and noise levels, as the teacher and the students need them."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.levels = pipe, Levels(pipe.scheduler.alphas_cumprod)
        for model in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
            model.requires_grad_(False)
        self.text = lru_cache(None)(self._text)

    @torch.no_grad()
    def _text(self, caption: str) -> tuple[torch.Tensor, torch.Tensor]:
        if not caption:  # as a pipeline with force_zeros_for_empty_prompt has it
            context, pooled = self.text("a")
            return torch.zeros_like(context), torch.zeros_like(pooled)
        device = self.pipe.unet.device
        context, _, pooled, _ = self.pipe.encode_prompt(caption, device=device, do_classifier_free_guidance=False)
        return context, pooled

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor | int, captions: list[str]) -> torch.Tensor:
        """The UNet's velocity ``[B, 4, h, w]``."""
        unet, rows = self.pipe.unet, len(latents)
        steps = torch.as_tensor(timesteps).expand(rows).to(unet.device)
        texts = [self.text(caption) for caption in captions]
        added = {"text_embeds": torch.cat([text[1] for text in texts]), "time_ids": time_ids(rows).to(unet.device)}
        context = torch.cat([text[0] for text in texts])
        velocity: torch.Tensor = unet(latents.to(context), steps, context, added_cond_kwargs=added).sample
        return velocity.to(latents)

    @torch.no_grad()
    def path(
        self, noise: torch.Tensor, captions: list[str], timesteps: list[int], guidance: float = 1.0, keep: int = 1
    ) -> torch.Tensor:
        """Sample by DDIM.

        Args:
            noise: ``[B, 4, h, w]``.
            captions: of the rows.
            timesteps: falling.
            guidance: no unconditional half at 1.
            keep: every so many steps the latents are kept.

        Returns:
            ``[B, 1 + steps / keep, 4, h, w]``, the noise first, the finished latents last.
        """
        latents, kept = noise, [noise]
        for index, (start, end) in enumerate(zip(timesteps, [*timesteps[1:], -1], strict=True)):
            if guidance == 1:
                velocity = self.predict(latents, start, captions)
            else:
                both = self.predict(torch.cat([latents, latents]), start, ["" for _ in captions] + captions)
                without, velocity = both.chunk(2)
                velocity = without + guidance * (velocity - without)
            latents = self.levels.step(latents, velocity, start, end)
            if (index + 1) % keep == 0:
                kept.append(latents)
        return torch.stack(kept, 1)


def path_caption(index: int) -> str:
    """What a path shows: a caption of the training set."""
    captions = imagine(TRAIN_SEED, index)[1]
    return random.Random(f"path/{index}").choice(captions)


def path_noise(indices: range | list[int]) -> torch.Tensor:
    """Where paths start, ``[N, 4, 32, 32]``."""
    size = (4, LATENT_SIZE, LATENT_SIZE)
    return torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(index)) for index in indices])


def sample_paths(run: Path, sampler: Sampler, count: int = PATHS, block: int = BLOCK, substeps: int = SUBSTEPS) -> None:
    """Sample the teacher's paths, float32 ``[block, 1 + FINEST, 4, 32, 32]`` a file; files that are there stay."""
    folder = run / "paths"
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, block):
        file = folder / f"{first:06d}.npy"
        if file.exists():
            continue
        rows, started = range(first, min(first + block, count)), time.time()
        captions = [path_caption(index) for index in rows]
        paths = sampler.path(path_noise(rows), captions, trailing(FINEST * substeps), GUIDANCE, substeps)
        temporary = file.with_suffix(".tmp.npy")
        np.save(temporary, paths.numpy())
        temporary.replace(file)
        print(f"paths {rows.stop}/{count}, {time.time() - started:.0f} s", flush=True)


class Student:
    """What a student of so many steps learns from the paths of a run folder.

    The first file's paths are not learned from: the error is measured on them.
    """

    def __init__(self, run: Path, sampler: Sampler, steps: int) -> None:
        self.folder, self.sampler = run / "paths", sampler
        self.stride = FINEST // steps
        self.timesteps = torch.tensor([*trailing(steps), -1])
        self.recent: dict[int, list[float]] = {}

    def files(self) -> list[Path]:
        """Those to learn from that are there so far."""
        found = sorted(self.folder.glob("[0-9]*[0-9].npy"))
        return found[1:] or found

    def losses(self, seed: str, batch: int) -> torch.Tensor:
        """Squared error of the predicted velocities of a batch; other paths may still be on their way."""
        rng, files = random.Random(seed), self.files()
        latents, reached, steps, captions = [], [], [], []
        for _ in range(batch):
            file = rng.choice(files)
            paths = np.load(file, mmap_mode="r")
            row, step = rng.randrange(len(paths)), rng.randrange(len(self.timesteps) - 1)
            latents.append(torch.from_numpy(paths[row, step * self.stride].copy()))
            reached.append(torch.from_numpy(paths[row, (step + 1) * self.stride].copy()))
            steps.append(step)
            captions.append(path_caption(int(file.stem) + row))
        errors = self._errors(torch.stack(latents), torch.stack(reached), torch.tensor(steps), captions)
        for step, error in zip(steps, errors.tolist(), strict=True):
            self.recent.setdefault(step, []).append(error)
        return errors

    def _errors(
        self, latents: torch.Tensor, reached: torch.Tensor, steps: torch.Tensor, captions: list[str]
    ) -> torch.Tensor:
        start, end = self.timesteps[steps], self.timesteps[steps + 1]
        wanted = self.sampler.levels.velocity(latents, reached, start, end)
        found = self.sampler.predict(latents, start, captions)
        return (found - wanted).square().mean((1, 2, 3))

    def told(self) -> str:
        """The mean error at each timestep since it was last told."""
        means = [float(np.mean(self.recent.get(step, [np.nan]))) for step in range(len(self.timesteps) - 1)]
        self.recent.clear()
        return "[" + " ".join(f"{mean:.4f}" for mean in means) + "]"


def train_student(
    rank: int, processes: int, folder: str, pipeline: str, steps: int, stage: Stage | None = None
) -> None:
    """One process of a student's training; resumes from ``folder/distilled-<steps>.pt``.

    Args:
        rank: of this process.
        processes: how many there are.
        folder: the run folder, with paths.
        pipeline: the teacher's folder.
        steps: the student's; with fewer than :data:`FINEST` it starts from that one's checkpoint, if there is one.
        stage: of the training, if not the bundled student's.
    """
    sampler = Sampler(open_pipeline(pipeline))
    adapter, student = Adapter(sampler.pipe.unet, RANK), Student(Path(folder), sampler, steps)
    finest = Path(folder, f"distilled-{FINEST}.pt")
    if steps != FINEST and finest.exists():
        adapter.load_state_dict(torch.load(finest, weights_only=True)["ema"]["shadow"])
    checkpoint = Path(folder, f"distilled-{steps}.pt")
    train_lora(rank, checkpoint, adapter, student.losses, stage or STAGES[steps], student.told)


def export_student(run: Path, pipeline: Path, steps: int, folder: Path) -> None:
    """Write a student's averaged (EMA) weights as ``folder/distilled-<steps>.safetensors``."""
    made = {
        "steps": steps,
        "timesteps": trailing(steps),
        "guidance": 1.0,
        "teacher_guidance": GUIDANCE,
        "teacher_steps": FINEST * SUBSTEPS,
    }
    export_lora(run / f"distilled-{steps}.pt", pipeline, RANK, made, folder)
