"""The attention processor: subject-driven self-attention, query blending, and capture of cross-attention maps.

Every call of the network carries its own :class:`AttentionCall`; processors hold no state but their layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from consistory_ray.consistory.method.attention_kernel import attend
from consistory_ray.consistory.method.layout import Layer
from consistory_ray.consistory.method.masks import AttentionMaps

Attention: TypeAlias = Any
"""An attention module as diffusers has them: ``to_q``, ``to_k``, ``to_v``, ``to_out`` (a projection and a dropout) and
``heads``."""

Queries = dict[str, Tensor]
"""Queries of the sharing layers by layer name: [rows, tokens, channels]."""

TextKeys = dict[str, tuple[Tensor, Tensor]]
"""Cross-attention keys and values by layer name: [rows, heads, text tokens, head channels], good for all timesteps."""


class QueriesComplete(Exception):
    """Ends a vanilla call at its last query: nothing after it is needed (section 3.3). Never leaves the network."""


class Exchange(Protocol):
    """What images give and take at one step, by way of their self-attention.

    Attributes:
        shares: whether they attend to tokens of others; queries are blended only then.
        injects: whether features are injected.
    """

    @property
    def shares(self) -> bool: ...
    @property
    def injects(self) -> bool: ...

    def attend(
        self, attn: Attention, layer: Layer, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Attention of a layer that shares; all tensors and the result are [rows, tokens, channels]."""
        ...

    def inject(self, layer: Layer, output: Tensor) -> None:
        """Mix source features into a self-attention's projected output [rows, tokens, channels], in place."""
        ...


@dataclass
class AttentionCall:
    """What the attention layers do during one call of the network.

    Attributes:
        text_keys: cross-attention keys and values, filled by the first call that needs them.
        maps: receives the concept tokens' maps, or None.
        exchange: what is done besides plain self-attention, or None.
        captured: receives the sharing layers' queries; the call ends at the last one. None for an ordinary call.
        vanilla: the queries to blend with, or None; ``blend`` is their share v.
    """

    text_keys: TextKeys = field(default_factory=dict)
    maps: AttentionMaps | None = None
    exchange: Exchange | None = None
    captured: Queries | None = None
    vanilla: Queries | None = None
    blend: float = 0.0


def attend_tokens(query: Tensor, key: Tensor, value: Tensor, heads: int, *, ragged: bool) -> Tensor:
    """Multi-head attention; all [rows, tokens, channels], the result like ``query``; ``ragged`` as for the kernel."""
    query, key, value = (split_heads(tensor, heads) for tensor in (query, key, value))
    return attend(query, key, value, ragged=ragged).transpose(1, 2).flatten(2)


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """[rows, tokens, channels] -> [rows, heads, tokens, head channels]."""
    return tensor.view(*tensor.shape[:2], heads, -1).transpose(1, 2)


class LayerProcessor:
    """Attention of one layer; see :class:`AttentionCall` for what may be added to it."""

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
        if self.layer.is_self:
            attended = self._self_attention(attn, hidden_states, call)
        else:
            attended = self._cross_attention(attn, hidden_states, encoder_hidden_states, call)
        output: Tensor = attn.to_out[1](attn.to_out[0](attended))
        if self.layer.injected_slot is not None and call.exchange is not None:
            call.exchange.inject(self.layer, output)
        return output

    def _self_attention(self, attn: Attention, hidden_states: Tensor, call: AttentionCall) -> Tensor:
        query: Tensor = attn.to_q(hidden_states)
        if self.layer.shared_slot is not None:
            query = self._blended(query, call)
        key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        if self.layer.shared_slot is not None and call.exchange is not None:
            return call.exchange.attend(attn, self.layer, hidden_states, query, key, value)
        return attend_tokens(query, key, value, attn.heads, ragged=False)

    def _blended(self, query: Tensor, call: AttentionCall) -> Tensor:
        if call.captured is not None:
            call.captured[self.layer.name] = query
            if self.layer.is_last_shared:
                raise QueriesComplete
        if call.vanilla is not None:
            return torch.lerp(query, call.vanilla[self.layer.name], call.blend)
        return query

    def _cross_attention(
        self, attn: Attention, hidden_states: Tensor, text: Tensor | None, call: AttentionCall
    ) -> Tensor:
        """With keys and values that are computed once for all timesteps."""
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        if self.layer.name not in call.text_keys:
            key, value = attn.to_k(text), attn.to_v(text)
            call.text_keys[self.layer.name] = (split_heads(key, attn.heads), split_heads(value, attn.heads))
        keys, values = call.text_keys[self.layer.name]
        if call.maps is not None and self.layer.makes_maps:
            call.maps.add(query, keys)
        return attend(query, keys, values, ragged=False).transpose(1, 2).flatten(2)
