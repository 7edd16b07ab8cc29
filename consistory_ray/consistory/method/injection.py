"""Feature injection (section 3.4 of the paper): a token's self-attention output drawn towards its source's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from consistory_ray.consistory.method.compiling import varying
from consistory_ray.consistory.method.correspondence import Matches, match
from consistory_ray.consistory.method.layout import Layer


def _drawn(target: Tensor, source: Tensor, gate: Tensor, alpha: float) -> Tensor:
    return torch.where(gate[..., None], torch.lerp(target, source, alpha), target)


class AnchorInjection:
    """Injection between anchors, in their order: each reads what the earlier ones have already written.

    Args:
        features: [anchors, tokens, channels] of length one.
        masks: [anchors, tokens] bool, pass 1's final ones.
        alpha: share of the source.
        led: whether each anchor's sources are in the earlier ones only, rather than in all others.
        record: receives (layer, injected features at the anchors' mask tokens [mask tokens, channels]).
    """

    def __init__(
        self,
        features: Tensor,
        masks: Tensor,
        alpha: float,
        record: Callable[[Layer, Tensor], None] | None = None,
        *,
        led: bool = False,
    ) -> None:
        anchors, tokens, _ = features.shape
        self.subject = masks.flatten().nonzero()[:, 0]
        owner = self.subject // tokens
        flat = features.flatten(0, 1)
        self.matches: list[Matches] = []
        self._sources: list[Tensor] = []
        for anchor in range(anchors):
            others = self.subject[owner < anchor if led else owner != anchor]
            found = match(features[anchor, None], masks[anchor, None], flat[others])
            self.matches.append(found)
            self._sources.append(others[found.index[0]] if len(others) else torch.zeros_like(found.index[0]))
        self.alpha = alpha
        self.record = record

    @property
    def sources(self) -> Tensor:
        """[anchors, tokens] int64 source of every token, as anchor * tokens + token."""
        return torch.stack(self._sources)

    def inject(self, layer: Layer, output: Tensor) -> None:
        """Into a layer's output, see :data:`~consistory_ray.consistory.method.attention.Injection`."""
        conditional = output[-len(self._sources) :]
        flat = conditional.flatten(0, 1)  # a view: every write below is seen by the next anchor
        for anchor, (found, sources) in enumerate(zip(self.matches, self._sources, strict=True)):
            conditional[anchor] = _drawn(conditional[anchor], flat[sources], found.gate[0], self.alpha)
        if self.record is not None:
            self.record(layer, flat[self.subject])


class CachedInjection:
    """Injection from the cached anchors into scenes.

    Args:
        matches: of the scenes' tokens with the anchors' cached tokens.
        outputs: [layers, cached tokens, channels], the anchors' injected outputs of one step.
        alpha: share of the source.
    """

    def __init__(self, matches: Matches, outputs: Tensor, alpha: float) -> None:
        self.matches = matches
        self.outputs = outputs
        self.alpha = alpha

    def of(self, layer: Layer) -> LayerInjection | None:
        """Of one layer; None where there is no source."""
        assert layer.injected_slot is not None
        if self.outputs.shape[1] == 0:
            return None
        outputs = varying(self.outputs[layer.injected_slot], 0)
        return LayerInjection(self.matches.index, self.matches.gate, outputs, self.alpha)


@dataclass
class LayerInjection:
    """Injection from one layer's cached outputs; :data:`~consistory_ray.consistory.method.attention.Injection`.

    Attributes:
        index, gate: as in :class:`~consistory_ray.consistory.method.correspondence.Matches`.
        outputs: [cached tokens, channels].
        alpha: share of the source.
    """

    index: Tensor
    gate: Tensor
    outputs: Tensor
    alpha: float

    def __call__(self, output: Tensor) -> None:
        """Draw the conditional half of [rows, tokens, channels] towards its sources, in place."""
        conditional = output[-self.index.shape[0] :]
        conditional.copy_(_drawn(conditional, self.outputs[self.index], self.gate, self.alpha))
