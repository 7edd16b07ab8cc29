"""Which models the method can be used with, told by configurations: before any weights are read, and of loaded ones.

What is not looked at here would be sampled all the same and give wrong pictures without a word: a refiner lacks one of
the size embeddings, an inpainting UNet wants more channels, EDM and flow-matching models want other noise levels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from consistory_ray.errors import CheckpointError, Problem

Config = Mapping[str, Any]

TIME_IDS = 6
"""Numbers of SDXL's size conditioning: original size, crop and target size. The refiner has five."""

_FAMILY = "StableDiffusionXL"
_OTHER_PURPOSES = ("Inpaint", "InstructPix2Pix", "ControlNet", "Adapter")
_EXTRA_NETWORKS = ("controlnet", "adapter", "motion_adapter", "prior", "transformer")
_CHANNELS = {9: "inpainting", 8: "instruct-pix2pix", 5: "depth"}
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_PREDICTIONS = ("epsilon", "sample", "v_prediction")
_BASE = "use a text-to-image model of the SDXL family such as stabilityai/stable-diffusion-xl-base-1.0"


def refuse(problems: Iterable[Problem]) -> None:
    """Raise what was found.

    Raises:
        CheckpointError: anything was.
    """
    found = list(problems)
    if found:
        raise CheckpointError("the model is not a text-to-image model of the SDXL architecture", found)


def index_problems(index: Config) -> list[Problem]:
    """What a model_index.json says against a model."""
    name = index.get("_class_name")
    problems = []
    if isinstance(name, str) and (not name.startswith(_FAMILY) or any(word in name for word in _OTHER_PURPOSES)):
        problems.append(Problem("model_index.json: _class_name", name, _BASE))
    encoders = [index.get(part) for part in ("text_encoder", "text_encoder_2")]
    is_refiner = bool(index.get("requires_aesthetics_score")) or [None, None] in encoders
    if is_refiner and not problems:
        fix = f"this is a refiner, which adds details to finished pictures: {_BASE}"
        problems.append(Problem("model_index.json: requires_aesthetics_score", "true", fix))
    for part in _EXTRA_NETWORKS:
        if isinstance(index.get(part), list) and index[part][:1] != [None]:
            problems.append(
                Problem(f"model_index.json: {part}", str(index[part]), f"this network is not used: {_BASE}")
            )
    unet = index.get("unet")
    if not problems and isinstance(unet, list) and unet[1:] != ["UNet2DConditionModel"]:
        problems.append(Problem("model_index.json: unet", str(unet), "must be a UNet2DConditionModel"))
    return problems


def unet_problems(unet: Config, first_encoder: Config | None, second_encoder: Config | None) -> list[Problem]:
    """What a UNet's configuration says against a model, beside those of its text encoders where they are known."""
    kind = _CHANNELS.get(unet.get("in_channels", 4))
    note = f": this is a model for {kind}" if kind else ""
    checks: list[tuple[str, Any, str]] = [
        ("addition_embed_type", "text_time", ""),
        ("class_embed_type", None, ""),
        ("num_class_embeds", None, ""),
        ("encoder_hid_dim_type", None, "must be None: IP-Adapters and other encoders do not work yet, unload them"),
        ("center_input_sample", False, ""),
        ("dual_cross_attention", False, ""),
        ("in_channels", unet.get("out_channels", 4), f"must be {unet.get('out_channels', 4)!r}{note}"),
    ]
    problems = [
        Problem(f"unet.config.{name}", repr(unet.get(name, wanted)), fix or f"must be {wanted!r}")
        for name, wanted, fix in checks
        if unet.get(name, wanted) != wanted
    ]
    crossed = unet.get("only_cross_attention", False)
    if any(crossed) if isinstance(crossed, (list, tuple)) else crossed:
        problems.append(Problem("unet.config.only_cross_attention", repr(crossed), "must be False"))
    if not problems and second_encoder is not None:
        problems += _encoder_problems(unet, first_encoder, second_encoder)
    return problems


def _encoder_problems(unet: Config, first: Config | None, second: Config) -> list[Problem]:
    problems = []
    pooled, each = second.get("projection_dim", 512), unet.get("addition_time_embed_dim")
    found = unet.get("projection_class_embeddings_input_dim")
    if isinstance(each, int) and isinstance(found, int) and found != pooled + TIME_IDS * each:
        refiner = ": this is a refiner, which adds details to finished pictures" if first is None else ""
        refiner = refiner or (": this is a refiner" if found == pooled + (TIME_IDS - 1) * each else "")
        fix = f"must be {pooled + TIME_IDS * each}, for the pooled text and {TIME_IDS} sizes{refiner}"
        problems.append(Problem("unet.config.projection_class_embeddings_input_dim", str(found), fix))
    width, wanted = unet.get("cross_attention_dim"), second.get("hidden_size", 0)
    wanted += first.get("hidden_size", 0) if first is not None else 0
    if isinstance(width, int) and width != wanted:
        fix = f"must be {wanted}, the widths of the text encoders together"
        problems.append(Problem("unet.config.cross_attention_dim", str(width), fix))
    return problems


