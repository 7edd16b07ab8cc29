"""A model with all that is loaded with it; problems are told as early as headers and configurations tell them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from consistory_ray.adapters.names import LoRA
from consistory_ray.consistory.models.checkpoints import load_checkpoint, published_configs
from consistory_ray.consistory.models.fingerprint import model_fingerprint
from consistory_ray.consistory.models.identity import remember
from consistory_ray.consistory.models.lora import fuse_loras, listed_loras, read_loras, refuse_misfits
from consistory_ray.consistory.models.lora_targets import PARTS, empty_networks
from consistory_ray.settings import MethodSettings


def load_model(
    model: str | Path,
    dtype: torch.dtype,
    *,
    config: str | Path | None = None,
    loras: Sequence[LoRA | str | Path] = (),
    tell: Callable[[str], object] = str,
) -> tuple[Any, MethodSettings]:
    """Load a model and what changes it.

    Args:
        model, dtype, config, tell: as for :func:`~consistory_ray.consistory.models.checkpoints.load_checkpoint`.
        loras: fused into the weights, each as strong as it says.

    Returns:
        A pipeline of diffusers on the CPU, and the model's default settings.

    Raises:
        InputError: the arguments have the wrong kinds.
        CheckpointError: something of it cannot be found, loaded or used. What configurations and headers tell is
            refused before any weights are read.
    """
    files = read_loras(listed_loras(loras))
    if files:
        refuse_misfits(files, empty_networks(dict(zip(PARTS, published_configs(model, config, PARTS), strict=True))))
    pipe, settings = load_checkpoint(model, dtype, config, tell)
    if files:
        before = model_fingerprint(pipe)
        fuse_loras(files, pipe)
        remember(pipe, before, [file.identity for file in files if file.lora.weight])
    return pipe, settings
