"""A model with all that is loaded with it; problems are told as early as headers and configurations tell them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from consistory_ray.adapters.names import Embedding, LoRA
from consistory_ray.consistory.models.checkpoints import check_origin, load_checkpoint, published_configs
from consistory_ray.consistory.models.embeddings import (
    EmbeddingFile,
    add_embeddings,
    listed_embeddings,
    read_embeddings,
    refuse_wrong_widths,
)
from consistory_ray.consistory.models.fingerprint import model_fingerprint
from consistory_ray.consistory.models.identity import remember
from consistory_ray.consistory.models.lora import LoRAFile, fuse_loras, listed_loras, read_loras, refuse_misfits
from consistory_ray.consistory.models.lora_targets import PARTS, empty_networks
from consistory_ray.consistory.models.vaes import check_vae, load_vae
from consistory_ray.settings import MethodSettings


def load_model(
    model: str | Path,
    dtype: torch.dtype,
    *,
    config: str | Path | None = None,
    variant: str | None = None,
    revision: str | None = None,
    vae: str | Path | None = None,
    loras: Sequence[LoRA | str | Path] = (),
    embeddings: Sequence[Embedding] = (),
    tell: Callable[[str], object] = str,
) -> tuple[Any, MethodSettings]:
    """Load a model and what changes it.

    Args:
        model, dtype, config, variant, revision, tell: as for
            :func:`~consistory_ray.consistory.models.checkpoints.load_checkpoint`.
        vae: in place of the model's own, see :mod:`~consistory_ray.consistory.models.vaes`.
        loras: fused into the weights, each as strong as it says.
        embeddings: words that both text encoders are taught.

    Returns:
        A pipeline of diffusers on the CPU, and the model's default settings.

    Raises:
        InputError: the arguments have the wrong kinds.
        CheckpointError: something of it cannot be found, loaded or used. What configurations and headers tell is
            refused before any weights are read.
    """
    check_origin(model, variant, revision)
    files, words = read_loras(listed_loras(loras)), read_embeddings(listed_embeddings(embeddings))
    if files or words or vae is not None:
        _check_before_loading(published_configs(model, config, PARTS, revision), files, words, vae)
    pipe, settings = load_checkpoint(model, dtype, config, tell, variant=variant, revision=revision)
    if vae is not None:
        pipe.register_modules(vae=load_vae(vae, pipe, dtype))
    if files or words:
        before = model_fingerprint(pipe)
        fuse_loras(files, pipe)
        if words:
            add_embeddings(words, pipe)
        added = [file.identity for file in files if file.lora.weight] + [file.identity for file in words]
        remember(pipe, before, added)
    return pipe, settings


def _check_before_loading(
    configs: Sequence[Mapping[str, Any] | None],
    files: Sequence[LoRAFile],
    words: Sequence[EmbeddingFile],
    vae: str | Path | None,
) -> None:
    unet, first, second = configs
    if vae is not None:
        check_vae(vae, unet)
    if files:
        refuse_misfits(files, empty_networks(dict(zip(PARTS, configs, strict=True))))
    widths = [None if each is None else int(each.get("hidden_size", 0)) or None for each in (first, second)]
    refuse_wrong_widths(words, {"text_encoder": widths[0], "text_encoder_2": widths[1]})
