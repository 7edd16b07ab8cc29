"""Whom the images of a batch share features with: each other (anchors), cached anchors (scenes), or nobody (vanilla).

The denoising loop asks its companions at every step what the attention layers should do; it knows nothing else of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from consistory_ray.consistory.cache.anchor_cache import AnchorCache, CacheRecorder
from consistory_ray.consistory.method.attention import (
    AnchorSharing,
    CachedSharing,
    Injection,
    Recorder,
    Sharing,
    by_half,
)
from consistory_ray.consistory.method.correspondence import Matches, match, unit_features
from consistory_ray.consistory.method.injection import AnchorInjection, CachedInjection
from consistory_ray.consistory.method.layout import FINE, Grid, Layer, Level
from consistory_ray.consistory.method.masks import Masks
from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.settings import MethodSettings


class Companions:
    """Nobody: plain diffusion. Base of the other two.

    Attributes:
        needs_masks: whether the images' own masks are needed during the passes, not only at the end of pass 1.
        all_or_nothing: whether images are of no use without the others of their batch.
    """

    needs_masks = False
    all_or_nothing = False

    def sharing(self, pass_number: int, step: int, masks: Masks | None) -> Sharing | None:
        """What the images attend to besides themselves at a step, given their masks in force."""
        return None

    def recorder(self) -> Recorder | None:
        """Who keeps the hidden states of the step that :meth:`sharing` was last asked for."""
        return None

    def prepare_injection(self, features: Tensor, masks: Masks, trace: Trace | None) -> None:
        """Find correspondences between the passes.

        Args:
            features: smoothed DIFT features, [images, channels, rows, columns].
            masks: pass 1's final masks.
            trace: to be told the result.
        """

    def injection(self, step: int) -> Injection | None:
        """What is injected at a step of pass 2."""
        return None

    def end_step(self, pass_number: int, step: int) -> None:
        """A step of a pass is over."""


class LiveAnchors(Companions):
    """Anchors, which see each other, and whose features are recorded for the scenes.

    Args:
        settings, plan, grids: of this subject.
        halves: 2 with classifier-free guidance, else 1.
        dropout_seeds: one per anchor; they decide which mask tokens it shares, whatever else is rendered.
    """

    all_or_nothing = True

    def __init__(
        self,
        settings: MethodSettings,
        plan: StepPlan,
        grids: Mapping[Level, Grid],
        halves: int,
        dropout_seeds: Sequence[int],
    ) -> None:
        self.settings = settings
        self.plan = plan
        self.grids = grids
        self.halves = halves
        self.dropout_seeds = dropout_seeds
        self.needs_masks = bool(plan.shared)
        self._cache = CacheRecorder()
        self._kept: dict[Level, list[Tensor]] | None = None
        self._injection: AnchorInjection | None = None
        self._features: Tensor | None = None

    def sharing(self, pass_number: int, step: int, masks: Masks | None) -> Sharing | None:
        """See :class:`Companions`; a single anchor shares with scenes but attends only to itself."""
        self._kept = None
        if step not in self.plan.shared or masks is None:
            return None
        self._kept = {level: self._kept_tokens(pass_number, step, level, masks[level]) for level in self.grids}
        return AnchorSharing(self._kept, self.halves) if len(self.dropout_seeds) > 1 else None

    def _kept_tokens(self, pass_number: int, step: int, level: Level, mask: Tensor) -> list[Tensor]:
        drawn = [
            undropped(self.settings.mask_dropout, mask.shape[1], (seed, pass_number, step, level))
            for seed in self.dropout_seeds
        ]
        kept = mask & torch.stack(drawn).to(mask.device)
        return [row.nonzero()[:, 0] for row in kept]

    def recorder(self) -> Recorder | None:
        """See :class:`Companions`."""
        return self if self._kept is not None else None

    def record_input(self, layer: Layer, hidden_states: Tensor) -> None:
        """See :class:`~consistory_ray.consistory.method.attention.Recorder`."""
        assert self._kept is not None and layer.level is not None
        rows = by_half(hidden_states, self.halves)
        kept = self._kept[layer.level]
        self._cache.add_shared(layer, torch.cat([rows[:, a, index] for a, index in enumerate(kept)], dim=1))

    def prepare_injection(self, features: Tensor, masks: Masks, trace: Trace | None) -> None:
        """See :class:`Companions`."""
        unit = unit_features(features, self.grids[FINE])
        self._injection = AnchorInjection(unit, masks[FINE], self.settings.injection_alpha, self._cache.add_injected)
        self._features = unit.flatten(0, 1)[self._injection.subject]
        if trace is not None:
            found = self._injection.matches
            distance = torch.cat([each.distance for each in found])
            gate = torch.cat([each.gate for each in found])
            _trace_matches(trace, self._injection.sources, distance, gate)

    def injection(self, step: int) -> Injection | None:
        """See :class:`Companions`."""
        return self._injection if step in self.plan.injected else None

    def end_step(self, pass_number: int, step: int) -> None:
        """See :class:`Companions`."""
        self._cache.end_step(pass_number, step)

    def recorded(self, masks: Masks, dtype: torch.dtype) -> dict[str, Tensor]:
        """The anchor cache's tensors, once both passes are over."""
        return self._cache.finish(masks, None if self._features is None else self._features.to(dtype))