def scheduler_problems(name: str, config: Config, *, complete: bool = True) -> list[Problem]:
    """What a scheduler says against being replaced by DDIM.

    Args:
        name: of its class.
        config: its configuration.
        complete: whether every setting is there; in a file, those that are the class's defaults may lack.
    """
    problems = []
    where, prediction = "scheduler", config.get("prediction_type", "epsilon")
    if "FlowM" in name or config.get("use_flow_sigmas") or str(prediction).startswith("flow"):
        fix = f"flow-matching models do not work yet: {_BASE}"
        problems.append(Problem(where, name, fix))
    elif "EDM" in name or "sigma_data" in config:
        fix = f"EDM models (Playground v2.5, CosXL) do not work yet: {_BASE}"
        problems.append(Problem(where, name, fix))
    elif complete and "beta_schedule" not in config and config.get("trained_betas") is None:
        problems.append(Problem(where, name, f"it has no beta_schedule that DDIM could use: {_BASE}"))
    if problems:
        return problems
    schedule = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is None and schedule not in _BETA_SCHEDULES:
        fix = f"must be one of {', '.join(_BETA_SCHEDULES)}"
        problems.append(Problem("scheduler.config.beta_schedule", repr(schedule), fix))
    if prediction not in _PREDICTIONS:
        fix = f"must be one of {', '.join(_PREDICTIONS)}"
        problems.append(Problem("scheduler.config.prediction_type", repr(prediction), fix))
    spacing = config.get("timestep_spacing", "leading")
    if config.get("rescale_betas_zero_snr") and prediction == "epsilon" and spacing != "leading":
        fix = "must be 'v_prediction' with rescale_betas_zero_snr: the first step has no signal to predict noise in"
        problems.append(Problem("scheduler.config.prediction_type", repr(prediction), fix))
    return problems


def check_folder(folder: Path) -> None:
    """Refuse a model by the configurations that lie in a folder in diffusers' layout; those that lack are passed over.

    Raises:
        CheckpointError: naming field, value and fix.
    """
    index = read_config(folder / "model_index.json") or {}
    refuse(index_problems(index))
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    problems = []
    if scheduler is not None:
        named = index.get("scheduler")
        name = named[1] if isinstance(named, list) and len(named) > 1 else scheduler.get("_class_name")
        problems += scheduler_problems(str(name), scheduler, complete=False)
    unet = read_config(folder / "unet" / "config.json")
    if unet is not None:
        encoders = [read_config(folder / part / "config.json") for part in ("text_encoder", "text_encoder_2")]
        problems += unet_problems(unet, *encoders)
    refuse(problems)


def read_config(path: Path) -> Config | None:
    """A JSON object, None where there is no file.

    Raises:
        CheckpointError: there is something else.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        fix = f"restore it from where the model came from ({error})"
        raise CheckpointError("a configuration of the model cannot be read", [Problem(str(path), "", fix)]) from error
    return value


def check_pipeline(pipe: Any) -> None:
    """Refuse a loaded pipeline that the method cannot be used with. Reads configurations only; quick.

    Raises:
        CheckpointError: naming field, value and fix.
    """
    problems = []
    for part in ("unet", "vae", "text_encoder_2", "scheduler"):
        if getattr(pipe, part, None) is None:
            problems.append(Problem(part, "None", "the pipeline needs this component"))
    for part, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        if getattr(pipe, part, None) is None and getattr(pipe, encoder, None) is not None:
            problems.append(Problem(part, "None", f"the pipeline's {encoder} needs it"))
    for part in _EXTRA_NETWORKS:
        if getattr(pipe, part, None) is not None:
            fix = "this network would be ignored: give a plain StableDiffusionXLPipeline"
            fix += ", and the network as controlnets=[...]" if part == "controlnet" else ""
            problems.append(Problem(part, type(getattr(pipe, part)).__name__, fix))
    refuse(problems)
    encoders = [getattr(pipe, part, None) for part in ("text_encoder", "text_encoder_2")]
    configs = [None if encoder is None else encoder.config.to_dict() for encoder in encoders]
    problems += unet_problems(pipe.unet.config, *configs)
    problems += scheduler_problems(type(pipe.scheduler).__name__, pipe.scheduler.config)
    if pipe.config.get("requires_aesthetics_score", False):
        problems.append(Problem("requires_aesthetics_score", "True", f"this is a refiner: {_BASE}"))
    channels = getattr(pipe.vae.config, "latent_channels", None)
    if channels not in (None, pipe.unet.config.in_channels):
        fix = f"must be {pipe.unet.config.in_channels}, the channels of the UNet: this VAE belongs to another model"
        problems.append(Problem("vae.config.latent_channels", str(channels), fix))
    refuse(problems)
