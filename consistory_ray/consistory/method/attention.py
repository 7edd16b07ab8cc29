"""The attention processor: subject-driven self-attention, query blending, and capture of cross-attention maps.

What the layers do during a call is an :class:`AttentionCall`. Before a part of the network runs, the call is laid out
on that part's layers (:func:`at_work`): each gets a :class:`Task` of its own, tensors and hardly anything else, and
leaves there what it was asked for. That way nothing that a layer reads while it runs tells it from others of its kind,
and one compiled graph (``torch.compile``) serves them all, at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from consistory_ray.consistory.method.attention_kernel import attend
from consistory_ray.consistory.method.layout import Layer
from consistory_ray.consistory.method.masks import AttentionMaps, concept_maps

Attention: TypeAlias = Any
"""An attention module as diffusers has them: ``to_q``, ``to_k``, ``to_v``, ``to_out`` (a projection and a dropout) and
``heads``."""

Queries = dict[str, Tensor]
"""Queries of the sharing layers by layer name: [rows, tokens, channels]."""

TextKeys = dict[str, tuple[Tensor, Tensor]]
"""Cross-attention keys and values by layer name: [rows, text tokens, channels], good for all timesteps."""

Sharing: TypeAlias = Callable[[Attention, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Attention of one layer that shares: of the module, its input, queries, keys and values, all [rows, tokens, channels]
like the result."""

Injection: TypeAlias = Callable[[Tensor], None]
"""Mixes source features into one self-attention's projected output [rows, tokens, channels], in place."""


class Exchange(Protocol):
    """What images give and take at one step, by way of their self-attention.

    Attributes:
        shares: whether they attend to tokens of others; queries are blended only then.
        injects: whether features are injected.
        compiles: whether layers differ from each other, and steps from steps, in tensors only.
    """

    @property
    def shares(self) -> bool: ...
    @property
    def injects(self) -> bool: ...
    @property
    def compiles(self) -> bool: ...

    def sharing(self, layer: Layer) -> Sharing | None:
        """What a layer with a slot for it does in place of plain self-attention."""
        ...

    def injection(self, layer: Layer) -> Injection | None:
        """What happens to the output of a layer with a slot for it."""
        ...


@dataclass
class AttentionCall:
    """What the attention layers do during one call of the network.

    Attributes:
        text_keys: cross-attention keys and values, filled by the first call that needs them.
        maps: receives the concept tokens' maps, or None.
        exchange: what is done besides plain self-attention, or None.
        captured: receives the sharing layers' queries; None for an ordinary call.
        vanilla: the queries to blend with, or None; ``blend`` is their share v.
    """

    text_keys: TextKeys = field(default_factory=dict)
    maps: AttentionMaps | None = None
    exchange: Exchange | None = None
    captured: Queries | None = None
    vanilla: Queries | None = None
    blend: float = 0.0


@dataclass
class Task:
    """What one layer does during a call.

    Attributes:
        sharing, injection: in place of and after plain self-attention, or None.
        columns: for its maps, see :class:`~consistory_ray.consistory.method.masks.AttentionMaps`; None for no maps.
        vanilla: queries to blend with, or None; ``blend`` is their share, a tensor without dimensions.
        captures: whether to leave its queries.

    What it leaves:

    Attributes:
        text: cross-attention keys and values; where they are given the layer takes those.
        query: its queries before they were blended.
        maps: concept maps.
    """

    sharing: Sharing | None = None
    injection: Injection | None = None
    columns: Tensor | None = None
    vanilla: Tensor | None = None
    blend: Tensor | None = None
    captures: bool = False
    text: tuple[Tensor, Tensor] | None = None
    query: Tensor | None = None
    maps: Tensor | None = None


