"""What is in a LoRA's file, by the names of its tensors: kohya's layout, those of diffusers, and PEFT's.

A change of a weight W is ``scale * up @ down``, with ``scale = alpha / rank`` where an alpha is written down. Kohya
writes ``lora_unet_down_blocks_1_..._to_q.lora_down.weight``, with underscores for the dots of the module's path, which
may be that of diffusers or of the original UNet; diffusers and PEFT write ``unet.down_blocks.1....to_q.lora_A.weight``
or older forms. Which module a path means is a question to the model, see :mod:`consistory_ray.consistory.models.lora`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from consistory_ray.adapters.files import Header, adapter_file, read_header, unusable
from consistory_ray.adapters.names import LoRA
from consistory_ray.errors import CheckpointError, Problem

Part = Literal["unet", "text_encoder", "text_encoder_2"]

_ENDINGS = (
    ("down", re.compile(r"(?P<stem>.+?)[._]lora(?:_linear_layer)?(?:_A|_down|\.down)(?:\.default)?\.weight")),
    ("up", re.compile(r"(?P<stem>.+?)[._]lora(?:_linear_layer)?(?:_B|_up|\.up)(?:\.default)?\.weight")),
    ("alpha", re.compile(r"(?P<stem>.+?)(?:[._]lora)?\.alpha")),
)
_OTHER_KINDS = (
    (re.compile(r"\.dora_scale$|lora_magnitude_vector"), "DoRA"),
    (re.compile(r"\.hada_w\d|\.hada_t\d"), "LoHa (LyCORIS)"),
    (re.compile(r"\.lokr_(w|t)\d"), "LoKr (LyCORIS)"),
    (re.compile(r"\.lora_mid\.weight$"), "a LoCon with a third factor (Tucker decomposition)"),
    (re.compile(r"\.oft_|\.boft_"), "OFT"),
    (re.compile(r"\.on_input$|\.ia3_"), "IA3"),
    (re.compile(r"\.diff(_b)?$|\.w_norm$|\.b_norm$"), "an adapter with whole weights (LyCORIS full or norm)"),
    (re.compile(r"\.glora_|\.a1\.weight$"), "GLoRA"),
    (re.compile(r"lora_B(\.default)?\.bias$|\.lora_bias$"), "a LoRA with biases"),
)
_OTHER_MODELS = (
    (re.compile(r"double_blocks|single_blocks|single_transformer_blocks|lora_te2?_encoder_block"), "Flux"),
    (re.compile(r"joint_blocks|^transformer\.|^lora_transformer_|\.txt_attn|context_embedder"), "a transformer model"),
    (re.compile(r"prior_unet|lora_prior"), "Stable Cascade"),
)
_PREFIXES: tuple[tuple[str, Part], ...] = (
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("base_model.model.unet.", "unet"),
    ("base_model.model.text_encoder_2.", "text_encoder_2"),
    ("base_model.model.text_encoder.", "text_encoder"),
    ("base_model.model.", "unet"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("unet.", "unet"),
    ("diffusion_model.", "unet"),
    ("", "unet"),
)
_TEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}
_TEXT_INPUTS = re.compile(r"attn2[._](?:processor[._])?to[._](k|v)$")
_NAMED = 5


@dataclass(frozen=True)
class Pair:
    """The two factors of one weight's change.

    Attributes:
        part: the network.
        module: the path of the module in it, as the file writes it.
        down, up: the names of the tensors [rank, in, ...] and [out, rank, ...].
        rank: of the change.
        alpha: the name of the scalar, if there is one.
    """

    part: Part
    module: str
    down: str
    up: str
    rank: int
    alpha: str | None


def check_lora_file(where: str, lora: LoRA, text_width: int | None = None) -> None:
    """Refuse a LoRA by its file's header, before any model is loaded; nothing is known here of one on the hub.

    Args:
        where: the field that it was given in, such as ``loras[0]``.
        lora: what was given.
        text_width: the base's ``cross_attention_dim``, where it is known.

    Raises:
        CheckpointError: the file is missing, a pickle, no safetensors file, no LoRA, or of another kind of model.
    """
    file = adapter_file(f"{where}.path", lora.path)
    if file is not None:
        read_pairs(f"{where}.path", lora.path, read_header(f"{where}.path", file), text_width)


def read_pairs(where: str, path: str, header: Header, text_width: int | None = None) -> list[Pair]:
    """The changes in a LoRA's file, in the order of their names.

    Raises:
        CheckpointError: it is no LoRA, not a whole one, or of another kind of adapter or model.
    """
    keys = sorted(header.shapes)
    _refuse_kinds(where, path, keys)
    found: dict[str, dict[str, str]] = {}
    unknown = []
    for key in keys:
        match = next(((role, hit) for role, form in _ENDINGS if (hit := form.fullmatch(key))), None)
        if match is None:
            unknown.append(key)
        else:
            found.setdefault(match[1]["stem"], {})[match[0]] = key
    pairs = [stem for stem, roles in found.items() if {"down", "up"} <= set(roles)]
    if not pairs:
        fix = f"it has no pairs of tensors that are a LoRA's, but {_some(keys) or 'none at all'}"
        raise unusable(where, path, fix, "the file is not a LoRA")
    alone = [name for stem, roles in found.items() if stem not in pairs for name in roles.values()]
    if unknown or alone:
        fix = f"{len(unknown + alone)} tensors have no counterpart or no known meaning: {_some(unknown + alone)}"
        raise unusable(where, path, fix, "only a part of the file is a LoRA")
    read = [_pair(where, path, stem, found[stem], header.shapes) for stem in pairs]
    refuse_width(where, path, read, header.shapes, text_width)
    return read


def _pair(where: str, path: str, stem: str, roles: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Pair:
    down, up = shapes[roles["down"]], shapes[roles["up"]]
    if len(down) not in (2, 4) or len(up) not in (2, 4) or down[0] != up[1] or not down[0]:
        fix = f"{roles['down']} has the shape {list(down)}, which does not go with {list(up)} of {roles['up']}"
        raise unusable(where, path, fix, "the two factors of a change do not fit each other")
    if "alpha" in roles and math.prod(shapes[roles["alpha"]]) != 1:
        fix = f"{roles['alpha']} has the shape {list(shapes[roles['alpha']])}, it must be one number"
        raise unusable(where, path, fix, "an alpha is not a number")
    prefix, part = next(each for each in _PREFIXES if stem.startswith(each[0]))
    return Pair(part, stem[len(prefix) :], roles["down"], roles["up"], down[0], roles.get("alpha"))


def _refuse_kinds(where: str, path: str, keys: list[str]) -> None:
    for form, kind in _OTHER_KINDS:
        if hits := [key for key in keys if form.search(key)]:
            fix = f"this is {kind} ({hits[0]}), which is not read: convert or extract it to a plain LoRA"
            raise unusable(where, path, fix, "the adapter is of a kind that is not read")
    for form, model in _OTHER_MODELS:
        if hits := [key for key in keys if form.search(key)]:
            fix = f"it was made for {model} ({hits[0]}): give a LoRA of an SDXL model"
            raise unusable(where, path, fix, "the LoRA is of another kind of model")


def refuse_width(
    where: str, path: str, pairs: Sequence[Pair], shapes: Mapping[str, tuple[int, ...]], text_width: int | None
) -> None:
    """Refuse a LoRA of a model that reads other texts.

    Args:
        where, path: for the message.
        pairs: from :func:`read_pairs`.
        shapes: of the file's tensors.
        text_width: the base's ``cross_attention_dim``; nothing is refused where it is not known.

    Raises:
        CheckpointError: naming both models.
    """
    if text_width is None:
        return
    widths = {shapes[pair.down][1] for pair in pairs if _TEXT_INPUTS.search(pair.module)}
    if widths and text_width not in widths:
        width = min(widths)
        model = _TEXT_WIDTHS.get(width, "another model")
        fix = f"it is a LoRA of {model}, for texts of width {width}; this model's have width {text_width}"
        raise unusable(where, path, fix, "the LoRA does not fit the model")


def misfits(where: str, path: str, names: list[str], of: int) -> CheckpointError:
    """The error about tensors that fit nothing in the model."""
    how = "nothing of it" if len(names) == of else f"{len(names)} of its {of} changes do not fit, only the others"
    fix = f"give a LoRA of this kind of model: these fit nothing in it: {_some(names)}"
    return CheckpointError(f"the LoRA does not fit the model: {how} would do anything", [Problem(where, path, fix)])


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
