"""LoRAs of a model: looked at before the model is loaded, and fused into its weights once it is.

After that nothing is left of them but changed weights, so that rendering takes as long as without. Each is read,
merged by the layers of PEFT and let go before the next one; no second copy of the model is made.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils.peft_utils import recurse_remove_peft_layers
from safetensors import safe_open
from torch import Tensor, nn

from consistory_ray.adapters.files import (
    CONFIGURATION,
    PREFERRED,
    Header,
    adapter_file,
    digest_of,
    read_header,
    unusable,
)
from consistory_ray.adapters.lora_files import Pair, misfits, read_pairs, refuse_width
from consistory_ray.adapters.names import LoRA
from consistory_ray.consistory.models.adapter_hub import from_hub
from consistory_ray.consistory.models.lora_targets import PARTS, Target, Targets
from consistory_ray.consistory.models.model_checks import read_config
from consistory_ray.errors import CheckpointError, InputError, Problem

_METADATA = "lora_adapter_metadata"
_ADAPTER = "fused"


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA that was found and looked at, none of whose weights were read.

    Attributes:
        where: the field that it was given in.
        lora: as it was given.
        file: on this machine.
        header: of the file.
        pairs: what it changes.
        settings: how strong it is where the file does not say: of PEFT's configuration beside it, or of its metadata.
        identity: 64 hexadecimal digits for its content and its weight.
    """

    where: str
    lora: LoRA
    file: Path
    header: Header
    pairs: Sequence[Pair]
    settings: Mapping[str, Any]
    identity: str


def listed_loras(loras: Any) -> list[LoRA]:
    """What somebody gave, one by one; a path alone stands for its full weight.

    Raises:
        InputError: it is no list of LoRAs or paths.
    """
    given = [loras] if isinstance(loras, (str, Path, LoRA)) else list(loras or ())
    fix = "give a LoRA(path, weight), or the path alone"
    problems = [
        Problem(f"loras[{number}]", type(each).__name__, fix)
        for number, each in enumerate(given)
        if not isinstance(each, (str, Path, LoRA))
    ]
    if problems:
        raise InputError("the LoRAs cannot be used", problems)
    return [each if isinstance(each, LoRA) else LoRA(str(each)) for each in given]


def read_loras(loras: Sequence[LoRA]) -> list[LoRAFile]:
    """Find the files and look at their headers; those on the hub are downloaded.

    Raises:
        CheckpointError: one is not there, no LoRA, or of another kind of model.
    """
    if not loras:
        return []
    try:
        import peft  # noqa: F401
    except ImportError as error:
        fix = "install it: pip install peft"
        raise CheckpointError("LoRAs need the package peft", [Problem("loras", loras[0].path, fix)]) from error
    return [_read(f"loras[{number}]", lora) for number, lora in enumerate(loras)]


def refuse_misfits(files: Sequence[LoRAFile], networks: Mapping[str, nn.Module | None]) -> None:
    """Refuse LoRAs that change what a model does not have.

    Args:
        files: from :func:`read_loras`.
        networks: the model's, with or without weights; parts of None are not looked at.

    Raises:
        CheckpointError: naming the tensors that fit nothing.
    """
    if not files:
        return
    targets = Targets(networks)
    unet: Any = networks.get("unet")
    for file in files:
        where, path = f"{file.where}.path", file.lora.path
        if unet is not None:
            refuse_width(where, path, file.pairs, file.header.shapes, unet.config.cross_attention_dim)
        known = [pair for pair in file.pairs if networks.get(pair.part) is not None]
        wrong = [pair.down for pair in known if not _fits(targets.of(pair), file.header, pair)]
        if wrong:
            raise misfits(where, path, wrong, len(file.pairs))


def fuse_loras(files: Sequence[LoRAFile], pipe: Any) -> None:
    """Add LoRAs to the weights of a loaded pipeline, in an order that depends on their contents only.

    Args:
        files: from :func:`read_loras`; a weight of 0 changes nothing.
        pipe: a pipeline whose weights are in memory.

    Raises:
        CheckpointError: one does not fit the model. Nothing is changed then.
    """
    networks: dict[str, nn.Module | None] = {part: getattr(pipe, part, None) for part in PARTS}
    for part in (part for part, network in networks.items() if network is None):
        for file in files:
            if lost := [pair.down for pair in file.pairs if pair.part == part]:
                raise misfits(f"{file.where}.path", file.lora.path, lost, len(file.pairs))
    refuse_misfits(files, networks)
    targets = Targets(networks)
    for file in sorted(files, key=lambda each: each.identity):
        if file.lora.weight:
            for part, network in networks.items():
                pairs = [(pair, target) for pair in file.pairs if pair.part == part and (target := targets.of(pair))]
                if network is not None and pairs:
                    _merge(network, file, pairs)