class LayerProcessor:
    """Attention of one layer; see :class:`Task` for what may be added to it."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.is_self = layer.is_self
        self.task = Task()

    def lay_out(self, call: AttentionCall) -> bool:
        """Make the task for a call.

        Returns:
            Whether a compiled graph can do it: the first call with a text leaves its keys.
        """
        layer, exchange = self.layer, call.exchange
        self.task = task = Task(text=call.text_keys.get(layer.name))
        if not layer.is_self:
            if call.maps is not None and layer.makes_maps:
                task.columns = call.maps.columns
            return task.text is not None
        if layer.shared_slot is not None:
            task.captures = call.captured is not None
            if call.vanilla is not None:
                task.vanilla = call.vanilla[layer.name]
                task.blend = torch.full((), call.blend, device=task.vanilla.device)
            task.sharing = exchange.sharing(layer) if exchange is not None else None
        if layer.injected_slot is not None and exchange is not None:
            task.injection = exchange.injection(layer)
        return exchange is None or exchange.compiles or (task.sharing is None and task.injection is None)

    def collect(self, call: AttentionCall) -> None:
        """Hand over what the layer has left."""
        task, self.task = self.task, Task()
        if task.text is not None:
            call.text_keys[self.layer.name] = task.text
        if task.maps is not None and call.maps is not None:
            call.maps.add(task.maps)
        if task.query is not None and call.captured is not None:
            call.captured[self.layer.name] = task.query

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return the projected attention output, [rows, tokens, channels]."""
        if self.is_self:
            attended = self._self_attention(attn, hidden_states)
        else:
            attended = self._cross_attention(attn, hidden_states, encoder_hidden_states)
        output: Tensor = attn.to_out[1](attn.to_out[0](attended))
        if self.task.injection is not None:
            self.task.injection(output)
        return output

    def _self_attention(self, attn: Attention, hidden_states: Tensor) -> Tensor:
        task = self.task
        query: Tensor = attn.to_q(hidden_states)
        if task.captures:
            task.query = query
        if task.vanilla is not None:
            # The weight is a tensor, as it differs from step to step; half precision would round it.
            query = torch.lerp(query.float(), task.vanilla.float(), cast(Tensor, task.blend)).to(query.dtype)
        key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        if task.sharing is not None:
            return task.sharing(attn, hidden_states, query, key, value)
        return attend_tokens(query, key, value, attn.heads, ragged=False)

    def _cross_attention(self, attn: Attention, hidden_states: Tensor, text: Tensor | None) -> Tensor:
        """With keys and values that are computed once for all timesteps."""
        task = self.task
        query: Tensor = attn.to_q(hidden_states)
        if task.text is None:
            task.text = attn.to_k(text), attn.to_v(text)
        key, value = task.text
        if task.columns is not None:
            task.maps = concept_maps(split_heads(query, attn.heads), split_heads(key, attn.heads), task.columns)
        return attend_tokens(query, key, value, attn.heads, ragged=False)


@contextmanager
def at_work(processors: Sequence[LayerProcessor], call: AttentionCall) -> Iterator[bool]:
    """Around the run of some layers, in their order: lays a call out on them, and collects what they leave.

    Yields:
        Whether compiled graphs can run all of them.
    """
    ready = [processor.lay_out(call) for processor in processors]
    try:
        yield all(ready)
    finally:
        for processor in processors:
            processor.collect(call)


def attend_tokens(
    query: Tensor, key: Tensor, value: Tensor, heads: int, *, ragged: bool, key_mask: Tensor | None = None
) -> Tensor:
    """Multi-head attention; all [rows, tokens, channels], the result like ``query``; the rest as for the kernel.

    To compiled graphs it is one operator: the kernel is chosen when it runs.
    """
    if torch.compiler.is_compiling():
        found: Tensor = torch.ops.consistory_ray.attend_tokens(query, key, value, heads, ragged, key_mask)
        return found
    return _attend_tokens(query, key, value, heads, ragged, key_mask)


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """[rows, tokens, channels] -> [rows, heads, tokens, head channels]."""
    heads_apart: Tensor = torch.unflatten(tensor, 2, (heads, -1))
    return heads_apart.transpose(1, 2)


def _attend_tokens(
    query: Tensor, key: Tensor, value: Tensor, heads: int, ragged: bool, key_mask: Tensor | None
) -> Tensor:
    query, key, value = (split_heads(tensor, heads) for tensor in (query, key, value))
    options = {} if key_mask is None else {"key_mask": key_mask}
    return attend(query, key, value, ragged=ragged, **options).transpose(1, 2).flatten(2)


_operator: Any = torch.library.custom_op(
    "consistory_ray::attend_tokens",
    _attend_tokens,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, int heads, bool ragged, Tensor? key_mask) -> Tensor",
)
_operator.register_fake(lambda query, *_: query.new_empty(query.shape))
