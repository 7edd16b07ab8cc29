"""Whether what a job loads with its model is there and can be used, told before anything is loaded. Pure: no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from consistory_ray.adapters import Embedding, LoRA, check_embedding_file, check_lora_file, file_digest
from consistory_ray.errors import CheckpointError, InputError, Problem
from consistory_ray.guards.problems import shown
from consistory_ray.jobs.adapter_files import check_adapter_allowed
from consistory_ray.jobs.adapter_names import is_bundled_name
from consistory_ray.jobs.model_names import is_hub_id
from consistory_ray.settings import BUNDLED_MODEL, model_path

if TYPE_CHECKING:
    from consistory_ray.jobs.job import RenderJob


def check_adapters(job: RenderJob) -> None:
    """Refuse LoRAs, embeddings and a VAE that cannot be used, as far as files tell.

    Raises:
        CheckpointError: naming each one that is not there, is no safetensors file of its kind, is for another family
            of models, or is another file than the job says.
        InputError: one lies in a place that is not allowed.
    """
    problems: list[Problem] = []
    for index, lora in enumerate(job.loras):
        where = f"loras[{index}]"
        check_adapter_allowed(lora.path, f"{where}.path")
        problems += _of_another_model(where, lora.path, job.model)
        checked = LoRA(lora.path, lora.weight, lora.name)
        problems += _checked(lambda: check_lora_file(where, checked)) or _changed(where, lora.path, lora.sha256)
    for index, one in enumerate(job.embeddings):
        where = f"embeddings[{index}]"
        check_adapter_allowed(one.path, f"{where}.path")
        taught = Embedding(one.path, one.called)
        problems += _checked(lambda: check_embedding_file(where, taught)) or _changed(where, one.path, one.sha256)
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


def _of_another_model(where: str, path: str, model: str) -> list[Problem]:
    if is_bundled_name(path) and model != BUNDLED_MODEL:
        fix = f'leave it out, or set model: {BUNDLED_MODEL}: it was made for the bundled model'
        return [Problem(f"{where}.path", path, fix)]
    return []


def _changed(where: str, path: str, sha256: str | None) -> list[Problem]:
    """Whether a file is another one than the job, or an earlier run of it, has met."""
    found = None if sha256 is None else file_digest(path)
    if found in (None, sha256):
        return []
    fix = f"put the file with SHA-256 {sha256} back, or leave sha256 out: the file there is another one by now"
    return [Problem(f"{where}.path", path, fix)]


def _vae_problems(vae: str) -> list[Problem]:
    place = model_path(vae)
    if vae == BUNDLED_MODEL or is_hub_id(vae) and not os.path.exists(place):
        return []
    if not os.path.exists(place):
        fix = "there is no such file or folder here, check the path (it is relative to the job file); or give a hub id"
        return [Problem("vae", shown(vae).strip('"'), fix)]
    return []
