"""A model's fingerprint: the same for the same weights in any dtype, another for other weights or configurations."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_SAMPLES = 256  # per weight tensor
_NETWORKS = ("unet", "text_encoder", "text_encoder_2", "vae")
_ADAPTER_STATE = ("active_adapters", "merged_adapters", "disable_adapters", "scaling", "fan_in_fan_out", "cast_input")
"""What adapter layers of PEFT do with their weights, beside what a class lists in ``other_param_names``."""
_NO_EFFECT = frozenset({"lora_dropout", "kwargs", "ephemeral_gpu_offload"})


def model_fingerprint(pipe: Any) -> str:
    """SHA-256 over configurations and every weight's name, shape and the signs of evenly spaced entries.

    Rounding to another dtype changes values but no sign, so that float16 and float32 workers agree; a fine-tuned model
    flips many signs among the hundreds of thousands that are looked at. Reads about 1 MB of a full-size model. Where
    there are adapters (LoRA and the other kinds of PEFT), what their layers do with their weights is part of it too,
    and how large these are: some adapters are all positive, and others differ in strength alone. What a pipeline's own
    ``fuse_lora`` has added to weights shows in no sign where it is small: after it the values count, of this dtype.
    Words that the text encoders were taught count with their vectors.
    """
    digest = hashlib.sha256()
    for name in ("unet", "vae", "scheduler"):
        digest.update(json.dumps(_public(getattr(pipe, name).config), sort_keys=True, default=str).encode())
    if not pipe.config.get("force_zeros_for_empty_prompt", True):
        digest.update(b"the empty prompt is encoded;")
    signs: list[Tensor] = []
    fused = sorted(map(str, getattr(pipe, "fused_loras", ())))
    kinds = {kind for _, layer in _adapter_layers(pipe) for kind in layer.adapter_layer_names}
    sizes: dict[str, list[Tensor]] = {}
    for name in _NETWORKS:
        module = getattr(pipe, name)
        for key, tensor in _weights(module) if module is not None else ():
            if not tensor.is_floating_point():
                continue
            key = key.removeprefix("text_model.")  # there or not, depending on the version of transformers
            digest.update(f"{name}.{key}:{tuple(tensor.shape)};".encode())
            samples = _sampled(tensor)
            signs.append(torch.signbit(samples))
            if fused:
                digest.update(samples.float().cpu().numpy().tobytes())
            for kind in kinds.intersection(key.split(".")):
                sizes.setdefault(kind, []).append(samples)
    if signs:
        digest.update(torch.cat([sign.to(signs[0].device) for sign in signs]).cpu().numpy().tobytes())
    if adapters := adapter_state(pipe):
        digest.update(f"{adapters}{_adapter_size(sizes)}".encode())
    for name, word, vector in _added_words(pipe):
        digest.update(f"{name}:{word};".encode() + torch.signbit(vector).cpu().numpy().tobytes())
        digest.update(f"{float(vector.float().abs().mean()):.2e};".encode())
    return digest.hexdigest()


def network_fingerprint(network: Any) -> str:
    """The same of a single network, such as a ControlNet: its configuration and its weights."""
    digest = hashlib.sha256(json.dumps(_public(network.config), sort_keys=True, default=str).encode())
    signs = []
    for key, tensor in _weights(network):
        if tensor.is_floating_point():
            digest.update(f"{key}:{tuple(tensor.shape)};".encode())
            signs.append(torch.signbit(_sampled(tensor)))
    digest.update(torch.cat([sign.cpu() for sign in signs]).numpy().tobytes())
    return digest.hexdigest()


def adapter_state(pipe: Any) -> str:
    """What the adapters of a pipeline do: which are active, merged or switched off, and their scales. Empty for none.

    Looks at no weights; a few milliseconds.
    """
    found = {name: _layer_state(layer) for name, layer in _adapter_layers(pipe)}
    return json.dumps(found, sort_keys=True) if found else ""


class Moment:
    """A pipeline at one moment, as far as adapters and added words go; equal while nothing of that has changed.

    Looks at no weights: a few milliseconds. Adapters that were put in another's place are other tensors, even where
    they have its name and its settings.

    Args:
        pipe: the pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self._state = adapter_state(pipe), sorted(map(str, getattr(pipe, "fused_loras", ()))), added_words(pipe)
        self._weights = [
            weakref.ref(weight)
            for _, layer in _adapter_layers(pipe)
            for kind in layer.adapter_layer_names
            if isinstance(held := getattr(layer, kind, None), nn.Module)
            for weight in held.parameters()
        ]

    def is_like(self, other: Moment) -> bool:
        """Whether nothing has changed between the two."""
        mine, theirs = ([weight() for weight in moment._weights] for moment in (self, other))
        same = len(mine) == len(theirs) and all(a is b is not None for a, b in zip(mine, theirs, strict=True))
        return self._state == other._state and same


