"""Live correspondences: each injection step's are found in the features and masks of the step before it.

Nothing is computed beyond the picture's own calls. At their noise levels the features say less of what is where, so
that layouts vary less than with a whole first pass.
"""

from __future__ import annotations

from torch import Tensor

from consistory_ray.consistory.method.denoiser import Denoiser, PassResult, PassState
from consistory_ray.consistory.method.masks import AttentionMaps, Masks
from consistory_ray.consistory.method.steps import Pass


def render(denoiser: Denoiser, state: PassState, fork: int, maps: AttentionMaps) -> PassResult:
    """One pass that looks at what it has just made."""
    plan, tapped = denoiser.plan, list[Tensor]()
    masks: Masks = {}
    sources = {step: plan.before(step) for step in plan.injections}
    watched = set(sources.values())
    last = max((step for step, source in sources.items() if source is not None), default=plan.steps)
    for step in range(plan.steps):
        at = Pass(1 if step < fork else 2, step)
        if step == fork:
            denoiser.refuse_broken(state.latents)
        source = sources.get(step)
        if source is not None:
            masks = maps.masks(denoiser.request.grids)
            denoiser.match(tapped[-1], masks, source)
            tapped.clear()
        recorded = maps if step < last and step in plan.full_calls else None
        tap = denoiser.tap(tapped) if at in watched else None
        prediction = denoiser.predict(at, state, denoiser.call(at, state, recorded), tap)
        state = denoiser.advance(at, state, prediction, recorded)
    return PassResult(state.latents, masks or maps.masks(denoiser.request.grids))
