"""What images give and take at one step: between the anchors, and from cached anchors to scenes (sections 3.2, 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from consistory_ray.consistory.method.attention import Attention, Injection, Sharing, attend_tokens
from consistory_ray.consistory.method.attention_kernel import chosen_lengths, padded_length
from consistory_ray.consistory.method.compiling import varying
from consistory_ray.consistory.method.conditioning import Rows
from consistory_ray.consistory.method.injection import AnchorInjection, CachedInjection
from consistory_ray.consistory.method.layout import Layer, Level


class AnchorExchange:
    """Anchors attend to themselves and to each other's kept subject tokens, and leave them to the scenes.

    Args:
        rows: of the anchors.
        kept: level -> per anchor, the indices of the tokens it shares, int64 [kept]; None where nothing is shared.
        injection: between them, or None.
        led: whether each anchor attends to the earlier ones only, rather than to all others.
        record: receives (layer, kept hidden states of all anchors [halves, tokens, channels]); None to keep none.
        weight: of others' tokens in attention, that of own ones being 1.
    """

    compiles = False  # each anchor keeps another number of tokens, and some of them are recorded

    def __init__(
        self,
        rows: Rows,
        kept: Mapping[Level, list[Tensor]] | None,
        injection: AnchorInjection | None,
        record: Callable[[Layer, Tensor], None] | None,
        *,
        led: bool = False,
        weight: float = 1.0,
    ) -> None:
        self.rows = rows
        self.kept = kept
        self.led = led
        self.weight = weight
        self._injection = injection
        self.record = record
        self.shares = kept is not None and rows.images > 1  # a single anchor attends only to itself
        self.injects = injection is not None

    def sharing(self, layer: Layer) -> Sharing | None:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        return None if self.kept is None else partial(self._attend, self.kept, layer)

    def _attend(
        self,
        kept_of: Mapping[Level, list[Tensor]],
        layer: Layer,
        attn: Attention,
        hidden_states: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        assert layer.level is not None
        kept, hidden = kept_of[layer.level], self.rows.by_half(hidden_states)
        if self.record is not None:
            self.record(layer, kept_states(hidden, kept))
        if self.shares:
            return self._attend_each(kept, attn.heads, query, key, value)
        return attend_tokens(query, key, value, attn.heads, ragged=False)

    def _attend_each(self, kept: list[Tensor], heads: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The loop is over anchors, of which there are few; scenes never come here."""
        queries, keys, values = (self.rows.by_half(tensor) for tensor in (query, key, value))
        shared_keys = [keys[:, anchor, index] for anchor, index in enumerate(kept)]
        shared_values = [values[:, anchor, index] for anchor, index in enumerate(kept)]
        outputs = []
        for anchor in range(len(kept)):
            others = companions_of(anchor, len(kept), led=self.led)
            if not others:
                alone = (queries[:, anchor], keys[:, anchor], values[:, anchor])
                outputs.append(attend_tokens(*alone, heads, ragged=False))
                continue
            their_keys, key_mask = weighted(torch.cat([shared_keys[other] for other in others], dim=1), self.weight)
            their_values, _ = padded(torch.cat([shared_values[other] for other in others], dim=1))
            all_keys = torch.cat([keys[:, anchor], their_keys], dim=1)
            all_values = torch.cat([values[:, anchor], their_values], dim=1)
            key_mask = _with_own(key_mask, keys.shape[2])
            own = queries[:, anchor]
            outputs.append(attend_tokens(own, all_keys, all_values, heads, ragged=True, key_mask=key_mask))
        return torch.stack(outputs, dim=1).flatten(0, 1)

    def injection(self, layer: Layer) -> Injection | None:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        return None if self._injection is None else partial(self._injection.inject, layer)


def companions_of(anchor: int, anchors: int, *, led: bool) -> list[int]:
    """Whom an anchor sees: all others, or those before it where the first one leads."""
    return [other for other in range(anchor if led else anchors) if other != anchor]


