"""Look-ahead: a few calls that jump along the prediction in the place of pass 1 after the fork.

That part of pass 1 gives a scene's mask and features and nothing else. Both can be seen in what the picture is
predicted to become: from the fork's prediction, go by DDIM's formula (arXiv 2010.02502, equation 12) straight to a few
later timesteps, share the anchors' tokens there, and take the masks from the last calls' attention maps and the
features from the last one, which ends after its first ``up`` block and needs the conditional half alone.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from consistory_ray.consistory.method.denoiser import Denoiser, PassResult, PassState, put_aside
from consistory_ray.consistory.method.masks import AttentionMaps, Masks
from consistory_ray.consistory.method.steps import Pass


def render(denoiser: Denoiser, state: PassState, fork: int, maps: AttentionMaps) -> PassResult:
    """One pass with a look ahead at its fork."""
    state = denoiser.go(1, range(fork), state)
    denoiser.refuse_broken(state.latents)
    at = Pass(2, fork)
    ahead = AttentionMaps(maps.columns, denoiser.request.settings.lookahead_maps, maps.level)
    call = denoiser.call(at, state, ahead, injects=False)
    prediction = denoiser.predict(at, state, call)
    state.queries = put_aside(call.vanilla)
    del call  # and with it queries and tokens, of which a device has little room for more than are in use
    ahead.end_step()
    features, masks = look_ahead(denoiser, state, fork, prediction, ahead)
    denoiser.match(features, masks)
    state = denoiser.go(2, range(fork, denoiser.plan.steps), state)  # its first step again, with injection
    return PassResult(state.latents, masks, features)


def look_ahead(
    denoiser: Denoiser, state: PassState, fork: int, prediction: Tensor, maps: AttentionMaps
) -> tuple[Tensor, Masks]:
    """Smoothed features and masks of what the picture is about to become.

    Args:
        denoiser: of the picture.
        state: before the fork's step.
        fork: that step.
        prediction: there, without injection.
        maps: receive the calls' attention maps.
    """
    step, latents, tapped = fork, state.latents, list[Tensor]()
    steps = look_ahead_steps(denoiser, fork)
    for ahead in steps:
        latents = state.schedule.jump(prediction, latents, step, ahead)
        step, there = ahead, replace(state, latents=latents, queries=None, deep=None)
        at = Pass(2, step)
        if step == steps[-1]:
            conditioning = denoiser.conditional
            call = denoiser.call(at, there, maps, conditioning, injects=False)
            sample, timestep = denoiser.model_input(there, step, conditioning)
            residuals = denoiser.residuals(sample, timestep, conditioning, step)
            trunk = denoiser.network.begin(sample, timestep, conditioning, call)
            denoiser.network.features(trunk if residuals is None else trunk.plus(residuals), call, denoiser.tap(tapped))
        else:
            prediction = denoiser.predict(at, there, denoiser.call(at, there, maps, injects=False))
        maps.end_step()
    return tapped[0], maps.masks(denoiser.request.grids)


def look_ahead_steps(denoiser: Denoiser, fork: int) -> list[int]:
    """The full calls nearest to the look-ahead's timesteps, after the fork; where several are the same, once."""
    steps = list[int]()
    for timestep in denoiser.request.settings.lookahead:
        last = steps[-1] if steps else fork
        if last < denoiser.plan.full_calls[-1]:
            found = denoiser.nearest_full_call(timestep, after=fork)
            if found > last:
                steps.append(found)
    return steps or [denoiser.plan.full_calls[-1]]
