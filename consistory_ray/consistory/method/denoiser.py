"""One step of denoising: a call of the network with query blending and guidance, and what follows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from consistory_ray.consistory.method.attention import AttentionCall, Queries, TextKeys
from consistory_ray.consistory.method.backbone import Network
from consistory_ray.consistory.method.companions import Companions
from consistory_ray.consistory.method.conditioning import Conditioning
from consistory_ray.consistory.method.correspondence import smooth
from consistory_ray.consistory.method.deep_reuse import Deep, shallow_prediction
from consistory_ray.consistory.method.latents import Schedule
from consistory_ray.consistory.method.layout import Grid, Level
from consistory_ray.consistory.method.masks import AttentionMaps, Masks
from consistory_ray.consistory.method.request import Request
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.consistory.method.tap import Tap
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.errors import AssetError
from consistory_ray.guards.numerics import NOT_FINITE

StepEnd: TypeAlias = Callable[[int, float, Tensor], Tensor]
"""Sees a step, its timestep and the latents after it, [images, channels, height, width] float32; returns those that the
next step goes on from."""


@dataclass
class PassState:
    """Where a pass stands before a step.

    Attributes:
        latents: [images, channels, height, width] float32.
        schedule: where the next ones come from.
        maps: the attention maps so far, or None where no masks are wanted.
        masks: the masks in force, or None before there are any.
        queries: vanilla queries of the coming step, where another pass has already computed them.
        deep: what the last full call left for calls that reuse it, or None.
    """

    latents: Tensor
    schedule: Schedule
    maps: AttentionMaps | None
    masks: Masks | None = None
    queries: Queries | None = None
    deep: Deep | None = None

    def fork(self) -> PassState:
        """A copy that goes its own way from here."""
        maps = self.maps.fork() if self.maps else None
        return PassState(self.latents, self.schedule.fork(), maps, self.masks, deep=self.deep)


@dataclass
class PassResult:
    """What a pass leaves.

    Attributes:
        latents: final ones, [images, channels, height, width] float32.
        masks: final ones, or None where none were made.
        features: smoothed DIFT features, where injection needs them.
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

    def first(self, count: int) -> PassResult:
        """What it leaves of the first images alone."""
        masks = None if self.masks is None else {level: mask[:count] for level, mask in self.masks.items()}
        return PassResult(self.latents[:count], masks)


