"""What a caller asks for, checked and completed: settings with their picture size, and batches of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from consistory_ray.consistory.method.layout import Grid, Level, level_grids
from consistory_ray.consistory.method.sampler import initial_latents
from consistory_ray.consistory.method.steps import check_settings
from consistory_ray.consistory.models.prompts import concept_columns, concept_positions, text_tokens
from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.numerics import whole_number
from consistory_ray.settings import MethodSettings


@dataclass(frozen=True)
class Batch:
    """What is rendered together.

    Attributes:
        prompts: one per image.
        latents: [images, channels, h, w] float32 on the CPU, the initial noise.
        columns: which text tokens make the masks, [images, text tokens, concepts]; None for no masks.
        positions: for each prompt, for each concept, its token positions.
    """

    prompts: tuple[str, ...]
    latents: Tensor
    columns: Tensor | None
    positions: list[list[list[int]]]

    def part(self, start: int, stop: int) -> Batch:
        """Some of the images."""
        columns = None if self.columns is None else self.columns[start:stop]
        return Batch(self.prompts[start:stop], self.latents[start:stop], columns, self.positions[start:stop])


def resolve_settings(pipe: Any, settings: MethodSettings, latents: Tensor | None) -> MethodSettings:
    """Settings with the picture size filled in: that of the latents where given, else the model's own.

    Raises:
        InputError: naming every field that cannot be used.
    """
    check_settings(settings)
    scale, sample_size = pipe.vae_scale_factor, pipe.unet.config.sample_size
    native = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
    if latents is not None:
        native = tuple(latents.shape[-2:])
    height, width = settings.height or native[0] * scale, settings.width or native[1] * scale
    problems = [
        Problem(name, str(value), f"must be a positive multiple of {scale}, the model's pixels per latent")
        for name, value in (("height", height), ("width", width))
        if value < 1 or value % scale
    ]
    trained = int(pipe.scheduler.config.num_train_timesteps)
    if settings.num_inference_steps > trained:
        fix = f"must be at most {trained}, the timesteps the model was trained with"
        problems.append(Problem("num_inference_steps", str(settings.num_inference_steps), fix))
    if problems:
        raise InputError("the settings cannot be used with this model", problems)
    return settings.replace(height=height, width=width)


def latent_shape(pipe: Any, settings: MethodSettings) -> tuple[int, int, int]:
    """Channels, rows and columns of a picture's latents, from resolved settings."""
    assert settings.height is not None and settings.width is not None
    scale = pipe.vae_scale_factor
    return int(pipe.unet.config.in_channels), settings.height // scale, settings.width // scale


def token_grids(pipe: Any, settings: MethodSettings) -> dict[Level, Grid]:
    """The levels' token grids of a picture, from resolved settings."""
    return level_grids(*latent_shape(pipe, settings)[1:])


def make_batch(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int] | None,
    latents: Tensor | None,
    concepts: tuple[str, ...] | None,
    settings: MethodSettings,
    *,
    every: bool = False,
    exact_suffices: bool = False,
) -> Batch:
    """Check a caller's prompts, seeds and latents, find the concepts and draw the noise.

    Args:
        every, exact_suffices: how concepts are found, see :func:`~consistory_ray.concepts.matching.find_concepts`.

    Raises:
        InputError: they do not fit each other; :class:`PromptError` for concepts not in a prompt.
    """
    shape = latent_shape(pipe, settings)
    seeds = whole_seeds(seeds)
    _check_lengths(prompts, seeds, latents, shape)
    found = {"every": every, "exact_suffices": exact_suffices}
    positions = [] if concepts is None else concept_positions(pipe, prompts, concepts, **found)
    columns = concept_columns(positions, text_tokens(pipe)) if positions else None
    noise = initial_latents(seeds or (), shape) if latents is None else latents
    return Batch(tuple(prompts), noise, columns, positions)


def whole_seeds(seeds: Any) -> tuple[int, ...] | None:
    """Seeds as Python's own whole numbers: those of numpy and torch are taken, and 3.0 for 3.

    Raises:
        InputError: naming every one that is no whole number.
    """
    if seeds is None:
        return None
    try:
        given = list(seeds)
    except TypeError:
        problem = Problem("seeds", repr(seeds)[:100], "give a list of whole numbers, one per prompt")
        raise InputError("the seeds cannot be used", [problem]) from None
    whole, problems = [], []
    for index, seed in enumerate(given):
        number = whole_number(seed)
        if number is None:
            problems.append(Problem(f"seeds[{index}]", repr(seed)[:100], "must be a whole number from 0 to 2**63 - 1"))
        else:
            whole.append(number)
    if problems:
        raise InputError("the seeds cannot be used", problems)
    return tuple(whole)


def _check_lengths(
    prompts: Sequence[str], seeds: Sequence[int] | None, latents: Tensor | None, shape: tuple[int, int, int]
) -> None:
    problems = []
    if isinstance(prompts, str) or not prompts:
        problems.append(Problem("prompts", repr(prompts), "give a list with at least one text"))
    count = len(prompts)
    if seeds is None and latents is None:
        problems.append(Problem("seeds", "None", f"give {count} seeds, or latents"))
    if seeds is not None and len(seeds) != count:
        problems.append(Problem("seeds", str(len(seeds)), f"give one per prompt: {count}"))
    for index, seed in enumerate(seeds or ()):
        if not 0 <= seed < 2**63:
            problems.append(Problem(f"seeds[{index}]", str(seed), "must be from 0 to 2**63 - 1"))
    if latents is not None and tuple(latents.shape) != (count, *shape):
        problems.append(Problem("latents", str(tuple(latents.shape)), f"must have the shape {(count, *shape)}"))
    if problems:
        raise InputError("the arguments do not fit each other", problems)
