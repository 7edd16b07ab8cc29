"""Whether what a job loads with its model is there and can be used, told before anything is loaded. Pure: no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from consistory_ray.adapters import Embedding, LoRA, check_embedding_file, check_lora_file, file_digest
from consistory_ray.errors import CheckpointError, InputError, Problem
from consistory_ray.guards.problems import shown
from consistory_ray.jobs.adapter_files import check_adapter_allowed
from consistory_ray.jobs.model_names import is_hub_id
from consistory_ray.plan.model_files import model_config
from consistory_ray.settings import model_path

if TYPE_CHECKING:
    from consistory_ray.jobs.job import RenderJob

_SDXL_WIDTH = 2048


def check_adapters(job: RenderJob) -> None:
    """Refuse LoRAs, embeddings and a VAE that cannot be used, as far as files tell.

    Raises:
        CheckpointError: naming each one that is not there, is no safetensors file of its kind, is for another family
            of models, or is another file than the job says.
        InputError: one lies in a place that is not allowed.
    """
    problems: list[Problem] = []
    width = _text_width(job)
    for index, lora in enumerate(job.loras):
        where = f"loras[{index}]"
        check_adapter_allowed(lora.path, f"{where}.path")
        checked = LoRA(lora.path, lora.weight, lora.name)
        problems += _checked(partial(check_lora_file, where, checked, width)) or _changed(where, lora.path, lora.sha256)
    for index, one in enumerate(job.embeddings):
        where = f"embeddings[{index}]"
        check_adapter_allowed(one.path, f"{where}.path")
        taught = Embedding(one.path, one.called)
        problems += _checked(partial(check_embedding_file, where, taught)) or _changed(where, one.path, one.sha256)
    if job.vae is not None:
        check_adapter_allowed(job.vae, "vae")
        problems += _vae_problems(job.vae)
    if problems:
        raise CheckpointError("what the job loads with its model cannot be used", problems)


def _checked(check: Callable[[], None]) -> list[Problem]:
    try:
        check()
    except InputError as error:
        return list(error.problems) or [Problem("", "", error.message)]
    return []


def _text_width(job: RenderJob) -> int | None:
    """Of the texts that the model reads, as its configuration says; SDXL's for what only the hub knows."""
    unet = model_config(job.model, "unet") or (model_config(job.config, "unet") if job.config else None)
    width = (unet or {}).get("cross_attention_dim")
    return width if isinstance(width, int) else _SDXL_WIDTH if unet is None and is_hub_id(job.model) else None


def _changed(where: str, path: str, sha256: str | None) -> list[Problem]:
    """Whether a file is another one than the job, or an earlier run of it, has met."""
    found = None if sha256 is None else file_digest(path)
    if found in (None, sha256):
        return []
    fix = f"put the file with SHA-256 {sha256} back, or leave sha256 out: the file there is another one by now"
    return [Problem(f"{where}.path", path, fix)]


def _vae_problems(vae: str) -> list[Problem]:
    place = model_path(vae)
    if not os.path.exists(place) and not is_hub_id(vae):
        fix = "there is no such file or folder here, check the path (it is relative to the job file); or give a hub id"
        return [Problem("vae", shown(vae).strip('"'), fix)]
    return []
