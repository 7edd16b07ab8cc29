"""The one denoising loop: passes, the fork between them, query blending and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from consistory_ray.consistory.method.attention import AttentionCall, Queries, TextKeys
from consistory_ray.consistory.method.companions import Companions
from consistory_ray.consistory.method.correspondence import smooth
from consistory_ray.consistory.method.layout import Grid, Level
from consistory_ray.consistory.method.masks import AttentionMaps, Masks
from consistory_ray.consistory.method.steps import StepPlan, nearest_step
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.consistory.models.sdxl import Conditioning, SplitUNet
from consistory_ray.errors import AssetError
from consistory_ray.guards.numerics import NOT_FINITE
from consistory_ray.settings import MethodSettings


@dataclass
class PassState:
    """Where a pass stands before a step.

    Attributes:
        latents: [images, channels, height, width] float32.
        maps: the attention maps so far, or None where no masks are wanted.
        masks: the masks in force, or None before there are any.
        queries: vanilla queries of the coming step, where another pass has already computed them.
    """

    latents: Tensor
    maps: AttentionMaps | None
    masks: Masks | None = None
    queries: Queries | None = None

    def fork(self) -> PassState:
        """A copy that goes its own way from here."""
        return PassState(self.latents, self.maps.fork() if self.maps else None, self.masks)


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
        unet: with the method installed.
        scheduler: DDIM, with its timesteps set.
        settings: guidance scale and DIFT timestep are read from here.
        plan: which step does what.
        grids: level -> token grid of these latents.
        conditioning: of the batch.
        companions: whom the images share features with.
        tick: called after every step.
        trace: filled when given.
    """

    def __init__(
        self,
        unet: SplitUNet,
        scheduler: DDIMScheduler,
        settings: MethodSettings,
        plan: StepPlan,
        grids: Mapping[Level, Grid],
        conditioning: Conditioning,
        companions: Companions,
        tick: Callable[[], None],
        trace: Trace | None,
    ) -> None:
        self.unet = unet
        self.scheduler = scheduler
        self.settings = settings
        self.plan = plan
        self.grids = grids
        self.conditioning = conditioning
        self.companions = companions
        self.tick = tick
        self.trace = trace
        self.timesteps: Sequence[int] = [int(timestep) for timestep in scheduler.timesteps.tolist()]
        self.dift_step = nearest_step(self.timesteps, settings.dift_timestep) if plan.injected else None
        self.text_keys: TextKeys = {}
        self._looked_at = max(1, plan.steps // 10) if plan.fork is None else plan.fork
        self._every_step = companions.needs_masks or (trace is not None and trace.all_masks)

    def sample(self, latents: Tensor, columns: Tensor | None) -> PassResult:
        """Run both passes, or the only one (section 7 of docs/method.md).

        Args:
            latents: [images, channels, height, width], the initial noise.
            columns: which text tokens make the masks (:class:`AttentionMaps`), None for no masks.

        Returns:
            The last pass's latents, and pass 1's final masks.

        Raises:
            AssetError: early on, no image (of anchors: not every image) has finite numbers.
        """
        maps = None if columns is None else AttentionMaps(columns, self.plan.window)
        first = self._run(1, 0, PassState(latents, maps))
        if first.fork is None or first.features is None or first.masks is None or self.plan.fork is None:
            return first
        self.companions.prepare_injection(first.features, first.masks, self.trace)
        second = self._run(2, self.plan.fork, first.fork)
        return PassResult(second.latents, first.masks)

    def _run(self, pass_number: int, first_step: int, state: PassState) -> PassResult:
        result = PassResult(state.latents, None)
        tapped: list[Tensor] = []
        for step in range(first_step, self.plan.steps):
            forks = pass_number == 1 and step == self.plan.fork
            if pass_number == 1 and step == self._looked_at:
                self._refuse_broken(state.latents)
            if forks:
                result.fork = state.fork()
            sharing = self.companions.sharing(pass_number, step, state.masks)
            call = AttentionCall(
                text_keys=self.text_keys,
                maps=state.maps if self._recorded(pass_number, step) else None,
                sharing=sharing,
                recorder=self.companions.recorder(),
                injection=self.companions.injection(step) if pass_number == 2 else None,
            )
            tap = tapped.append if pass_number == 1 and step == self.dift_step else None
            prediction = self._predict(step, state, call, tap)
            if forks and result.fork is not None:
                result.fork.queries = call.vanilla
            state = self._advance(pass_number, step, state, prediction)
            self.companions.end_step(pass_number, step)
            self.tick()
        result.latents = state.latents
        result.features = tapped[0] if tapped else None
        if pass_number == 1 and state.maps is not None:
            result.masks = state.masks if self._every_step else state.maps.masks(self.grids)
        if self.trace is not None and result.features is not None:
            self.trace.dift = result.features.cpu()
        return result

    def _refuse_broken(self, latents: Tensor) -> None:
        """Stop where the rest would be in vain: overflows show in the first steps. One wait for the device."""
        finite = latents.isfinite().flatten(1).all(dim=1)
        if not bool(finite.all() if self.companions.all_or_nothing else finite.any()):
            raise AssetError(NOT_FINITE)

    def _recorded(self, pass_number: int, step: int) -> bool:
        return self._every_step or (pass_number == 1 and step in self.plan.masked)

    def _predict(
        self, step: int, state: PassState, call: AttentionCall, tap: Callable[[Tensor], None] | None
    ) -> Tensor:
        """The model's guided prediction, [images, channels, height, width] float32."""
        conditioning = self.conditioning
        latents = self.scheduler.scale_model_input(state.latents, self.timesteps[step])
        sample = torch.cat([latents] * conditioning.halves).to(conditioning.text.dtype)
        timestep = self.scheduler.timesteps[step]
        weight = self.plan.blend_weight(step) if call.sharing is not None else 0.0
        trunk = None
        if weight and state.queries is not None:
            call.vanilla, state.queries = state.queries, None
        elif weight and call.injection is None:
            # Nothing differs between the two calls before the first `up` self-attention.
            trunk = self.unet.trunk(sample, timestep, conditioning, call)
            call.vanilla = self.unet.vanilla_queries(trunk, self.text_keys, reuse=True)
        elif weight:
            plain = self.unet.trunk(sample, timestep, conditioning, AttentionCall(text_keys=self.text_keys))
            call.vanilla = self.unet.vanilla_queries(plain, self.text_keys)
        call.blend = weight
        if trunk is None:
            trunk = self.unet.trunk(sample, timestep, conditioning, call)
        rows = self.unet.up(trunk, call, self._conditional_tap(tap)).float()
        if conditioning.halves == 1:
            return rows
        unconditional, conditional = rows.chunk(2)
        return unconditional + self.settings.guidance_scale * (conditional - unconditional)

    def _conditional_tap(self, tap: Callable[[Tensor], None] | None) -> Callable[[Tensor], None] | None:
        if tap is None:
            return None
        halves = self.conditioning.halves
        return lambda features: tap(smooth(features.chunk(halves)[-1]))  # a copy, as FreeU overwrites its input

    def _advance(self, pass_number: int, step: int, state: PassState, prediction: Tensor) -> PassState:
        latents = self.scheduler.step(prediction, self.timesteps[step], state.latents, return_dict=False)[0]
        masks = state.masks
        if state.maps is not None and self._recorded(pass_number, step):
            state.maps.end_step()
            masks = state.maps.masks(self.grids) if self._every_step else None
        if self.trace is not None:
            self._trace_step(self.trace, (pass_number, step), latents, state.maps, masks)
        return PassState(latents, state.maps, masks)

    def _trace_step(
        self, trace: Trace, key: tuple[int, int], latents: Tensor, maps: AttentionMaps | None, masks: Masks | None
    ) -> None:
        trace.timesteps = list(self.timesteps)
        trace.latents[key] = latents.cpu()
        if maps is not None and masks is not None:
            trace.maps[key] = maps.mean().cpu()
            trace.masks[key] = {level: mask.cpu() for level, mask in masks.items()}


def initial_latents(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Noise that depends on the seed alone: [images, channels, height, width] float32, drawn on the CPU."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
