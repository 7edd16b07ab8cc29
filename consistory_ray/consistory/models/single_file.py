"""What a single safetensors file says about its model before any weights are read: its keys, shapes and metadata.

Such a file has no configurations. What cannot be seen from the shapes is written down as marker keys (``v_pred``,
``ztsnr``, ``edm_vpred.sigma_max``) or as metadata (``modelspec.prediction_type`` or ``predict_key``); configurations
that diffusers chooses by the architecture know nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import SafetensorError, safe_open

from consistory_ray.errors import CheckpointError, Problem

_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
_SIZES = "model.diffusion_model.label_emb.0.0.weight"
_GUIDANCE = "model.diffusion_model.time_embed.cond_proj.weight"
_FIRST_ENCODER = "conditioner.embedders.0.transformer."
_SECOND_ENCODER = "conditioner.embedders.1.model."
_PARTS = {
    "the UNet": "model.diffusion_model.",
    "the VAE": "first_stage_model.",
    "the first text encoder": _FIRST_ENCODER,
    "the second text encoder": _SECOND_ENCODER,
}
_OTHERS = {
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": "Flux",
    "double_blocks.0.img_attn.qkv.weight": "Flux",
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": "Stable Diffusion 1",
    "cond_stage_model.model.positional_embedding": "Stable Diffusion 2",
    "down_blocks.0.resnets.0.conv1.weight": "a single network in diffusers' layout",
}
_EDM = ("edm_vpred.sigma_max", "edm_mean", "edm_std")
_PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key")
_V = ("v", "v_prediction", "v-prediction", "vpred", "v_pred", "velocity")
_CHANNELS = {9: "an inpainting model", 8: "an instruct-pix2pix model"}
_FIX = "give a text-to-image model of the SDXL family"


@dataclass(frozen=True)
class SingleFile:
    """What was found.

    Attributes:
        v_prediction: whether the file says that the network predicts v rather than the noise.
        zero_snr: whether it was trained with no signal at the last timestep.
    """

    v_prediction: bool
    zero_snr: bool


def read_single_file(path: Path) -> SingleFile:
    """Look at a file's header, and refuse what is no complete text-to-image model of the SDXL family.

    Raises:
        CheckpointError: naming what was found and what to do.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            keys = set(file.keys())
            shapes = {key: list(file.get_slice(key).get_shape()) for key in (_FIRST, _SIZES) if key in keys}
    except (SafetensorError, OSError, ValueError) as error:
        fix = f"give a safetensors file, downloaded whole ({error})"
        raise CheckpointError(
            "the model could not be loaded: this is no safetensors file", [Problem("model", str(path), fix)]
        ) from error
    problems = _problems(path, keys, shapes, metadata)
    if problems:
        raise CheckpointError("the file is not a text-to-image model of the SDXL architecture", problems)
    return SingleFile("v_pred" in keys or _told(metadata) in _V, "ztsnr" in keys)


def _problems(path: Path, keys: set[str], shapes: Mapping[str, Any], metadata: Mapping[str, str]) -> list[Problem]:
    where = str(path)
    told = _told(metadata)
    architecture = metadata.get("modelspec.architecture", "")
    if any(marker in keys for marker in _EDM):
        fix = f"EDM models (Playground v2.5, CosXL) do not work yet: {_FIX}"
        return [Problem(where, ", ".join(sorted(keys & set(_EDM))), fix)]
    if told not in (*_V, "", "eps", "epsilon"):
        return [Problem(f"{where}: modelspec.prediction_type", told, f"only epsilon and v work: {_FIX}")]
    for key, name in _OTHERS.items():
        if key in keys:
            return [Problem(where, name, _FIX)]
    if _FIRST not in keys and any("lora" in key.lower() for key in keys):
        return [Problem(where, f"an adapter {architecture}".strip(), f"load it into a model: {_FIX}")]
    if (
        _SIZES in keys
        and _FIRST_ENCODER not in {key[: len(_FIRST_ENCODER)] for key in keys}
        and ("conditioner.embedders.0.model.positional_embedding" in keys)
    ):
        return [Problem(where, "a refiner", f"it adds details to finished pictures: {_FIX}")]
    problems = []
    channels = shapes[_FIRST][1] if _FIRST in shapes else 4
    if channels != 4:
        kind = _CHANNELS.get(channels, "a model of another kind")
        problems.append(Problem(f"{where}: {_FIRST}", f"{channels} channels", f"this is {kind}: {_FIX}"))
    if _GUIDANCE in keys:
        problems.append(
            Problem(f"{where}: {_GUIDANCE}", "", "this model takes the guidance as an input: give its folder or hub id")
        )
    for part, prefix in _PARTS.items():
        if not any(key.startswith(prefix) for key in keys):
            fix = f"it lacks {part}: give a file with all parts of the model, or a folder in diffusers' layout"
            problems.append(Problem(f"{where}: {prefix}*", "missing", fix))
    return problems


def _told(metadata: Mapping[str, str]) -> str:
    """The kind of prediction that the metadata names; programs write it under different keys."""
    return next((str(metadata[key]).strip().lower() for key in _PREDICTION_KEYS if metadata.get(key)), "")


def own_scheduler(scheduler: Any, found: SingleFile) -> Any:
    """The scheduler that a file's markers ask for; the one that was chosen for it where there are none."""
    if not found.v_prediction and not found.zero_snr:
        return scheduler
    changes: dict[str, Any] = {"prediction_type": "v_prediction"} if found.v_prediction else {}
    if found.zero_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return DDIMScheduler.from_config(scheduler.config, **_UNSET, **changes)


_UNSET = {"clip_sample": False, "set_alpha_to_one": False}