def added_words(pipe: Any) -> dict[str, list[str]]:
    """The words that the tokenizers were given beside their own, in the order of their tokens."""
    found: dict[str, list[str]] = {}
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer: Any = getattr(pipe, name, None)
        added: dict[str, int] = {} if tokenizer is None else tokenizer.get_added_vocab()
        words = [word for word, _ in sorted(added.items(), key=lambda each: int(each[1]))]
        special = set(tokenizer.all_special_tokens) if words else set()
        if kept := [word for word in words if word not in special]:
            found[name] = kept
    return found


def _added_words(pipe: Any) -> Iterator[tuple[str, str, Tensor]]:
    """The same with the vectors that the text encoders read for them."""
    for name, words in added_words(pipe).items():
        encoder = getattr(pipe, name.replace("tokenizer", "text_encoder"), None)
        if encoder is not None:
            weights = dict(_weights(encoder))
            table = next((each for key, each in weights.items() if key.endswith("token_embedding.weight")), None)
            for word in words:
                number = int(getattr(pipe, name).convert_tokens_to_ids(word))
                if table is not None and number < len(table):
                    yield name, word, table[number].detach()


def _adapter_layers(pipe: Any) -> Iterator[tuple[str, Any]]:
    for network in _NETWORKS:
        module = getattr(pipe, network)
        for name, layer in module.named_modules() if module is not None else ():
            if hasattr(layer, "adapter_layer_names") and hasattr(layer, "merged_adapters"):
                yield f"{network}.{name}", layer


def _adapter_size(sizes: Mapping[str, list[Tensor]]) -> str:
    """Mean size of the adapters' weights, for each of their kinds, to three digits: rounding hardly reaches those."""
    means = {
        kind: torch.cat([each.to(found[0].device, torch.float32) for each in found]).abs().mean()
        for kind, found in sizes.items()
    }
    return ",".join(f"{kind}:{float(mean):.2e}" for kind, mean in sorted(means.items()))


def _layer_state(layer: Any) -> dict[str, Any]:
    names = {
        *_ADAPTER_STATE,
        *getattr(layer, "other_param_names", ()),
        *(n for n in vars(layer) if n.startswith("use_")),
    }
    state = {name: _plain(getattr(layer, name, None)) for name in sorted(names - _NO_EFFECT)}
    variants = getattr(layer, "lora_variant", None) or {}
    return {
        "kind": type(layer).__name__,
        **state,
        "variants": {key: type(each).__name__ for key, each in variants.items()},
    }


def _plain(value: Any) -> Any:
    """A value of an adapter layer as JSON has it; of what has no such form only its kind counts."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in (sorted(map(str, value)) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, Tensor):
        return value.float().cpu().tolist() if value.numel() <= _SAMPLES and not value.is_meta else tuple(value.shape)
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


def _weights(module: Any) -> Iterator[tuple[str, Tensor]]:
    """A network's tensors, those included that sequential offloading has put away."""
    stored: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        weights = getattr(getattr(part, "_hf_hook", None), "weights_map", None)
        if weights is not None:
            prefix = f"{name}." if name else ""
            direct = [*part._parameters, *part._buffers]
            stored |= {f"{prefix}{key}": weights[key] for key in direct if key in weights}
    for key, tensor in module.state_dict().items():
        yield key, stored[key] if tensor.is_meta and key in stored else tensor


def _sampled(tensor: Tensor) -> Tensor:
    """Evenly spaced entries."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}
