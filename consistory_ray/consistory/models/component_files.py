"""The networks of a folder in diffusers' layout, each from the files that suit the dtype, and every one complete."""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path
from typing import Any

import diffusers
import torch

from consistory_ray.errors import CheckpointError, Problem

_log = logging.getLogger(__name__)

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")

DTYPE_ARGUMENT = "torch_dtype" if re.match(r"0\.([0-3]\d|4[01])\.", diffusers.__version__) else "dtype"
"""What diffusers calls the dtype of weights: the older name is deprecated, older versions know no other."""

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.([A-Za-z][\w-]*?))?(?:-\d{5}-of-\d{5})?(?:\.([A-Za-z]\w*))?\.safetensors"
)
_NAMED = 5


def variants(folder: Path) -> set[str | None]:
    """Which kinds of weight files lie in a network's folder: None for plain ones, ``"fp16"`` and others."""
    matches = [_WEIGHTS.fullmatch(file.name) for file in folder.iterdir()] if folder.is_dir() else []
    return {match.group(1) or match.group(2) for match in matches if match is not None}


def chosen_variant(found: set[str | None], dtype: torch.dtype) -> str | None:
    """The files to read for a dtype: half the bytes where float16 is wanted, else the exact ones; None for plain."""
    wanted: tuple[str | None, ...] = (
        ("fp16", None, "bf16") if dtype == torch.float16 else (None, "fp32", "bf16", "fp16")
    )
    for name in (*wanted, *sorted(name for name in found if name is not None)):
        if name in found:
            return name
    return None


def load_networks(
    folder: Path, index: dict[str, Any], dtype: torch.dtype, wanted: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Load every network of a model.

    Args:
        folder: with a folder for each.
        index: the model_index.json.
        dtype: of the weights.
        wanted: the variant to take where there is one; the UNet must have it. What suits the dtype when None.

    Returns:
        The networks by name, and what somebody should know about them.

    Raises:
        CheckpointError: weights are missing, or the UNet has none of the variant.
    """
    _refuse_variant(wanted, variants(folder / "unet"))
    networks, rounded = {}, []
    for name in NETWORKS:
        library, kind = index.get(name) or (None, None)
        if library is None or kind is None:
            continue
        found = variants(folder / name)
        variant = wanted if wanted is not None and wanted in found else chosen_variant(found, dtype)
        _log.info("%s: reading the %s files in %s", name, variant or "plain", folder / name)
        loader: Any = getattr(importlib.import_module(library), kind)
        argument = DTYPE_ARGUMENT if library == "diffusers" else "dtype"
        network, info = loader.from_pretrained(
            folder / name,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{argument: dtype},
        )
        _refuse_incomplete(name, folder / name, sorted(info.get("missing_keys") or ()))
        networks[name] = network
        if variant in ("fp16", "bf16") and dtype == torch.float32:
            rounded.append(f"{name} ({variant})")
    told = [f"only weights in half precision are there: {', '.join(rounded)}"] if rounded else []
    return networks, told


def _refuse_variant(wanted: str | None, found: set[str | None]) -> None:
    if wanted is not None and wanted not in found:
        there = ", ".join(sorted(name or "plain files, without a variant" for name in found)) or "no weights at all"
        problem = Problem("variant", repr(wanted), f"the UNet has none of this variant, there are {there}")
        raise CheckpointError("the model has no such files", [problem])


def refuse_unloaded(pipe: Any, where: str) -> None:
    """Refuse a pipeline in which some weights were not in the file it was loaded from.

    Raises:
        CheckpointError: naming some of them.
    """
    for name in NETWORKS:
        network = getattr(pipe, name, None)
        if network is not None:
            _refuse_incomplete(name, where, [key for key, weight in network.state_dict().items() if weight.is_meta])


def _refuse_incomplete(name: str, where: object, missing: list[str]) -> None:
    if missing:
        shown = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
        fix = f"download the model again, or take another one: {len(missing)} weights of {name} are missing in {where}"
        raise CheckpointError("the model is incomplete", [Problem(f"{name}", shown, fix)])