def _merge(network: nn.Module, file: LoRAFile, pairs: Sequence[tuple[Pair, Target]]) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    weights: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    with safe_open(file.file, framework="pt") as tensors:
        for pair, target in pairs:
            down, up = tensors.get_tensor(pair.down).float(), tensors.get_tensor(pair.up).float()
            flat = len(target.shape) == 2
            weights[f"{target.path}.lora_A.weight"] = down.reshape(pair.rank, -1) if flat else _as_kernel(down)
            weights[f"{target.path}.lora_B.weight"] = up.reshape(-1, pair.rank) if flat else _as_kernel(up)
            alpha = None if pair.alpha is None else float(tensors.get_tensor(pair.alpha))
            scales[target.path] = file.lora.weight * _scale(file, pair, target, alpha)
            if not (down.isfinite().all() and up.isfinite().all() and math.isfinite(scales[target.path])):
                fix = f"{pair.down}, its counterpart or its alpha has numbers that are not finite: take another file"
                raise unusable(f"{file.where}.path", file.lora.path, fix, "the LoRA is broken")
    ranks = {target.path: pair.rank for pair, target in pairs}
    common = max(set(ranks.values()), key=lambda rank: (list(ranks.values()).count(rank), rank))
    config = LoraConfig(
        r=common,
        lora_alpha=common,
        target_modules=sorted(ranks),
        rank_pattern={f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != common},
    )
    trained = {name: each.requires_grad for name, each in network.named_parameters()}
    inject_adapter_in_model(config, network, adapter_name=_ADAPTER, low_cpu_mem_usage=True)
    set_peft_model_state_dict(network, weights, adapter_name=_ADAPTER, low_cpu_mem_usage=True)
    for path, layer in network.named_modules():
        tuner: Any = layer if isinstance(layer, BaseTunerLayer) else None
        if tuner is not None and _ADAPTER in getattr(tuner, "scaling", {}):
            tuner.scaling[_ADAPTER] = scales[path]
            tuner.merge(adapter_names=[_ADAPTER])
    recurse_remove_peft_layers(network)  # type: ignore[no-untyped-call]
    if hasattr(network, "peft_config"):
        del network.peft_config
    for name, each in network.named_parameters():
        each.requires_grad_(trained[name])


def _as_kernel(factor: Tensor) -> Tensor:
    return factor if factor.ndim == 4 else factor[:, :, None, None]


def _scale(file: LoRAFile, pair: Pair, target: Target, alpha: float | None) -> float:
    """How strong a change is at weight 1: alpha / rank, as the file or the configuration beside it says."""
    if alpha is not None:
        return alpha / pair.rank
    settings: Mapping[str, Any] = file.settings.get(pair.part) or {}
    found = settings.get("lora_alpha")
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", target.path):
            found = value
    if found is None:
        return 1.0
    return float(found) / (math.sqrt(pair.rank) if settings.get("use_rslora") else pair.rank)


def _fits(target: Target | None, header: Header, pair: Pair) -> bool:
    if target is None:
        return False
    down, up = header.shapes[pair.down], header.shapes[pair.up]
    kernel = (*down[2:], 1, 1)[:2] == ((*target.shape[2:], 1, 1)[:2])
    return (up[0], down[1]) == target.shape[:2] and kernel and all(size == 1 for size in up[2:])


def _read(where: str, lora: LoRA) -> LoRAFile:
    field = f"{where}.path"
    file = adapter_file(field, lora.path) or from_hub(field, lora.path)
    header = read_header(field, file)
    pairs = read_pairs(field, lora.path, header)
    settings = _settings(field, file, header)
    for part in settings.values():
        if part.get("use_dora"):
            fix = "this is DoRA, which is not read: convert it to a plain LoRA"
            raise unusable(field, lora.path, fix, "the adapter is of a kind that is not read")
    parts = (digest_of(file), json.dumps(settings, sort_keys=True, default=str), repr(float(lora.weight)))
    return LoRAFile(where, lora, file, header, pairs, settings, hashlib.sha256("\n".join(parts).encode()).hexdigest())


def _settings(where: str, file: Path, header: Header) -> dict[str, Mapping[str, Any]]:
    """PEFT's settings of each network: from the metadata that diffusers writes, or from the file that PEFT writes."""
    found: dict[str, dict[str, Any]] = {}
    if _METADATA in header.metadata:
        try:
            told = json.loads(header.metadata[_METADATA])
            for key, value in told.items():
                part, _, name = key.partition(".")
                found.setdefault(part, {})[name] = value
        except (ValueError, AttributeError) as error:
            fix = f"save it again: its metadata {_METADATA} cannot be read ({error})"
            raise unusable(where, str(file), fix, "the file's metadata cannot be read") from error
    elif file.name == PREFERRED[1]:
        beside = read_config(file.parent / CONFIGURATION)
        found = {part: dict(beside) for part in PARTS} if beside is not None else {}
    kept = ("r", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora")
    return {part: {name: each[name] for name in kept if each.get(name)} for part, each in sorted(found.items())}
