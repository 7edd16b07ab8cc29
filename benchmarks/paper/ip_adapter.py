"""An IP-Adapter, trained once for all subjects, as a way to scenes: the anchors are shown to it as pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.paper.bench import Bench
from consistory_ray.consistory.method.latents import seeded_noise
from consistory_ray.errors import InputError, Problem
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.evaluation.rendering import PictureStore, Rendered
from consistory_ray.miniature.judge import SECOND_WEIGHTS, Judge
from consistory_ray.miniature.vocabulary import PICTURE_SIZE
from consistory_ray.settings import MethodSettings, model_revision
from training.controlnet import open_pipeline
from training.ip_adapter import Encoder, attach, encoder_sha256, notes_of
from training.train import IP_ADAPTER, WEIGHTS

SCALE = 1.0
"""Of what the adapter adds to every cross-attention; chosen on subjects that no figure reports."""


class ImagePrompts:
    """The bundled model with the adapter, in diffusers' own pipeline.

    Args:
        path: of the adapter.
        device: of the model.
        dtype: of the model.

    Raises:
        InputError: the adapter was trained against other weights of the model, or with another encoder.
    """

    def __init__(
        self, path: Path = IP_ADAPTER, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.notes = notes_of(path)
        now = {"base_revision": model_revision("miniature"), "encoder_sha256": encoder_sha256()}
        fix = "train it again: python -m training.train ip-adapter --run FOLDER"
        wrong = [Problem(f"{path}: {name}", self.notes[name], fix) for name in now if self.notes[name] != now[name]]
        if wrong:
            raise InputError("the IP-Adapter is of other weights", wrong)
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.encoder = Encoder(Judge.load(SECOND_WEIGHTS))
        self.pipe = open_pipeline(WEIGHTS)
        attach(self.pipe, path)
        self.pipe.to(device, dtype)
        self.pipe.set_progress_bar_config(disable=True)

    def embedded(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What the adapter is told of them, ``[2, pictures, 320]``: zeros for the unconditional half come first."""
        seen = self.encoder(pictures)
        return torch.stack([torch.zeros_like(seen), seen]).to(self.pipe.device, self.pipe.unet.dtype)

    @torch.no_grad()
    def render(
        self, prompts: Sequence[str], seeds: Sequence[int], embedded: Tensor, scale: float, settings: MethodSettings
    ) -> list[Image.Image]:
        """One picture of every prompt, sampled as vanilla pictures are: the same noise, DDIM, guidance and FreeU.

        Args:
            prompts: of the pictures.
            seeds: of their noise.
            embedded: of :meth:`embedded`; pictures are given one after the other, as tokens side by side.
            scale: of what the adapter adds.
            settings: of which steps, guidance and FreeU count.
        """
        self.pipe.set_ip_adapter_scale(scale)
        if settings.freeu is not None:
            self.pipe.enable_freeu(*settings.freeu)
        side = self.pipe.unet.config.sample_size
        noise = torch.stack([seeded_noise(seed, (4, side, side)) for seed in seeds])
        made: Any = self.pipe(
            list(prompts),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            latents=noise.to(embedded),
            ip_adapter_image_embeds=[embedded],
            height=PICTURE_SIZE,
            width=PICTURE_SIZE,
        )
        return list(made.images)


def adapted_scenes(
    bench: Bench, adapter: ImagePrompts, subject: SubjectPrompts, embedded: Tensor, scale: float
) -> list[Rendered]:
    """A subject's scenes with the adapter; each is rendered once and kept with the bench's other pictures."""
    store = PictureStore(bench.options.cache, bench.pipeline.fingerprint)
    settings = bench.settings
    shown = hashlib.sha256(embedded.float().cpu().numpy().tobytes()).hexdigest()
    about = {"adapter": adapter.sha256, "scale": scale, "shown": shown, "dtype": str(adapter.pipe.unet.dtype)}
    about |= {"steps": settings.num_inference_steps, "guidance": settings.guidance_scale, "freeu": settings.freeu}
    keys: list[dict[str, object]] = [
        {"mode": "ip adapter", "prompt": prompt, "seed": seed, **about}
        for prompt, seed in zip(subject.prompts, subject.seeds, strict=True)
    ]
    found = store.get_all(keys)
    if found is None:
        found = []
        for first in range(0, len(keys), bench.options.batch_size):
            part = slice(first, first + bench.options.batch_size)
            images = adapter.render(subject.prompts[part], subject.seeds[part], embedded, scale, settings)
            found += [Rendered(image, {}) for image in images]
        for key, picture in zip(keys, found, strict=True):
            store.put(key, picture)
    return found
