"""What is measured: the bundled model, one with random weights, or one that is given; with words that it can draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers

from consistory_ray.consistory.pipeline import ConsiStoryPipeline
from consistory_ray.consistory.results import SubjectResult
from consistory_ray.doctor.diagnosis import RANDOM, VANILLA
from consistory_ray.doctor.random_models import QUICK, SDXL, SDXL_AUTOENCODER, random_model
from consistory_ray.settings import BUNDLED_MODEL, MethodSettings

RANDOM_PARAMETERS = 2_660_000_000
"""Of SDXL's UNet and autoencoder."""
PLACES = ("in the snow", "on a hill", "at night", "in the sea", "in a wood", "by a lake", "on a roof", "in the rain")


@dataclass(frozen=True)
class MeasuredModel:
    """A loaded model, with what is rendered by it.

    Attributes:
        name: of the model.
        pipe: with it.
        concept: a word of its world.
        settings: its own, with the picture size filled in.
    """

    name: str
    pipe: ConsiStoryPipeline
    concept: str
    settings: MethodSettings

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.pipe.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its pictures."""
        return self.settings.height or 0, self.settings.width or 0

    def subject(self, steps: int, output_type: Any = "pil") -> SubjectResult:
        """Two anchors, as every profile has them."""
        prompts = [f"a {self.concept} in the garden", f"a {self.concept} on the beach"]
        settings = self.settings.exact.replace(num_inference_steps=steps)
        return self.pipe.create_subject(prompts, self.concept, [1, 2], settings=settings, output_type=output_type)

    def pictures(self, way: str, steps: int, count: int, subject: Any, output_type: Any = "pil") -> Any:
        """So many pictures at once: scenes of a subject by a profile, or vanilla ones."""
        prompts = [f"a {self.concept} {place}" for place in PLACES[:count]]
        seeds = range(10, 10 + count)
        if way == VANILLA:
            settings = self.settings.replace(num_inference_steps=steps)
            return self.pipe.render_vanilla(prompts, seeds, settings=settings, output_type=output_type)
        return self.pipe.render(prompts, subject, seeds, profile=way, output_type=output_type)


@contextmanager
def quietly() -> Iterator[None]:
    """The libraries' bars and advice would go through the display."""
    loggers: tuple[Any, ...] = diffusers.utils.logging, transformers.utils.logging
    before = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, verbosity in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
            logger.enable_progress_bar()


def load_model(name: str, device: torch.device, dtype: torch.dtype) -> MeasuredModel:
    """Load a model, or make one.

    Args:
        name: ``"miniature"``, :data:`RANDOM`, or anything that :meth:`ConsiStoryPipeline.from_pretrained` takes.
        device: where.
        dtype: of its weights.

    Raises:
        CheckpointError: it cannot be found or used.
    """
    if name == RANDOM:
        on_cuda = device.type == "cuda"
        pipe = random_model(*((SDXL, device, dtype, SDXL_AUTOENCODER) if on_cuda else (QUICK, device, dtype)))
    else:
        pipe = ConsiStoryPipeline.from_pretrained(name, dtype=dtype, device=device)
    pipe.hold_fingerprint()
    height, width = (side * pipe.backbone.pixels_per_latent for side in pipe.backbone.native_size)
    settings = pipe.default_settings.replace(height=height, width=width)
    return MeasuredModel(name, pipe, "dragon" if name == BUNDLED_MODEL else "cat", settings)
