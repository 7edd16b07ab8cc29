"""Whom the images of a batch share features with: each other (anchors), cached anchors (scenes), or nobody (vanilla).

The denoising loop asks its companions at every step what the images exchange; it knows nothing else of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from consistory_ray.consistory.cache.codecs import CODECS
from consistory_ray.consistory.cache.copies import copies_of
from consistory_ray.consistory.cache.recorder import CacheRecorder
from consistory_ray.consistory.cache.residence import PlacedCache
from consistory_ray.consistory.method.attention import Exchange
from consistory_ray.consistory.method.conditioning import Rows
from consistory_ray.consistory.method.correspondence import Correspondences, Matches, match, smooth, unit_features
from consistory_ray.consistory.method.dropout import kept_tokens
from consistory_ray.consistory.method.exchange import AnchorExchange, SceneExchange
from consistory_ray.consistory.method.injection import AnchorInjection, CachedInjection
from consistory_ray.consistory.method.layout import Level
from consistory_ray.consistory.method.masks import Masks
from consistory_ray.consistory.method.request import Request
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.consistory.method.tap import Tap


class Companions:
    """Nobody: plain diffusion. Base of the other two.

    Args:
        request: what is rendered.

    Attributes:
        needs_masks: whether the images' own masks are needed during the passes, not only at the end of pass 1.
        all_or_nothing: whether images are of no use without the others of their batch.
    """

    needs_masks = False
    all_or_nothing = False

    def __init__(self, request: Request) -> None:
        self.request = request

    def exchange(
        self, at: Pass, masks: Masks | None, rows: Rows | None = None, *, injects: bool = True
    ) -> Exchange | None:
        """What the images exchange at a step; None for nothing.

        Args:
            at: the step.
            masks: theirs that are in force.
            rows: of the call, all of the request's if None.
            injects: whether features are injected, if they are at this step.
        """
        return None

    def prepare_injection(self, features: Tensor, masks: Masks, source: Pass | None = None) -> Correspondences | None:
        """Find correspondences.

        Args:
            features: smoothed features, [images, channels, rows, columns].
            masks: of the images.
            source: in whose features of the anchors; None for those of the DIFT step.

        Returns:
            What was found.
        """
        return None

    def tap(self, at: Pass) -> Tap | None:
        """What is to be shown the features of a step, besides those of the DIFT step; None for nothing."""
        return None

    def end_step(self, at: Pass) -> None:
        """A step of a pass is over."""


class LiveAnchors(Companions):
    """Anchors, which see each other, and whose features are recorded for the scenes.

    Their seeds decide which mask tokens each of them shares, whatever else is rendered.
    """

    all_or_nothing = True

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.needs_masks = bool(request.plan.shared)
        self.scenes = request.scenes or request.plan
        copies = copies_of(request.conditioning.text.device)
        self._cache = CacheRecorder(request.levels, CODECS[request.settings.cache_codec], copies)
        self._injection: AnchorInjection | None = None
        self._features: Tensor | None = None
        self._live: dict[Pass, Tensor] = {}

    def exchange(
        self, at: Pass, masks: Masks | None, rows: Rows | None = None, *, injects: bool = True
    ) -> Exchange | None:
        """See :class:`Companions`."""
        plan = self.request.plan
        kept = self._kept(at, masks) if at.step in plan.shared and masks is not None else None
        injection = self._injection if at.number == 2 and at.step in plan.injected else None
        if kept is None and injection is None:
            return None
        record = self._cache.add_shared if self._read_by_scenes(at) else None
        settings = self.request.settings
        weight = settings.anchor_weight
        return AnchorExchange(self.request.rows, kept, injection, record, led=settings.led_anchors, weight=weight)

    def _read_by_scenes(self, at: Pass) -> bool:
        return at in self.scenes.reads

    def _kept(self, at: Pass, masks: Masks) -> dict[Level, list[Tensor]]:
        probability, seeds = self.request.settings.mask_dropout, self.request.batch.seeds
        levels, device = self.request.levels.names, self.request.conditioning.text.device
        on_host = torch.cat([masks[level] for level in levels], dim=1).cpu()  # the only wait for the device
        parts = torch.split(on_host, [masks[level].shape[1] for level in levels], dim=1)
        kept = {
            level: kept_tokens(probability, part, seeds, at, level) for level, part in zip(levels, parts, strict=True)
        }
        for level, indices in kept.items() if self._read_by_scenes(at) else ():
            self._cache.add_positions(level, indices, self.request.grids[level].tokens)
        return {level: [index.to(device, non_blocking=True) for index in each] for level, each in kept.items()}

    def tap(self, at: Pass) -> Tap | None:
        """See :class:`Companions`: features of the steps that scenes will look up live."""
        if at not in self.scenes.live_features:
            return None
        rows = self.request.rows
        return lambda features: self._live.update({at: smooth(rows.conditional(features))})

    def prepare_injection(self, features: Tensor, masks: Masks, source: Pass | None = None) -> Correspondences | None:
        """See :class:`Companions`."""
        level, settings = self.request.levels.features, self.request.settings
        unit = unit_features(features, self.request.grids[level])
        alpha, led = settings.injection_alpha, settings.led_anchors
        self._injection = AnchorInjection(unit, masks[level], alpha, self._cache.add_injected, led=led)
        self._features = unit.flatten(0, 1)[self._injection.subject]
        distance = torch.cat([each.distance for each in self._injection.matches])
        gate = torch.cat([each.gate for each in self._injection.matches])
        return Correspondences(self._injection.sources, distance, gate)

    def end_step(self, at: Pass) -> None:
        """See :class:`Companions`."""
        self._cache.end_step(at)

    def recorded(self, masks: Masks, dtype: torch.dtype) -> dict[str, Tensor]:
        """The anchor cache's tensors, once both passes are over."""
        level = self.request.levels.features
        subject = masks[level].flatten().nonzero()[:, 0]
        for at, smoothed in self._live.items():
            live = unit_features(smoothed, self.request.grids[level]).flatten(0, 1)[subject]
            self._cache.add_features(at, live.to(dtype))
        return self._cache.finish(masks, None if self._features is None else self._features.to(dtype))