class CachedAnchors(Companions):
    """Scenes, which see their subject's cached anchors and not each other.

    Args:
        cache: the subject.
        plan, grids: of the cache's settings.
        device, dtype: where and in what the UNet computes.
    """

    def __init__(
        self,
        cache: AnchorCache,
        plan: StepPlan,
        grids: Mapping[Level, Grid],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.cache = cache
        self.plan = plan
        self.grids = grids
        self.device = device
        self.dtype = dtype
        self._matches: Matches | None = None

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype, non_blocking=True)

    def sharing(self, pass_number: int, step: int, masks: Masks | None) -> Sharing | None:
        """See :class:`Companions`; the scenes' own masks play no part."""
        if step not in self.plan.shared:
            return None
        shared = self.cache.shared(pass_number, step)
        return CachedSharing({level: self._moved(tokens) for level, tokens in shared.items()})

    def prepare_injection(self, features: Tensor, masks: Masks, trace: Trace | None) -> None:
        """See :class:`Companions`."""
        unit = unit_features(features, self.grids[FINE])
        self._matches = match(unit, masks[FINE], self.cache.features.to(self.device, unit.dtype))
        if trace is not None:
            subject = self.cache.tensors[f"mask.{FINE}"].flatten().nonzero()[:, 0].to(self.device)
            sources = subject[self._matches.index] if len(subject) else self._matches.index
            _trace_matches(trace, sources, self._matches.distance, self._matches.gate)

    def injection(self, step: int) -> Injection | None:
        """See :class:`Companions`."""
        if step not in self.plan.injected or self._matches is None:
            return None
        outputs = self._moved(self.cache.injected(step))
        return CachedInjection(self._matches, outputs, self.cache.settings.injection_alpha)


def undropped(probability: float, tokens: int, key: tuple[int, int, int, str]) -> Tensor:
    """Self-attention dropout of one anchor: which of its tokens may be shared, bool [tokens] on the CPU.

    Drawn from the key (the anchor's seed, pass, step, level) alone, never from a draw shaped by a batch.
    """
    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(tokens, generator=generator) >= probability


def _trace_matches(trace: Trace, sources: Tensor, distance: Tensor, gate: Tensor) -> None:
    tokens = sources.shape[1]
    trace.source_anchor, trace.source_token = (sources // tokens).cpu(), (sources % tokens).cpu()
    trace.source_distance, trace.injected = distance.cpu(), gate.cpu()