class Denoiser:
    """What denoising a batch is made of; :class:`~consistory_ray.consistory.method.sampler.Sampler` puts it together.

    Args:
        network: with the method installed.
        schedule: where latents come from, at its beginning.
        request: what is rendered.
        companions: whom the images share features with.
        tick: called after every step.
        trace: filled when given.
        step_end: called after every step that leads to the pictures (``StepPlan.leads_on``).
    """

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        request: Request,
        companions: Companions,
        tick: Callable[[], None] = lambda: None,
        trace: Trace | None = None,
        step_end: StepEnd | None = None,
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.request = request
        self.plan = request.plan
        self.companions = companions
        self.tick = tick
        self.trace = trace
        self.step_end = step_end
        self.text_keys: dict[int, TextKeys] = {1: {}, 2: {}}
        self._half: Conditioning | None = None
        self.every_step = companions.needs_masks or (trace is not None and trace.all_masks)

    def nearest_full_call(self, timestep: int, after: int = -1) -> int:
        """The step nearest to a timestep, after another step, among those whose call is made in full."""
        return self.plan.nearest_call(self.schedule.timesteps, timestep, after)

    def refuse_broken(self, latents: Tensor) -> None:
        """Stop where the rest would be in vain: overflows show in the first steps. One wait for the device."""
        finite = latents.isfinite().flatten(1).all(dim=1)
        if not bool(finite.all() if self.companions.all_or_nothing else finite.any()):
            raise AssetError(NOT_FINITE)

    def go(self, number: int, steps: range, state: PassState) -> PassState:
        """Some steps of a pass, one after the other, without attention maps."""
        for step in steps:
            at = Pass(number, step)
            state = self.advance(at, state, self.predict(at, state, self.call(at, state)), None)
        return state

    def match(self, features: Tensor, masks: Masks, source: Pass | None = None) -> None:
        """Find what will be injected: see :meth:`Companions.prepare_injection`."""
        found = self.companions.prepare_injection(features, masks, source)
        if self.trace is not None and found is not None:
            self.trace.matched(found)

    def rows_at(self, step: int) -> Conditioning:
        """What the rows of a step are conditioned on: the conditional half alone where guidance is left out."""
        if step in self.plan.guided:
            return self.request.conditioning
        return self.conditional

    @property
    def conditional(self) -> Conditioning:
        """Of the conditional half."""
        if self._half is None:
            conditioning = self.request.conditioning
            self._half = conditioning if conditioning.rows.halves == 1 else conditioning.conditional()
        return self._half

    def call(
        self,
        at: Pass,
        state: PassState,
        maps: AttentionMaps | None = None,
        conditioning: Conditioning | None = None,
        *,
        injects: bool = True,
    ) -> AttentionCall:
        """What the attention layers do at a step.

        Args:
            at: the step.
            state: before it.
            maps: receives attention maps.
            conditioning: of the rows, those of the step if None.
            injects: whether features are injected, if they are at this step.
        """
        rows = (conditioning or self.rows_at(at.step)).rows
        exchange = self.companions.exchange(at, state.masks, rows, injects=injects)
        return AttentionCall(text_keys=self.text_keys[rows.halves], maps=maps, exchange=exchange)

    def predict(self, at: Pass, state: PassState, call: AttentionCall, tap: Tap | None = None) -> Tensor:
        """The model's guided prediction, [images, channels, height, width] float32."""
        step, network = at.step, self.network
        conditioning = self.rows_at(step)
        sample, timestep = self.model_input(state, step, conditioning)
        if step not in self.plan.full_calls and state.deep is not None:
            return self.guided(shallow_prediction(network, sample, timestep, conditioning, state.deep), conditioning)
        residuals = self.residuals(sample, timestep, conditioning, step)
        keep = Deep(residuals, conditioning.rows) if self._reused_after(step) else None

        def begin(call: AttentionCall) -> Any:
            trunk = network.begin(sample, timestep, conditioning, call)
            return trunk if residuals is None else trunk.plus(residuals)

        exchange = call.exchange
        weight = self.plan.blend_weight(step) if exchange is not None and exchange.shares else 0.0
        trunk = None
        if weight and state.queries is not None:
            call.vanilla, state.queries = _taken_up(state.queries, sample.device), None
        elif weight and exchange is not None and not exchange.injects:
            # Nothing differs between the two calls before the first layer that shares.
            trunk = begin(call)
            call.vanilla = network.vanilla_queries(trunk, call.text_keys, reuse=True)
        elif weight:
            call.vanilla = network.vanilla_queries(begin(AttentionCall(text_keys=call.text_keys)), call.text_keys)
        call.blend = weight
        if trunk is None:
            trunk = begin(call)
        rows = network.finish(trunk, call, tap, keep=None if keep is None else keep.put)
        if keep is not None:
            state.deep = keep
        return self.guided(rows, conditioning)

    def model_input(self, state: PassState, step: int, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """What the network is shown at a step, for all rows, and the timestep."""
        latents, timestep = state.schedule.model_input(state.latents, step)
        return torch.cat([latents] * conditioning.rows.halves).to(conditioning.text.dtype), timestep

    def residuals(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning, step: int) -> Any:
        """What is added to a trunk, None for nothing."""
        additions = self.request.additions
        return additions and additions(sample, timestep, conditioning, step, self.plan.steps)

    def guided(self, rows: Tensor, conditioning: Conditioning) -> Tensor:
        """Classifier-free guidance on the network's prediction, in float32."""
        rows = rows.float()
        if conditioning.rows.halves == 1:
            return rows
        settings = self.request.settings
        unconditional, conditional = rows.chunk(2)
        prediction = unconditional + settings.guidance_scale * (conditional - unconditional)
        return rescaled(prediction, conditional, settings.guidance_rescale)

    def _reused_after(self, step: int) -> bool:
        """Whether the next call is not made in full."""
        return step + 1 < self.plan.steps and step + 1 not in self.plan.full_calls

    def tap(self, tapped: list[Tensor]) -> Tap:
        """Appends smoothed features of the conditional half."""
        images = self.request.rows.images
        return lambda features: tapped.append(smooth(features[-images:]))  # a copy, as a tap has to make

    def advance(self, at: Pass, state: PassState, prediction: Tensor, maps: AttentionMaps | None) -> PassState:
        """The state after a step, and everybody told of it.

        Args:
            at: the step.
            state: before it.
            prediction: of the model.
            maps: what has received the step's attention maps, if anything has.
        """
        latents = state.schedule.advance(prediction, state.latents, at.step, self.request.batch.noise)
        if self.step_end is not None and self.plan.leads_on(at):
            latents = self.step_end(at.step, state.schedule.timesteps[at.step], latents)
        masks = state.masks
        if maps is not None:
            maps.end_step()
            masks = maps.masks(self.request.grids) if self.every_step else None
        if self.trace is not None:
            mean = maps.mean() if maps is not None and masks is not None else None
            self.trace.stepped(at, latents, mean, masks)
        self.companions.end_step(at)
        self.tick()
        return PassState(latents, state.schedule, state.maps, masks, deep=state.deep)


def rescaled(prediction: Tensor, conditional: Tensor, share: float) -> Tensor:
    """A guided prediction with the deviation that the conditional one has, in part (arXiv 2305.08891, equation 15).

    Guidance widens what is predicted, which shows in models whose first step has no signal at all. Each image is looked
    at for itself.

    Args:
        prediction, conditional: [images, channels, height, width].
        share: of the rescaled prediction; 0 returns the prediction itself.
    """
    if not share:
        return prediction
    dimensions = tuple(range(1, prediction.dim()))
    wanted = conditional.std(dim=dimensions, keepdim=True)
    found = prediction.std(dim=dimensions, keepdim=True)
    return share * prediction * (wanted / found) + (1 - share) * prediction


def put_aside(queries: Queries | None) -> Queries | None:
    """To the host until the fork's step comes again: they are 110 MB a row of SDXL, and many calls come in between."""
    return None if queries is None else {name: to_host(query) for name, query in queries.items()}


def to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned memory that nobody waits for: on the same stream of the device it is whole."""
    return tensor.to("cpu", non_blocking=True)


def _taken_up(queries: Queries, device: torch.device) -> Queries:
    return {name: query.to(device, non_blocking=True) for name, query in queries.items()}