class CachedAnchors(Companions):
    """Scenes, which see their subject's cached anchors and not each other.

    Args:
        request: made with the cache's settings.
        placed: the subject, on the device on which the network computes.
        dtype: in what it computes.
    """

    def __init__(self, request: Request, placed: PlacedCache, dtype: torch.dtype) -> None:
        super().__init__(request)
        self.placed = placed
        self.dtype = dtype
        self._matches: Matches | None = None

    def exchange(
        self, at: Pass, masks: Masks | None, rows: Rows | None = None, *, injects: bool = True
    ) -> Exchange | None:
        """See :class:`Companions`; the scenes' own masks play no part."""
        plan, tokens, injection = self.request.plan, None, None
        rows = rows or self.request.rows
        if at.step in plan.shared:
            shared = self.placed.shared(plan.shared_from(at))
            tokens = {level: tokens.to(self.dtype)[:, -rows.halves :] for level, tokens in shared.items()}
        if injects and self._injects(at) and self._matches is not None:
            outputs = self.placed.injected(at.step).to(self.dtype)
            injection = CachedInjection(self._matches, outputs, self.request.settings.injection_alpha)
        if injects:  # a look ahead jumps, and comes back to what was expected before
            self.placed.expect(self._next_parts(at))
        weight = self.request.settings.anchor_weight
        return SceneExchange(rows, tokens, injection, weight=weight) if tokens or injection else None

    def _injects(self, at: Pass) -> bool:
        plan = self.request.plan
        return at.number == 2 and at.step in plan.injected and at.step in plan.full_calls

    def _next_parts(self, at: Pass) -> list[str]:
        """What of the cache the next step reads that reads anything."""
        plan, cache, parts = self.request.plan, self.placed.cache, list[str]()
        following = plan.after(at)
        while following is not None and not parts:
            if following.step in plan.shared:
                parts.append(cache.shared_part(plan.shared_from(following)))
            if self._injects(following):
                parts.append(cache.injected_part(following.step))
                if plan.first_pass == "live":
                    parts.append(cache.features_part(plan.before(following.step)))
            following = plan.after(following)
        return parts

    def prepare_injection(self, features: Tensor, masks: Masks, source: Pass | None = None) -> Correspondences | None:
        """See :class:`Companions`."""
        level = self.request.levels.features
        unit = unit_features(features, self.request.grids[level])
        self._matches = match(unit, masks[level], self.placed.features(source).to(unit.dtype))
        subject = self.placed.injected_positions
        sources = subject[self._matches.index] if len(subject) else self._matches.index
        return Correspondences(sources, self._matches.distance, self._matches.gate)

    def end_step(self, at: Pass) -> None:
        """See :class:`Companions`."""
        if self.request.plan.after(at) is None:
            self.placed.release()
