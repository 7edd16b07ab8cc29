"""The ways to a picture: the paper's two passes, and what scenes may have in their place.

What is saved on scenes are parts of their own, each of which can be left out: :mod:`lookahead
<consistory_ray.consistory.method.lookahead>` and :mod:`live <consistory_ray.consistory.method.live>` in the place of
pass 1, :mod:`deep reuse <consistory_ray.consistory.method.deep_reuse>` in the place of full calls, and guidance in an
interval (:meth:`~consistory_ray.consistory.method.denoiser.Denoiser.rows_at`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from consistory_ray.consistory.method import live, lookahead
from consistory_ray.consistory.method.denoiser import Denoiser, PassResult, PassState, put_aside
from consistory_ray.consistory.method.masks import AttentionMaps
from consistory_ray.consistory.method.steps import Pass


class Sampler(Denoiser):
    """Denoises one batch, in one or two passes."""

    def sample(self) -> PassResult:
        """Run both passes, or what is in their place (sections 3.1 to 3.4).

        Returns:
            The picture's latents, and the final masks.

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
        state, fork = PassState(latents, self.schedule, maps), self.plan.fork
        if fork is None or maps is None:
            return self._run(1, 0, state)
        if self.plan.first_pass == "lookahead":
            return lookahead.render(self, state, fork, maps)
        if self.plan.first_pass == "live":
            return live.render(self, state, fork, maps)
        return self._two_passes(state, fork)

    def _two_passes(self, state: PassState, fork: int) -> PassResult:
        first = self._run(1, 0, state)
        if first.fork is None or first.features is None or first.masks is None:
            return first
        self.match(first.features, first.masks)
        second = self._run(2, fork, first.fork)
        return PassResult(second.latents, first.masks)

    def _run(self, number: int, first_step: int, state: PassState) -> PassResult:
        result = PassResult(state.latents, None)
        tapped: list[Tensor] = []
        dift_step = self.nearest_full_call(self.request.settings.dift_timestep) if self.plan.injected else None
        looked_at = max(1, self.plan.steps // 10) if self.plan.fork is None else self.plan.fork
        for step in range(first_step, self.plan.steps):
            at = Pass(number, step)
            forks = number == 1 and step == self.plan.fork
            if at == Pass(1, looked_at):
                self.refuse_broken(state.latents)
            if forks:
                result.fork = state.fork()
            maps = state.maps if self._recorded(at) else None
            call = self.call(at, state, maps)
            tap = self.tap(tapped) if number == 1 and step == dift_step else self.companions.tap(at)
            prediction = self.predict(at, state, call, tap)
            if forks and result.fork is not None:
                result.fork.queries = put_aside(call.vanilla)
            state = self.advance(at, state, prediction, maps)
        result.latents = state.latents
        result.features = tapped[0] if tapped else None
        if number == 1 and state.maps is not None:
            result.masks = state.masks if self.every_step else state.maps.masks(self.request.grids)
        if self.trace is not None and result.features is not None:
            self.trace.dift = result.features.cpu()
        return result

    def _recorded(self, at: Pass) -> bool:
        return self.every_step or (at.number == 1 and at.step in self.plan.masked)
