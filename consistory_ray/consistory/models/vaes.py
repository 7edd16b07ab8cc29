"""Another VAE than the model's own, such as one that decodes in half precision."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import hf_hub_download

from consistory_ray.adapters.files import read_header
from consistory_ray.consistory.models.checkpoints import model_location
from consistory_ray.consistory.models.component_files import DTYPE_ARGUMENT, chosen_variant, variants
from consistory_ray.consistory.models.model_checks import read_config
from consistory_ray.errors import CheckpointError, InputError, Problem
from consistory_ray.settings import BUNDLED_MODEL

_AUTOENCODER: Any = diffusers.AutoencoderKL
_WIDTHS = ("decoder.conv_in.weight", "first_stage_model.decoder.conv_in.weight", "vae.decoder.conv_in.weight")
_FIX = "give a folder or hub id of a VAE, or of a model with a folder vae in it, or a .safetensors file"


def check_vae(vae: str | Path, unet: Mapping[str, Any] | None) -> None:
    """Refuse a VAE by its configuration or its file's header, before any weights are read.

    Args:
        vae: a folder, a hub id, or a ``.safetensors`` file.
        unet: the model's UNet configuration, where it is known.

    Raises:
        CheckpointError: it is not there, no VAE, or one of other latents.
    """
    name = _location(vae)
    if Path(name).is_file():
        shapes = read_header("vae", Path(name)).shapes
        found = next((shapes[key][1] for key in _WIDTHS if key in shapes and len(shapes[key]) == 4), None)
        if found is None:
            raise _unfit(name, f"the file has no {_WIDTHS[0]}: {_FIX}", "the file is not a VAE")
    else:
        config = _config(name)[0]
        found = config.get("latent_channels", 4)
    if unet is not None and found != unet.get("in_channels", 4):
        fix = f"it has latents of {found} channels, the model's UNet reads {unet.get('in_channels', 4)}"
        raise _unfit(name, fix, "the VAE does not fit the model")


def load_vae(vae: str | Path, pipe: Any, dtype: torch.dtype) -> Any:
    """Load a VAE for a loaded pipeline.

    Args:
        vae: as for :func:`check_vae`. A single file has no configuration: that of the model's own VAE is taken.
        pipe: the pipeline.
        dtype: of its weights.

    Raises:
        CheckpointError: it cannot be loaded, or does not fit.
    """
    check_vae(vae, pipe.unet.config)
    name = _location(vae)
    options: dict[str, Any] = {DTYPE_ARGUMENT: dtype}
    try:
        if Path(name).is_file():
            with tempfile.TemporaryDirectory() as folder:
                values = {key: value for key, value in pipe.vae.config.items() if not key.startswith("_")}
                text = json.dumps({**values, "_class_name": "AutoencoderKL"})
                (Path(folder) / "config.json").write_text(text, encoding="utf-8")
                loaded = _AUTOENCODER.from_single_file(name, config=folder, **options)
        else:
            folder_of = _folder(name, dtype)
            variant = chosen_variant(variants(folder_of), dtype)
            options |= {"variant": variant, "use_safetensors": True, "local_files_only": True}
            loaded, info = _AUTOENCODER.from_pretrained(folder_of, output_loading_info=True, **options)
            _refuse_incomplete(name, sorted(info.get("missing_keys") or ()))
    except InputError:
        raise
    except NotImplementedError as error:  # torch cannot copy what was never read
        fix = "download it again, or take another one: some of its weights are missing"
        raise _unfit(name, fix, "the VAE is incomplete") from error
    except Exception as error:  # diffusers and the hub raise all kinds: none of them is a bug here
        raise _unfit(name, _FIX, f"the VAE could not be loaded: {type(error).__name__}: {error}") from error
    _refuse_incomplete(name, [key for key, weight in loaded.state_dict().items() if weight.is_meta])
    scales = [2 ** (len(each.config.block_out_channels) - 1) for each in (loaded, pipe.vae)]
    if scales[0] != scales[1]:
        fix = f"it makes latents {scales[0]} times smaller than pictures, the model's own {scales[1]} times"
        raise _unfit(name, fix, "the VAE does not fit the model")
    return loaded


def _location(vae: str | Path) -> str:
    name = model_location("vae", vae)
    if name == BUNDLED_MODEL:
        raise _unfit(name, f"it is the bundled model's own: leave it out, or {_FIX}", "the VAE cannot be used")
    return name


def _config(name: str) -> tuple[Mapping[str, Any], str]:
    """A VAE's configuration, and the subfolder that it was in."""
    for subfolder in ("", "vae/"):
        if Path(name).is_dir():
            found = read_config(Path(name) / f"{subfolder}config.json")
        else:
            try:
                found = read_config(Path(hf_hub_download(name, f"{subfolder}config.json")))
            except CheckpointError:
                raise
            except Exception:  # not there, or neither reachable nor cached
                continue
        if found is not None and str(found.get("_class_name")) == "AutoencoderKL":
            return found, subfolder
    raise _unfit(name, f"there is no config.json of an AutoencoderKL: {_FIX}", "the VAE cannot be found")


def _folder(name: str, dtype: torch.dtype) -> Path:
    subfolder = _config(name)[1]
    if Path(name).is_dir():
        return Path(name) / subfolder
    first = "diffusion_pytorch_model.safetensors"
    second = "diffusion_pytorch_model.fp16.safetensors"
    order = (second, first) if dtype == torch.float16 else (first, second)
    for file in order:
        try:
            return Path(hf_hub_download(name, f"{subfolder}{file}")).parent
        except Exception:  # of the two kinds of files one may lack
            continue
    raise _unfit(name, f"there is no {first}, or the hub is out of reach: {_FIX}", "the VAE cannot be found")


def _refuse_incomplete(name: str, missing: list[str]) -> None:
    if missing:
        fix = f"download it again, or take another one: {len(missing)} weights are missing, such as {missing[0]}"
        raise _unfit(name, fix, "the VAE is incomplete")


def _unfit(name: str, fix: str, reason: str) -> CheckpointError:
    return CheckpointError(reason, [Problem("vae", name, fix)])
