"""Where models come from: the bundled miniature, a hub id, a folder, or a single safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import hf_hub_download

from consistory_ray.consistory.unet import unet_layers
from consistory_ray.errors import CheckpointError, Problem
from consistory_ray.settings import BUNDLED_MODEL, MethodSettings, model_defaults

_PIPELINE: Any = diffusers.StableDiffusionXLPipeline  # untyped itself
_LIBRARIES = ("diffusers", "transformers")
_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


def load_checkpoint(
    model: str | Path, torch_dtype: torch.dtype, config: str | Path | None = None
) -> tuple[Any, MethodSettings]:
    """Load a model of the SDXL architecture and its default settings.

    Only safetensors weights are read, never pickles, and no code that comes with a model is ever run.

    Args:
        model: ``"miniature"`` (bundled), a folder in diffusers' layout, a ``.safetensors`` file in the original layout,
            or a Hugging Face hub id.
        torch_dtype: of the weights.
        config: for a single file, the folder or hub id with the configurations and tokenizers that such a file lacks.
            Without it diffusers looks them up on the hub, so it must be a local folder when offline.

    Raises:
        CheckpointError: the model cannot be found, loaded or used.
    """
    name = str(model)
    if name.endswith(_PICKLES):
        fix = "convert it to safetensors: pickled weights can run code and are never loaded"
        raise CheckpointError("the checkpoint is a pickle", [Problem("model", name, fix)])
    settings = model_defaults(name)
    try:
        if name == BUNDLED_MODEL:
            with resources.as_file(resources.files("consistory_ray.miniature").joinpath("weights")) as folder:
                pipe = _from_folder(folder, torch_dtype)
        elif name.endswith(".safetensors"):
            if not Path(name).is_file():
                raise CheckpointError("the checkpoint is missing", [Problem("model", name, "give an existing file")])
            given = {} if config is None else {"config": str(config)}
            pipe = _PIPELINE.from_single_file(name, torch_dtype=torch_dtype, **given)
        elif Path(name).is_dir():
            pipe = _from_folder(Path(name), torch_dtype)
        else:
            index = hf_hub_download(name, "model_index.json")  # alone, before anything else is fetched
            _refuse_code(json.loads(Path(index).read_text()))
            pipe = _PIPELINE.from_pretrained(name, torch_dtype=torch_dtype, use_safetensors=True)
    except CheckpointError:
        raise
    except Exception as error:  # diffusers, transformers and the hub raise all kinds: none of them is a bug here
        fix = "give 'miniature', a folder with model_index.json and safetensors weights, a .safetensors file"
        fix += " (offline with config=a folder of its configurations) or a hub id that is reachable or cached"
        reason = f"the model could not be loaded: {type(error).__name__}: {error}"
        raise CheckpointError(reason, [Problem("model", name, fix)]) from error
    check_architecture(pipe)
    return pipe, settings


def _from_folder(folder: Path, torch_dtype: torch.dtype) -> Any:
    if not (folder / "model_index.json").is_file():
        fix = "give a folder in diffusers' layout, with a model_index.json"
        raise CheckpointError("the folder is not a model", [Problem("model", str(folder), fix)])
    _refuse_code(json.loads((folder / "model_index.json").read_text()))
    return _PIPELINE.from_pretrained(folder, torch_dtype=torch_dtype, use_safetensors=True, local_files_only=True)


def _refuse_code(index: Mapping[str, Any]) -> None:
    """Refuse a model_index.json whose components are classes of other libraries: such a name can lead to code.

    Newer versions of diffusers ask for ``trust_remote_code`` before they run one; that is not left to them.
    """
    classes = {name: value for name, value in index.items() if isinstance(value, list)}
    foreign = {
        name: value for name, value in classes.items() if value[:1] not in ([None], *([lib] for lib in _LIBRARIES))
    }
    if foreign:
        fix = f"use a model whose components are classes of {' and '.join(_LIBRARIES)}"
        problems = [Problem(f"model_index.json: {name}", str(value), fix) for name, value in foreign.items()]
        raise CheckpointError("the model brings code of its own, which is never run", problems)


def check_architecture(pipe: Any) -> None:
    """Refuse models that this method's implementation does not cover.

    Raises:
        CheckpointError: naming what is different.
    """
    if not hasattr(pipe, "unet") or not hasattr(pipe, "tokenizer_2"):
        fix = "give a diffusers StableDiffusionXLPipeline"
        raise CheckpointError("this is not an SDXL pipeline", [Problem("pipe", type(pipe).__name__, fix)])
    unet = pipe.unet
    refuse_compiled(unet)
    checks = (
        ("unet.config.addition_embed_type", unet.config.addition_embed_type, "text_time"),
        ("unet.config.class_embed_type", unet.config.class_embed_type, None),
        ("unet.config.encoder_hid_dim_type", unet.config.encoder_hid_dim_type, None),
        ("unet.config.in_channels", unet.config.in_channels, unet.config.out_channels),
        ("requires_aesthetics_score", pipe.config.get("requires_aesthetics_score", False), False),
        ("unet offloading hook", hasattr(unet, "_hf_hook"), False),
    )
    problems = [Problem(name, repr(value), f"must be {wanted!r}") for name, value, wanted in checks if value != wanted]
    if problems:
        raise CheckpointError("the model is not a text-to-image model of the SDXL architecture", problems)
    unet_layers(unet)


def refuse_compiled(unet: Any) -> None:
    """Refuse a UNet that ``torch.compile`` has wrapped, as a whole or in parts: the method calls its parts one by one.

    Raises:
        CheckpointError: naming the wrapped part.
    """
    wrapped = [name for name, module in unet.named_modules() if hasattr(module, "_orig_mod")]
    if wrapped:
        part = f"unet.{wrapped[0]}".rstrip(".")
        fix = f"put the original back, pipe.{part} = pipe.{part}._orig_mod"
        raise CheckpointError("the UNet was compiled with torch.compile", [Problem(part, "torch.compile", fix)])
