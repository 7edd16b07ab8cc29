"""Which ControlNets fit a model, told by configurations and file headers, before any weights are read. Pure: no torch.

What is added has to have the shapes of the UNet's own skip connections, so a ControlNet must have its channels, blocks
and layers; it must read the same texts and sizes; and it must bring the hint to the size of the latents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from consistory_ray.consistory.models.model_checks import Config, read_config
from consistory_ray.errors import CheckpointError, Problem
from consistory_ray.settings import BUNDLED_MODEL, model_path

CONTROLNET = "ControlNetModel"
UNION = "ControlNetUnionModel"

_CLASSES = {CONTROLNET: CONTROLNET, UNION: UNION, "ControlNetModel_Union": UNION}
_DEFAULTS: Config = {
    "in_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
}
"""What must be as in the UNet, and what a configuration means that leaves it out (both classes have the same)."""
_ALONE: Mapping[str, tuple[Any, str]] = {
    "conditioning_channels": (3, "must be 3: hints are pictures in colour"),
    "class_embed_type": (None, "must be None"),
    "encoder_hid_dim_type": (None, "must be None"),
}
_FAMILIES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}
_MODES = ("openpose", "depth", "scribble", "canny", "normal", "segment", "tile", "repaint")
"""What the public unions for SDXL tell apart: "scribble" is any soft drawing, "canny" any clean line. Six or eight."""
_MAX_HEADER = 64 << 20
_FAMILY = "a ControlNet for models of the SDXL family such as xinsir/controlnet-openpose-sdxl-1.0"


def mode_names(config: Config) -> tuple[str, ...]:
    """The kinds of hints that a union tells apart, in their order; none for other ControlNets."""
    count = config.get("num_control_type")
    if count is None:
        return ()
    return _MODES[: int(count)] if count in (6, len(_MODES)) else tuple(map(str, range(int(count))))


def controlnet_class(config: Config) -> str | None:
    """Which of diffusers' classes a configuration is of, None for one that cannot be used."""
    name = config.get("_class_name")
    if name is None:
        return UNION if "num_control_type" in config else CONTROLNET
    return _CLASSES.get(name)


def controlnet_problems(where: str, net: Config, unet: Config, vae: Config | None) -> list[Problem]:
    """What a ControlNet's configuration says against using it.

    Args:
        where: the field that it was given in.
        net: its configuration.
        unet, vae: those of the model, the latter where it is known.
    """
    if controlnet_class(net) is None:
        kind, fix = str(net.get("_class_name")), f"give {_FAMILY}: a {CONTROLNET} or {UNION} of diffusers"
        if "Adapter" in kind:
            fix = f"adapters act inside the UNet's blocks and do not work yet: {fix}"
        return [Problem(where, kind, fix)]
    problems = []
    for name, default in _DEFAULTS.items():
        found, wanted = (_plain(config.get(name, default)) for config in (net, unet))
        if found != wanted:
            problems.append(Problem(f"{where}: {name}", _shown(found), f"must be {_shown(wanted)}, as in the model"))
    for name, (wanted, fix) in _ALONE.items():
        if net.get(name, wanted) != wanted:
            problems.append(Problem(f"{where}: {name}", repr(net[name]), fix))
    if problems:
        mine, its = (_FAMILIES.get(config.get("cross_attention_dim", 1280), "") for config in (unet, net))
        made = f"it was made for {its}: " if its and its != mine else ""
        fix = f"{made}give one that was made for this model" + (f", {_FAMILY}" if mine == "SDXL" else "")
        return [*problems, Problem(where, "", fix)]
    widths = net.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)
    halvings = None if vae is None else len(vae.get("block_out_channels", (0,))) - 1
    if halvings is not None and len(widths) - 1 != halvings:
        fix = f"must have {halvings + 1} entries: the model's latents are {2**halvings} times smaller than pictures"
        problems.append(Problem(f"{where}: conditioning_embedding_out_channels", _shown(_plain(widths)), fix))
    return problems


def refuse_unfit(problems: Sequence[Problem]) -> None:
    """Raise what was found.

    Raises:
        CheckpointError: anything was.
    """
    if problems:
        raise CheckpointError("a ControlNet does not fit the model", problems)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else repr(value)