def kept_states(hidden: Tensor, kept: list[Tensor]) -> Tensor:
    """Those that anchors share of hidden states [halves, anchors, tokens, channels]: [halves, kept, channels]."""
    return torch.cat([hidden[:, anchor, index] for anchor, index in enumerate(kept)], dim=1)


class SceneExchange:
    """Scenes attend to themselves and to the cached tokens of all anchors: the same for every scene of a batch.

    Args:
        rows: of the scenes.
        tokens: level -> cached hidden states of one step, [layers, halves, tokens, channels]; None for no sharing.
        injection: from the anchors, or None.
        weight: of cached tokens in attention, that of own ones being 1.
    """

    compiles = True

    def __init__(
        self,
        rows: Rows,
        tokens: Mapping[Level, Tensor] | None,
        injection: CachedInjection | None = None,
        *,
        weight: float = 1.0,
    ) -> None:
        self.rows = rows
        self.shares = tokens is not None
        self.injects = injection is not None
        self._tokens = {level: weighted(tensor, weight) for level, tensor in (tokens or {}).items()}
        self._injection = injection

    def sharing(self, layer: Layer) -> Sharing | None:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        assert layer.level is not None and layer.shared_slot is not None
        if layer.level not in self._tokens:
            return None
        tokens, key_mask = self._tokens[layer.level]
        return SceneSharing(self.rows.halves, varying(tokens[layer.shared_slot], 1), key_mask)

    def injection(self, layer: Layer) -> Injection | None:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        return None if self._injection is None else self._injection.of(layer)


@dataclass
class SceneSharing:
    """Attention of one layer to a scene's own tokens and to cached ones.

    Attributes:
        halves: of the rows.
        cached: hidden states, [halves, cached tokens, channels].
        key_mask: of the cached tokens, see :func:`~consistory_ray.consistory.method.attention_kernel.attend`.
    """

    halves: int
    cached: Tensor
    key_mask: Tensor | None

    def __call__(self, attn: Attention, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See :data:`~consistory_ray.consistory.method.attention.Sharing`."""
        keys = self.extended(key, attn.to_k(self.cached))
        values = self.extended(value, attn.to_v(self.cached))
        key_mask = _with_own(self.key_mask, key.shape[1])
        return attend_tokens(query, keys, values, attn.heads, ragged=True, key_mask=key_mask)

    def extended(self, own: Tensor, cached: Tensor) -> Tensor:
        """Append each half's cached tokens to all of its rows: [rows, own + cached tokens, channels]."""
        own = torch.unflatten(own, 0, (self.halves, -1))
        return torch.cat([own, cached[:, None].expand(-1, own.shape[1], -1, -1)], dim=2).flatten(0, 1)


def padded(tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """Kept tokens [..., tokens, channels] in the number that :func:`shared_lengths` asks for.

    Returns:
        The tokens, followed by zeros, and which of them there are, bool [tokens]; None for all.
    """
    kept = tokens.shape[-2]
    if chosen_lengths() == "exact":
        return tokens, None
    length = padded_length(kept)
    real = varying(torch.arange(length, device=tokens.device) < kept, 0)
    return F.pad(tokens, (0, 0, 0, length - kept)), real


def weighted(tokens: Tensor, weight: float) -> tuple[Tensor, Tensor | None]:
    """Kept tokens as :func:`padded` gives them, and their key mask: a token of weight w counts like w equal ones.

    That is what ``log w`` on its logits comes to: the softmax has ``exp(logit + log w) = w exp(logit)``.
    """
    tokens, real = padded(tokens)
    if weight == 1:
        return tokens, real
    added = tokens.new_full(tokens.shape[-2:-1], math.log(weight))
    return tokens, varying(added if real is None else added.masked_fill(~real, -math.inf), 0)


def _with_own(key_mask: Tensor | None, own: int) -> Tensor | None:
    """The key mask of a picture's own tokens, all of which are there and count once, and of kept ones."""
    if key_mask is None:
        return None
    ours = key_mask.new_ones(own) if key_mask.dtype == torch.bool else key_mask.new_zeros(own)
    return torch.cat([ours, key_mask])
