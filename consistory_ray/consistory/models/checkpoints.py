"""Where models come from: the bundled miniature, a hub id, a folder, or a single safetensors file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from consistory_ray.consistory.models.component_files import DTYPE_ARGUMENT, load_networks, refuse_unloaded
from consistory_ray.consistory.models.model_checks import check_folder, check_pipeline, read_config
from consistory_ray.consistory.models.single_file import own_scheduler, read_single_file
from consistory_ray.consistory.models.split_unet import unet_layers
from consistory_ray.errors import CheckpointError, InputError, Problem
from consistory_ray.settings import BUNDLED_MODEL, MethodSettings, model_defaults, model_path

_PIPELINE: Any = diffusers.StableDiffusionXLPipeline  # untyped itself
_LIBRARIES = ("diffusers", "transformers")
_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
_OTHER_FORMATS = (".gguf", ".onnx", ".msgpack", ".h5", ".sft", ".zip", ".tar", ".gz")
_CONFIGURATIONS = (
    "unet/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "scheduler/scheduler_config.json",
)
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def load_checkpoint(
    model: str | Path,
    dtype: torch.dtype,
    config: str | Path | None = None,
    tell: Callable[[str], object] = str,
    *,
    variant: str | None = None,
    revision: str | None = None,
) -> tuple[Any, MethodSettings]:
    """Load a model of the SDXL architecture and its default settings.

    Only safetensors weights are read, never pickles, and no code that comes with a model is ever run. What can be told
    from configurations or from a file's header is refused before any weights are read or fetched. For float16 the
    files of the ``fp16`` variant are taken where there are some, which are half as large; others only where there are
    no plain ones. A single file with the marker keys ``v_pred`` and ``ztsnr``, or with the metadata
    ``modelspec.prediction_type``, is sampled accordingly.

    Args:
        model: ``"miniature"`` (bundled), a folder in diffusers' layout, a ``.safetensors`` file in the original layout,
            or a Hugging Face hub id.
        dtype: of the weights.
        config: for a single file, the folder or hub id with the configurations and tokenizers that such a file lacks.
            Without it diffusers looks them up on the hub, so it must be a local folder when offline.
        tell: is told what somebody should know about the model, in whole sentences.
        variant: which files of a folder or of the hub to take, such as ``"fp16"``, whatever the dtype; the UNet must
            have such files, other parts without them are taken as ever.
        revision: of a model on the hub: a branch, a tag or a commit.

    Raises:
        CheckpointError: the model cannot be found, loaded or used.
    """
    name = check_origin(model, variant, revision)
    single = name.lower().endswith(".safetensors")
    if config is not None and not single:
        fix = "leave it out: only a single .safetensors file needs one"
        raise CheckpointError("the model brings its own configurations", [Problem("config", str(config), fix)])
    notices: list[str] = []
    try:
        settings = model_defaults(name)
        if name == BUNDLED_MODEL:
            with resources.as_file(resources.files("consistory_ray.miniature").joinpath("weights")) as folder:
                pipe, notices = _from_folder(folder, dtype, variant)
        elif single:
            pipe = _from_single_file(Path(name), dtype, config)
        elif Path(name).is_dir():
            pipe, notices = _from_folder(Path(name), dtype, variant)
        else:
            pipe, notices = _from_folder(_fetched(name, dtype, variant, revision), dtype, variant)
        refuse_unloaded(pipe, name)
        check_architecture(pipe)
    except InputError:
        raise
    except Exception as error:  # diffusers, transformers and the hub raise all kinds: none of them is a bug here
        fix = "give 'miniature', a folder with model_index.json and safetensors weights, a .safetensors file"
        fix += " (offline with config=a folder of its configurations) or a hub id that is reachable or cached"
        reason = f"the model could not be loaded: {type(error).__name__}: {error}"
        raise CheckpointError(reason, [Problem("model", name, fix)]) from error
    for notice in notices:
        tell(notice)
    return pipe, settings


def check_origin(model: str | Path, variant: str | None, revision: str | None) -> str:
    """Where a model is, as :func:`model_location` says, if ``variant`` and ``revision`` can be chosen there.

    Raises:
        CheckpointError: they cannot, or the model is nowhere.
    """
    name = model_location("model", model)
    single = name.lower().endswith(".safetensors")
    problems = []
    if variant is not None and (single or not re.fullmatch(r"[A-Za-z]\w*", variant)):
        fix = "leave it out: a single file has no variants" if single else 'give a word such as "fp16"'
        problems.append(Problem("variant", repr(variant), fix))
    if revision is not None and (name == BUNDLED_MODEL or os.path.exists(name)):
        fix = "leave it out: only models on the hub have revisions, and this one is on this machine"
        problems.append(Problem("revision", repr(revision), fix))
    elif revision is not None and not revision.strip():
        problems.append(Problem("revision", repr(revision), "give a branch, a tag or a commit"))
    if problems:
        raise CheckpointError("the model cannot be had this way", problems)
    return name


def published_configs(
    model: str | Path,
    config: str | Path | None = None,
    parts: Sequence[str] = ("unet", "vae"),
    revision: str | None = None,
) -> tuple[Mapping[str, Any] | None, ...]:
    """The configurations of parts of a model that is not loaded; None where they cannot be told.

    Args:
        model, config, revision: as for :func:`load_checkpoint`. Of a single file nothing is known but what a local
            ``config`` says.
        parts: by their names in a pipeline.

    Raises:
        CheckpointError: the model is nowhere.
    """
    name = model_location("model", model)
    if name.lower().endswith(".safetensors"):
        if config is None or not Path(config).is_dir():
            return (None,) * len(parts)
        name = str(config)
    if name == BUNDLED_MODEL:
        with resources.as_file(resources.files("consistory_ray.miniature").joinpath("weights")) as folder:
            return tuple(read_config(folder / part / "config.json") for part in parts)
    found: list[Mapping[str, Any] | None] = []
    for part in parts:
        try:
            local = Path(name)
            if not local.is_dir():
                local = Path(hf_hub_download(name, f"{part}/config.json", revision=revision)).parents[1]
        except Exception:  # not there, or not cached: told when it is loaded
            found.append(None)
            continue
        found.append(read_config(local / part / "config.json"))
    return tuple(found)


def model_location(where: str, given: str | Path) -> str:
    """What a model's name stands for, as far as it can be told without a network: a path that exists, or a hub id.

    Args:
        where: the field that it was given in, for messages.
        given: as somebody wrote it: ``~`` and ``file://`` are understood.

    Raises:
        CheckpointError: it is a path of nothing, a URL, or a file in a format that is not read.
    """
    name = model_path(str(given))
    if "://" in name:
        fix = "copy it to this machine and give the folder or file"
        fix = "give the hub id, as in owner/name" if "huggingface.co/" in name else fix
        raise CheckpointError("models are not read from URLs", [Problem(where, name, fix)])
    if name.lower().endswith(_PICKLES):
        fix = "convert it to safetensors: pickled weights can run code and are never loaded"
        raise CheckpointError("the checkpoint is a pickle", [Problem(where, name, fix)])
    if name.lower().endswith(_OTHER_FORMATS):
        fix = "give a .safetensors file, a folder in diffusers' layout or a hub id"
        raise CheckpointError("the checkpoint has a format that is not read", [Problem(where, name, fix)])
    if name == BUNDLED_MODEL or os.path.isdir(name):
        return name
    if name.lower().endswith(".safetensors"):
        if not os.path.isfile(name):
            raise CheckpointError("the checkpoint is missing", [Problem(where, name, "give an existing file")])
        return name
    if os.path.exists(name):
        fix = "give a .safetensors file, a folder in diffusers' layout or a hub id"
        raise CheckpointError("the checkpoint has a format that is not read", [Problem(where, name, fix)])
    is_path = name.startswith((".", "/", "\\")) or name.endswith("/") or "\\" in name or name.count("/") > 1
    if not is_path and not _WINDOWS_DRIVE.match(name):
        try:
            validate_repo_id(name)
            return name
        except HFValidationError:
            pass
    fix = "give an existing folder or .safetensors file, 'miniature', or a hub id such as owner/name"
    raise CheckpointError("the model could not be loaded: there is no such folder", [Problem(where, name, fix)])


def _from_folder(folder: Path, dtype: torch.dtype, variant: str | None = None) -> tuple[Any, list[str]]:
    index = read_config(folder / "model_index.json")
    if index is None:
        fix = "give a folder in diffusers' layout, with a model_index.json"
        raise CheckpointError("the folder is not a model", [Problem("model", str(folder), fix)])
    _refuse_code(index)
    check_folder(folder)
    networks, notices = load_networks(folder, dict(index), dtype, variant)
    given: dict[str, Any] = {DTYPE_ARGUMENT: dtype, **networks}
    return _PIPELINE.from_pretrained(folder, use_safetensors=True, local_files_only=True, **given), notices


def _from_single_file(path: Path, dtype: torch.dtype, config: str | Path | None) -> Any:
    found = read_single_file(path)
    given: dict[str, Any] = {DTYPE_ARGUMENT: dtype}
    if config is not None:
        place = model_location("config", config)
        if not Path(place).is_dir():
            _check_hub_model(place)
        else:
            index = read_config(Path(place) / "model_index.json")
            if index is None:
                fix = "give a folder in diffusers' layout, with a model_index.json"
                raise CheckpointError("there are no configurations", [Problem("config", place, fix)])
            _refuse_code(index)
            check_folder(Path(place))
        given["config"] = place
    pipe = _PIPELINE.from_single_file(str(path), **given)
    pipe.scheduler = own_scheduler(pipe.scheduler, found)
    return pipe


def _fetched(name: str, dtype: torch.dtype, variant: str | None, revision: str | None) -> Path:
    """The folder that a hub model was downloaded to, or had been before; without files that the dtype does not need."""
    _check_hub_model(name, revision)
    options = {"use_safetensors": True, "revision": revision}
    if variant is not None:
        return Path(_PIPELINE.download(name, variant=variant, **options))
    first, second = ("fp16", None) if dtype == torch.float16 else (None, "fp16")
    try:
        return Path(_PIPELINE.download(name, variant=first, **options))
    except Exception as error:
        try:
            return Path(_PIPELINE.download(name, variant=second, **options))
        except Exception:
            raise error from None


def _check_hub_model(name: str, revision: str | None = None) -> None:
    """Refuse a hub model by its configurations, which are fetched alone, before anything that is large."""
    index = Path(hf_hub_download(name, "model_index.json", revision=revision))
    _refuse_code(read_config(index) or {})
    for file in _CONFIGURATIONS:
        try:
            hf_hub_download(name, file, revision=revision)
        except Exception:  # not there, or not cached: what is needed of it will be missed later
            continue
    check_folder(index.parent)


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
    refuse_compiled(pipe.unet)
    check_pipeline(pipe)
    unet_layers(pipe.unet)


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
