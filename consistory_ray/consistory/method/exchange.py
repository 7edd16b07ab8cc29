"""What images give and take at one step: between the anchors, and from cached anchors to scenes (sections 3.2, 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from consistory_ray.consistory.method.attention import Attention, attend_tokens
from consistory_ray.consistory.method.conditioning import Rows
from consistory_ray.consistory.method.injection import AnchorInjection, CachedInjection
from consistory_ray.consistory.method.layout import Layer, Level


class AnchorExchange:
    """Anchors attend to themselves and to each other's kept subject tokens, and leave them to the scenes.

    Args:
        rows: of the anchors.
        kept: level -> per anchor, the indices of the tokens it shares, int64 [kept]; None where nothing is shared.
        injection: between them, or None.
        record: receives (layer, kept hidden states of all anchors [halves, tokens, channels]); None to keep none.
    """

    def __init__(
        self,
        rows: Rows,
        kept: Mapping[Level, list[Tensor]] | None,
        injection: AnchorInjection | None,
        record: Callable[[Layer, Tensor], None] | None,
    ) -> None:
        self.rows = rows
        self.kept = kept
        self.injection = injection
        self.record = record
        self.shares = kept is not None and rows.images > 1  # a single anchor attends only to itself
        self.injects = injection is not None

    def attend(
        self, attn: Attention, layer: Layer, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        if self.kept is not None:
            assert layer.level is not None
            kept, hidden = self.kept[layer.level], self.rows.by_half(hidden_states)
            if self.record is not None:
                self.record(layer, torch.cat([hidden[:, anchor, index] for anchor, index in enumerate(kept)], dim=1))
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
            others = [other for other in range(len(kept)) if other != anchor]
            all_keys = torch.cat([keys[:, anchor], *(shared_keys[other] for other in others)], dim=1)
            all_values = torch.cat([values[:, anchor], *(shared_values[other] for other in others)], dim=1)
            outputs.append(attend_tokens(queries[:, anchor], all_keys, all_values, heads, ragged=True))
        return torch.stack(outputs, dim=1).flatten(0, 1)

    def inject(self, layer: Layer, output: Tensor) -> None:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        if self.injection is not None:
            self.injection.inject(layer, output)


class SceneExchange:
    """Scenes attend to themselves and to the cached tokens of all anchors: the same for every scene of a batch.

    Args:
        rows: of the scenes.
        tokens: level -> cached hidden states of one step, [layers, halves, tokens, channels]; None for no sharing.
        injection: from the anchors, or None.
    """

    def __init__(
        self, rows: Rows, tokens: Mapping[Level, Tensor] | None, injection: CachedInjection | None = None
    ) -> None:
        self.rows = rows
        self.tokens = tokens
        self.injection = injection
        self.shares = tokens is not None
        self.injects = injection is not None

    def attend(
        self, attn: Attention, layer: Layer, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        if self.tokens is None:
            return attend_tokens(query, key, value, attn.heads, ragged=False)
        assert layer.level is not None and layer.shared_slot is not None
        cached = self.tokens[layer.level][layer.shared_slot]
        keys, values = self._extended(key, attn.to_k(cached)), self._extended(value, attn.to_v(cached))
        return attend_tokens(query, keys, values, attn.heads, ragged=True)

    def _extended(self, own: Tensor, cached: Tensor) -> Tensor:
        """Append each half's cached tokens to all of its rows: [rows, own + cached tokens, channels]."""
        own = self.rows.by_half(own)
        return torch.cat([own, cached[:, None].expand(-1, own.shape[1], -1, -1)], dim=2).flatten(0, 1)

    def inject(self, layer: Layer, output: Tensor) -> None:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        if self.injection is not None:
            self.injection.inject(layer, output)
