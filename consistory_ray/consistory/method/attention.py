"""The attention processors: subject-driven self-attention, query blending, and capture of cross-attention maps.

Every UNet call carries its own :class:`AttentionCall`; the processors hold no state but their layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from consistory_ray.consistory.method.attention_kernel import attend
from consistory_ray.consistory.method.layout import COARSE, Layer, Level
from consistory_ray.consistory.method.masks import AttentionMaps

Queries = dict[str, Tensor]
"""Self-attention queries of the ``up`` layers by layer name: [rows, tokens, channels]."""

TextKeys = dict[str, tuple[Tensor, Tensor]]
"""Cross-attention keys and values by layer name: [rows, heads, text tokens, head channels], good for all timesteps."""


class QueriesComplete(Exception):
    """Ends a vanilla call at its last ``up`` query: nothing after it is needed (section 3.3). Never leaves the UNet."""


class Sharing(Protocol):
    """What images may attend to besides themselves, at one step."""

    def attend(self, attn: Attention, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Subject-driven self-attention; query, key, value and the result are [rows, tokens, channels]."""
        ...


class Injection(Protocol):
    """Feature injection at one step."""

    def inject(self, layer: Layer, output: Tensor) -> None:
        """Mix source features into a self-attention's projected output [rows, tokens, channels], in place."""
        ...


class Recorder(Protocol):
    """Keeps what an anchor cache needs, at one step."""

    def record_input(self, layer: Layer, hidden_states: Tensor) -> None:
        """Take an ``up`` self-attention's input [rows, tokens, channels]."""
        ...


@dataclass
class AttentionCall:
    """What the attention layers do during one UNet call.

    Attributes:
        text_keys: cross-attention keys and values, filled by the first call that needs them.
        maps: receives the concept tokens' maps of coarse cross-attention layers, or None.
        sharing: subject-driven self-attention of the ``up`` part, or None.
        captured: receives the ``up`` queries; the call ends at the last one. None for an ordinary call.
        vanilla: the queries to blend with, or None; ``blend`` is their share v.
        injection, recorder: see the protocols; None for none.
    """

    text_keys: TextKeys = field(default_factory=dict)
    maps: AttentionMaps | None = None
    sharing: Sharing | None = None
    captured: Queries | None = None
    vanilla: Queries | None = None
    blend: float = 0.0
    injection: Injection | None = None
    recorder: Recorder | None = None


def attend_tokens(query: Tensor, key: Tensor, value: Tensor, heads: int, *, ragged: bool) -> Tensor:
    """Multi-head attention; all [rows, tokens, channels], the result like ``query``; ``ragged`` as for the kernel."""
    query, key, value = (split_heads(tensor, heads) for tensor in (query, key, value))
    return attend(query, key, value, ragged=ragged).transpose(1, 2).flatten(2)


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """[rows, tokens, channels] -> [rows, heads, tokens, head channels]."""
    return tensor.view(*tensor.shape[:2], heads, -1).transpose(1, 2)


def by_half(rows: Tensor, halves: int) -> Tensor:
    """[rows, ...] -> [halves, images, ...]."""
    return rows.reshape(halves, -1, *rows.shape[1:])


def _project_out(attn: Attention, hidden_states: Tensor) -> Tensor:
    projected: Tensor = attn.to_out[1](attn.to_out[0](hidden_states))
    return projected


class SelfAttentionProcessor:
    """Self-attention of one layer; see :class:`AttentionCall` for what may be added to it."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *,
        call: AttentionCall,
    ) -> Tensor:
        """Return the projected attention output, [rows, tokens, channels]."""
        layer = self.layer
        query: Tensor = attn.to_q(hidden_states)
        shared = layer.shared_slot is not None
        if shared:
            query = self._blended(query, call)
            if call.recorder is not None:
                call.recorder.record_input(layer, hidden_states)
        key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        if shared and call.sharing is not None:
            output = call.sharing.attend(attn, layer, query, key, value)
        else:
            output = attend_tokens(query, key, value, attn.heads, ragged=False)
        output = _project_out(attn, output)
        if layer.injected_slot is not None and call.injection is not None:
            call.injection.inject(layer, output)
        return output

    def _blended(self, query: Tensor, call: AttentionCall) -> Tensor:
        if call.captured is not None:
            call.captured[self.layer.name] = query
            if self.layer.is_last_shared:
                raise QueriesComplete
        if call.vanilla is not None:
            return torch.lerp(query, call.vanilla[self.layer.name], call.blend)
        return query


class CrossAttentionProcessor:
    """Cross-attention of one layer, with keys and values computed once for all timesteps."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *,
        call: AttentionCall,
    ) -> Tensor:
        """Return the projected attention output, [rows, tokens, channels]."""
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        if self.layer.name not in call.text_keys:
            key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
            call.text_keys[self.layer.name] = (split_heads(key, attn.heads), split_heads(value, attn.heads))
        keys, values = call.text_keys[self.layer.name]
        if call.maps is not None and self.layer.level == COARSE:
            call.maps.add(query, keys)
        output = attend(query, keys, values, ragged=False).transpose(1, 2).flatten(2)
        return _project_out(attn, output)


class AnchorSharing:
    """Anchors attend to themselves and to each other's kept subject tokens (section 3.2).

    Args:
        kept: level -> per anchor, the indices of the tokens it shares, int64 [kept].
        halves: 2 with classifier-free guidance, else 1.
    """

    def __init__(self, kept: Mapping[Level, list[Tensor]], halves: int) -> None:
        self.kept = kept
        self.halves = halves

    def attend(self, attn: Attention, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See :class:`Sharing`. The loop is over anchors, of which there are few; scenes never come here."""
        assert layer.level is not None
        kept = self.kept[layer.level]
        queries, keys, values = (by_half(tensor, self.halves) for tensor in (query, key, value))
        shared_keys = [keys[:, anchor, index] for anchor, index in enumerate(kept)]
        shared_values = [values[:, anchor, index] for anchor, index in enumerate(kept)]
        outputs = []
        for anchor in range(len(kept)):
            others = [other for other in range(len(kept)) if other != anchor]
            all_keys = torch.cat([keys[:, anchor], *(shared_keys[other] for other in others)], dim=1)
            all_values = torch.cat([values[:, anchor], *(shared_values[other] for other in others)], dim=1)
            outputs.append(attend_tokens(queries[:, anchor], all_keys, all_values, attn.heads, ragged=True))
        return torch.stack(outputs, dim=1).flatten(0, 1)


class CachedSharing:
    """Scenes attend to themselves and to the cached tokens of all anchors: the same for every scene of a batch.

    Args:
        tokens: level -> cached hidden states of one step, [layers, halves, tokens, channels].
    """

    def __init__(self, tokens: Mapping[Level, Tensor]) -> None:
        self.tokens = tokens

    def attend(self, attn: Attention, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See :class:`Sharing`."""
        assert layer.level is not None and layer.shared_slot is not None
        cached = self.tokens[layer.level][layer.shared_slot]
        keys, values = _extended(key, attn.to_k(cached)), _extended(value, attn.to_v(cached))
        return attend_tokens(query, keys, values, attn.heads, ragged=True)


def _extended(own: Tensor, cached: Tensor) -> Tensor:
    """Append each half's cached tokens to all of its rows: [rows, own + cached tokens, channels]."""
    halves = cached.shape[0]
    own = by_half(own, halves)
    cached = cached[:, None].expand(-1, own.shape[1], -1, -1)
    return torch.cat([own, cached], dim=2).flatten(0, 1)
