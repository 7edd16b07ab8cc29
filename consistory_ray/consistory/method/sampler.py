"""The one denoising loop: passes, the fork between them, query blending and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from consistory_ray.consistory.method.attention import AttentionCall, Queries, TextKeys
from consistory_ray.consistory.method.backbone import Network, Tap
from consistory_ray.consistory.method.companions import Companions
from consistory_ray.consistory.method.correspondence import smooth
from consistory_ray.consistory.method.latents import Schedule
from consistory_ray.consistory.method.layout import Grid, Level
from consistory_ray.consistory.method.masks import AttentionMaps, Masks
from consistory_ray.consistory.method.request import Request
from consistory_ray.consistory.method.steps import Pass, nearest_step
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.errors import AssetError
from consistory_ray.guards.numerics import NOT_FINITE


@dataclass
class PassState:
    """Where a pass stands before a step.

    Attributes:
        latents: [images, channels, height, width] float32.
        schedule: where the next ones come from.
        maps: the attention maps so far, or None where no masks are wanted.
        masks: the masks in force, or None before there are any.
        queries: vanilla queries of the coming step, where another pass has already computed them.
    """

    latents: Tensor
    schedule: Schedule
    maps: AttentionMaps | None
    masks: Masks | None = None
    queries: Queries | None = None

    def fork(self) -> PassState:
        """A copy that goes its own way from here."""
        return PassState(self.latents, self.schedule.fork(), self.maps.fork() if self.maps else None, self.masks)


@dataclass
class PassResult:
    """What a pass leaves.

    Attributes:
        latents: final ones, [images, channels, height, width] float32.
        masks: final ones, or None where none were made.
        features: smoothed DIFT features, where injection will need them.
        fork: the state from which pass 2 starts.
    """

    latents: Tensor
    masks: Masks | None
    features: Tensor | None = None
    fork: PassState | None = None

    @classmethod
    def given_up(cls, latents: Tensor, grids: Mapping[Level, Grid], *, masked: bool) -> PassResult:
        """Of images that came to nothing: latents that are not finite, and empty masks where masks were wanted."""
        masks = {level: torch.zeros(len(latents), grid.tokens, dtype=torch.bool) for level, grid in grids.items()}
        return cls(torch.full_like(latents, torch.nan), masks if masked else None)


class Sampler:
    """Denoises one batch, in one or two passes.

    Args:
        network: with the method installed.
        schedule: where latents come from, at its beginning.
        request: what is rendered.
        companions: whom the images share features with.
        tick: called after every step.
        trace: filled when given.
    """

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        request: Request,
        companions: Companions,
        tick: Callable[[], None] = lambda: None,
        trace: Trace | None = None,
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.request = request
        self.plan = request.plan
        self.companions = companions
        self.tick = tick
        self.trace = trace
        settings = request.settings
        self.dift_step = nearest_step(schedule.timesteps, settings.dift_timestep) if self.plan.injected else None
        self.text_keys: TextKeys = {}
        self._looked_at = max(1, self.plan.steps // 10) if self.plan.fork is None else self.plan.fork
        self._every_step = companions.needs_masks or (trace is not None and trace.all_masks)

    def sample(self) -> PassResult:
        """Run both passes, or the only one (sections 3.1 to 3.4).

        Returns:
            The last pass's latents, and pass 1's final masks.

        Raises:
            AssetError: early on, no image (of anchors: not every image) has finite numbers.
        """
        request, device = self.request, self.request.conditioning.text.device
        if self.trace is not None:
            self.trace.begin(request, self.schedule.timesteps)
        maps, columns = None, request.batch.columns
        latents = request.batch.noise(None).to(device, torch.float32) * self.schedule.noise_scale
        if columns is not None:
            maps = AttentionMaps(columns.to(device), self.plan.window, request.levels.masks)
        first = self._run(1, 0, PassState(latents, self.schedule, maps))
        if first.fork is None or first.features is None or first.masks is None or self.plan.fork is None:
            return first
        found = self.companions.prepare_injection(first.features, first.masks)
        if self.trace is not None and found is not None:
            self.trace.matched(found)
        second = self._run(2, self.plan.fork, first.fork)
        return PassResult(second.latents, first.masks)

    def _run(self, number: int, first_step: int, state: PassState) -> PassResult:
        result = PassResult(state.latents, None)
        tapped: list[Tensor] = []
        for step in range(first_step, self.plan.steps):
            at = Pass(number, step)
            forks = number == 1 and step == self.plan.fork
            if at == Pass(1, self._looked_at):
                self._refuse_broken(state.latents)
            if forks:
                result.fork = state.fork()
            call = AttentionCall(
                text_keys=self.text_keys,
                maps=state.maps if self._recorded(at) else None,
                exchange=self.companions.exchange(at, state.masks),
            )
            tap = self._tap(tapped) if number == 1 and step == self.dift_step else None
            prediction = self._predict(step, state, call, tap)
            if forks and result.fork is not None:
                result.fork.queries = call.vanilla
            state = self._advance(at, state, prediction)
            self.companions.end_step(at)
            self.tick()
        result.latents = state.latents
        result.features = tapped[0] if tapped else None
        if number == 1 and state.maps is not None:
            result.masks = state.masks if self._every_step else state.maps.masks(self.request.grids)
        if self.trace is not None and result.features is not None:
            self.trace.dift = result.features.cpu()
        return result

    def _refuse_broken(self, latents: Tensor) -> None:
        """Stop where the rest would be in vain: overflows show in the first steps. One wait for the device."""
        finite = latents.isfinite().flatten(1).all(dim=1)
        if not bool(finite.all() if self.companions.all_or_nothing else finite.any()):
            raise AssetError(NOT_FINITE)

    def _recorded(self, at: Pass) -> bool:
        return self._every_step or (at.number == 1 and at.step in self.plan.masked)

    def _predict(self, step: int, state: PassState, call: AttentionCall, tap: Tap | None) -> Tensor:
        """The model's guided prediction, [images, channels, height, width] float32."""
        conditioning, network = self.request.conditioning, self.network
        latents, timestep = state.schedule.model_input(state.latents, step)
        sample = torch.cat([latents] * conditioning.rows.halves).to(conditioning.text.dtype)
        additions = self.request.additions
        residuals = additions and additions(sample, timestep, conditioning, step, self.plan.steps)

        def begin(call: AttentionCall) -> Any:
            trunk = network.begin(sample, timestep, conditioning, call)
            return trunk if residuals is None else trunk.plus(residuals)

        exchange = call.exchange
        weight = self.plan.blend_weight(step) if exchange is not None and exchange.shares else 0.0
        trunk = None
        if weight and state.queries is not None:
            call.vanilla, state.queries = state.queries, None
        elif weight and exchange is not None and not exchange.injects:
            # Nothing differs between the two calls before the first layer that shares.
            trunk = begin(call)
            call.vanilla = network.vanilla_queries(trunk, self.text_keys, reuse=True)
        elif weight:
            call.vanilla = network.vanilla_queries(begin(AttentionCall(text_keys=self.text_keys)), self.text_keys)
        call.blend = weight
        if trunk is None:
            trunk = begin(call)
        rows = network.finish(trunk, call, tap).float()
        if conditioning.rows.halves == 1:
            return rows
        unconditional, conditional = rows.chunk(2)
        return unconditional + self.request.settings.guidance_scale * (conditional - unconditional)

    def _tap(self, tapped: list[Tensor]) -> Tap:
        rows = self.request.rows
        return lambda features: tapped.append(smooth(rows.conditional(features)))  # a copy, as a tap has to make

    def _advance(self, at: Pass, state: PassState, prediction: Tensor) -> PassState:
        latents = state.schedule.advance(prediction, state.latents, at.step, self.request.batch.noise)
        masks = state.masks
        if state.maps is not None and self._recorded(at):
            state.maps.end_step()
            masks = state.maps.masks(self.request.grids) if self._every_step else None
        if self.trace is not None:
            maps = state.maps.mean() if state.maps is not None and masks is not None else None
            self.trace.stepped(at, latents, maps, masks)
        return PassState(latents, state.schedule, state.maps, masks)
