"""Where ControlNets come from: the bundled one, hub ids, folders, single safetensors files, or already loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import nn

from consistory_ray.consistory.models.checkpoints import model_location, published_configs
from consistory_ray.consistory.models.component_files import DTYPE_ARGUMENT, chosen_variant, variants
from consistory_ray.consistory.models.controlnet_checks import (
    config_of,
    controlnet_class,
    controlnet_problems,
    refuse_unfit,
)
from consistory_ray.consistory.models.model_checks import Config, read_config
from consistory_ray.errors import CheckpointError, InputError, Problem
from consistory_ray.settings import BUNDLED_MODEL

ControlNet: TypeAlias = Any
"""A ``ControlNetModel`` or ``ControlNetUnionModel`` of diffusers."""


def listed(controlnets: Any) -> list[str | Path | ControlNet]:
    """What somebody gave, one by one.

    Raises:
        InputError: it is no list of names or loaded ControlNets.
    """
    if isinstance(controlnets, (str, Path, nn.Module)):
        return [controlnets]
    given = list(controlnets or ())
    fix = "give 'miniature', a hub id, a folder, a .safetensors file or a loaded ControlNet"
    problems = [
        Problem(f"controlnets[{number}]", type(each).__name__, fix)
        for number, each in enumerate(given)
        if not isinstance(each, (str, Path, nn.Module))
    ]
    if problems:
        raise InputError("the ControlNets cannot be used", problems)
    return given


def check_before_loading(
    controlnets: Sequence[str | Path | ControlNet], model: str | Path, revision: str | None = None
) -> None:
    """Refuse what configurations tell, before a model's weights are read or fetched.

    Args:
        controlnets, model, revision: as for :meth:`ConsiStoryPipeline.from_pretrained`.

    Raises:
        CheckpointError: a ControlNet is not there, or does not fit the model.
    """
    if not controlnets:
        return
    unet, vae = published_configs(model, revision=revision)
    problems = []
    for number, given in enumerate(controlnets):
        where = f"controlnets[{number}]"
        config = _config(where, given, unet) if isinstance(given, (str, Path)) else _config_of_loaded(given)
        if config is not None and unet is not None:
            problems += controlnet_problems(where, config, unet, vae)
    refuse_unfit(problems)


def check_controlnets(nets: Sequence[ControlNet], pipe: Any) -> None:
    """Refuse loaded ControlNets that do not fit a loaded pipeline. Reads configurations only; quick.

    Raises:
        CheckpointError: naming field, value and fix.
    """
    problems = []
    for number, net in enumerate(nets):
        where = f"controlnets[{number}]"
        problems += controlnet_problems(where, _config_of_loaded(net), pipe.unet.config, pipe.vae.config)
    refuse_unfit(problems)


def _config_of_loaded(net: ControlNet) -> Config:
    return {**getattr(net, "config", {}), "_class_name": type(getattr(net, "_orig_mod", net)).__name__}


def load_controlnets(controlnets: Sequence[str | Path | ControlNet], pipe: Any) -> list[ControlNet]:
    """Load what is not loaded yet, for a loaded pipeline, in the dtype of its UNet.

    Only safetensors weights are read, never pickles. The files of the ``fp16`` variant are taken as for models.

    Raises:
        CheckpointError: one is not there, cannot be loaded or does not fit.
    """
    nets = [
        given if isinstance(given, nn.Module) else _loaded(f"controlnets[{number}]", given, pipe)
        for number, given in enumerate(controlnets)
    ]
    check_controlnets(nets, pipe)
    return nets


def _config(where: str, given: str | Path, unet: Config | None) -> Config | None:
    name = model_location(where, given)
    config = config_of(where, name, unet)
    if config is not None or name == BUNDLED_MODEL or Path(name).exists():
        return config
    try:
        return read_config(Path(hf_hub_download(name, "config.json")))
    except CheckpointError:
        raise
    except Exception as error:  # the hub raises all kinds: none of them is a bug here
        raise _unloadable(where, name, error) from error


def _loaded(where: str, given: str | Path, pipe: Any) -> ControlNet:
    dtype: torch.dtype = pipe.unet.dtype
    name = model_location(where, given)
    config = _config(where, given, pipe.unet.config)
    if config is not None:
        refuse_unfit(controlnet_problems(where, config, pipe.unet.config, pipe.vae.config))
    loader: Any = getattr(diffusers, controlnet_class(config or {}) or "")
    try:
        if name == BUNDLED_MODEL:
            with resources.as_file(resources.files("consistory_ray.miniature").joinpath("controlnet")) as folder:
                return _from_folder(where, loader, folder, dtype)
        if Path(name).is_file():
            net = loader.from_config(dict(config or {}))
            net.load_state_dict(load_file(name))
            return net.to(dtype).eval()
        if Path(name).is_dir():
            return _from_folder(where, loader, Path(name), dtype)
        return _from_hub(where, loader, name, dtype)
    except InputError:
        raise
    except Exception as error:  # diffusers, torch and the hub raise all kinds
        raise _unloadable(where, name, error) from error


def _from_folder(where: str, loader: Any, folder: Path, dtype: torch.dtype) -> ControlNet:
    variant = chosen_variant(variants(folder), dtype)
    return _complete(where, loader, folder, dtype, variant=variant, local_files_only=True)


def _from_hub(where: str, loader: Any, name: str, dtype: torch.dtype) -> ControlNet:
    first, second = ("fp16", None) if dtype == torch.float16 else (None, "fp16")
    try:
        return _complete(where, loader, name, dtype, variant=first)
    except Exception as error:
        try:
            return _complete(where, loader, name, dtype, variant=second)
        except Exception:
            raise error from None


def _complete(where: str, loader: Any, place: Any, dtype: torch.dtype, **options: Any) -> ControlNet:
    options |= {DTYPE_ARGUMENT: dtype, "use_safetensors": True, "output_loading_info": True}
    net, info = loader.from_pretrained(place, **options)
    if missing := sorted(info.get("missing_keys") or ()):
        fix = f"download it again, or take another one: {len(missing)} weights are missing in {place}"
        raise CheckpointError("a ControlNet is incomplete", [Problem(where, ", ".join(missing[:5]), fix)])
    return net


def _unloadable(where: str, name: str, error: Exception) -> CheckpointError:
    fix = "give 'miniature', a folder with config.json and safetensors weights, a .safetensors file or a hub id that is"
    fix += " reachable or cached"
    reason = f"a ControlNet could not be loaded: {type(error).__name__}: {error}"
    return CheckpointError(reason, [Problem(where, name, fix)])