def config_of(where: str, name: str, unet: Config | None = None) -> Config | None:
    """The configuration of a ControlNet on this machine, None for a hub id or what is not there.

    Args:
        where: the field that it was given in, for messages.
        name: ``"miniature"`` (bundled), a folder in diffusers' layout or a ``.safetensors`` file in it.
        unet: the model's, which says what a file without a configuration beside it does not; without it None is
            returned for such a file.

    Raises:
        CheckpointError: the folder or the file is not of a ControlNet.
    """
    if name == BUNDLED_MODEL:
        with resources.as_file(resources.files("consistory_ray.miniature").joinpath("controlnet")) as folder:
            return read_config(folder / "config.json")
    path = Path(model_path(name))
    if path.is_dir():
        config = read_config(path / "config.json")
        if config is None:
            fix = "give a ControlNet's own folder, with config.json and diffusion_pytorch_model.safetensors"
            raise CheckpointError("the folder is not a ControlNet", [Problem(where, str(path), fix)])
        return config
    if not path.is_file():
        return None
    shapes = _shapes(where, path)
    beside = read_config(path.parent / "config.json")
    if beside is not None and controlnet_class(beside) == (UNION if _TASKS in shapes else CONTROLNET):
        return beside
    return None if unet is None else _from_shapes(shapes, unet)


_HINT = "controlnet_cond_embedding."
_TASKS = "task_embedding"
_KINDS = {
    "lllite_": "a ControlNet-LLLite",
    "control_model.": "a ControlNet in the original layout",
    "input_blocks.": "a ControlNet in the original layout",
    "adapter.": "a T2I-Adapter",
    "model.diffusion_model.": "a whole model",
}


def _shapes(where: str, path: Path) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a file, from its header.

    Raises:
        CheckpointError: it is no safetensors file, or none of a ControlNet in diffusers' layout.
    """
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= _MAX_HEADER:
                raise ValueError("its header is of no such file")
            header = json.loads(stream.read(length))
        shapes = {key: tuple(value["shape"]) for key, value in header.items() if key != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        fix = f"give a safetensors file, downloaded whole ({error})"
        raise CheckpointError("this is no safetensors file", [Problem(where, str(path), fix)]) from error
    if not any(key.startswith(_HINT) for key in shapes) or "conv_in.weight" not in shapes:
        kind = next((kind for start, kind in _KINDS.items() if any(key.startswith(start) for key in shapes)), "")
        fix = f"{path} holds none in diffusers' layout (its keys begin with {_HINT}): give {_FAMILY}"
        raise CheckpointError("the file is not a ControlNet that can be used", [Problem(where, kind, fix)])
    return shapes


def _from_shapes(shapes: Mapping[str, tuple[int, ...]], unet: Config) -> Config:
    """The configuration of a file without one: what shapes tell, and the rest as in the model's UNet."""
    blocks = _count(shapes, "down_blocks.{}.")
    layers = [_count(shapes, f"down_blocks.{block}.attentions.0.transformer_blocks.{{}}.") for block in range(blocks)]
    widths = [shapes[f"down_blocks.{block}.resnets.0.conv1.weight"][0] for block in range(blocks)]
    kept = (*_UNSEEN, *_DEFAULTS)
    config: dict[str, Any] = {name: unet[name] for name in kept if name in unet} | {
        "in_channels": shapes["conv_in.weight"][1],
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, "down_blocks.0.resnets.{}."),
        "down_block_types": ["CrossAttnDownBlock2D" if count else "DownBlock2D" for count in layers],
        "transformer_layers_per_block": [count or 1 for count in layers],
        "conditioning_embedding_out_channels": [
            shapes[f"{_HINT}conv_in.weight"][0],
            *(
                shapes[f"{_HINT}blocks.{number}.weight"][0]
                for number in range(1, _count(shapes, _HINT + "blocks.{}."), 2)
            ),
        ],
    }
    texts = [shape for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")]
    if texts:
        config["cross_attention_dim"] = texts[0][1]
    attends = any(key.startswith("mid_block.attentions.") for key in shapes)
    config["mid_block_type"] = "UNetMidBlock2DCrossAttn" if attends else "UNetMidBlock2D"
    sizes = shapes.get("add_embedding.linear_1.weight")
    config["addition_embed_type"] = None if sizes is None else "text_time"
    config["projection_class_embeddings_input_dim"] = None if sizes is None else sizes[1]
    if _TASKS in shapes:
        config["num_control_type"], config["num_trans_channel"] = shapes[_TASKS]
        config["num_trans_layer"] = _count(shapes, "transformer_layes.{}.")
        config["num_proj_channel"] = shapes["spatial_ch_projs.weight"][0]
        del config["mid_block_type"]
    return config


_UNSEEN = (
    *("act_fn", "attention_head_dim", "num_attention_heads", "downsample_padding", "flip_sin_to_cos", "freq_shift"),
    *("mid_block_scale_factor", "norm_eps", "norm_num_groups", "upcast_attention", "use_linear_projection"),
    "resnet_time_scale_shift",
)
"""Fields that no shape shows."""


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    """How many numbers from 0 on, put into a pattern, begin a key."""
    number = 0
    while any(key.startswith(pattern.format(number)) for key in shapes):
        number += 1
    return number
