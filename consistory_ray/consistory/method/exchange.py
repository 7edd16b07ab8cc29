"""What images give and take at one step: between the anchors, and from cached anchors to scenes (sections 3.2, 3.4)."""

from __future__ import annotations

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
    ) -> None:
        self.rows = rows
        self.kept = kept
        self.led = led
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
                own = (queries[:, anchor], keys[:, anchor], values[:, anchor])
                outputs.append(attend_tokens(*own, heads, ragged=False))
                continue
            their_keys, real = padded(torch.cat([shared_keys[other] for other in others], dim=1))
            their_values, _ = padded(torch.cat([shared_values[other] for other in others], dim=1))
            all_keys = torch.cat([keys[:, anchor], their_keys], dim=1)
            all_values = torch.cat([values[:, anchor], their_values], dim=1)
            real = _with_own(real, keys.shape[2])
            outputs.append(attend_tokens(queries[:, anchor], all_keys, all_values, heads, ragged=True, real=real))
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
    """

    compiles = True

    def __init__(
        self, rows: Rows, tokens: Mapping[Level, Tensor] | None, injection: CachedInjection | None = None
    ) -> None:
        self.rows = rows
        self.shares = tokens is not None
        self.injects = injection is not None
        self._tokens = {level: padded(tensor) for level, tensor in (tokens or {}).items()}
        self._injection = injection

    def sharing(self, layer: Layer) -> Sharing | None:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        assert layer.level is not None and layer.shared_slot is not None
        if layer.level not in self._tokens:
            return None
        tokens, real = self._tokens[layer.level]
        return SceneSharing(self.rows.halves, varying(tokens[layer.shared_slot], 1), real)

    def injection(self, layer: Layer) -> Injection | None:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        return None if self._injection is None else self._injection.of(layer)


@dataclass
class SceneSharing:
    """Attention of one layer to a scene's own tokens and to cached ones.

    Attributes:
        halves: of the rows.
        cached: hidden states, [halves, cached tokens, channels].
        real: which of the cached tokens there are, bool [cached tokens]; None for all.
    """

    halves: int
    cached: Tensor
    real: Tensor | None

    def __call__(self, attn: Attention, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See :data:`~consistory_ray.consistory.method.attention.Sharing`."""
        keys = self.extended(key, attn.to_k(self.cached))
        values = self.extended(value, attn.to_v(self.cached))
        real = _with_own(self.real, key.shape[1])
        return attend_tokens(query, keys, values, attn.heads, ragged=True, real=real)

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


def _with_own(real: Tensor | None, own: int) -> Tensor | None:
    """Which of a picture's own tokens, all of them, and kept ones there are."""
    return None if real is None else torch.cat([real.new_ones(own), real])
