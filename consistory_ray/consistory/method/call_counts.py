"""How many calls of the network a picture takes, by its settings alone: what forecasts are made of. Pure: no torch.

The unit is one stock call of SDXL's UNet on a picture with classifier-free guidance. The shares below are FLOPs at 1024
px, counted (``benchmarks/cost.py``); other sizes and models of the architecture differ little in them.
"""

from __future__ import annotations

import functools

from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.settings import MethodSettings

_FULL = 0.992
"""A call in full; what is less than 1 are the text's keys and values, which are made once."""
_SHALLOW = 0.067
"""A call that reuses deep features."""
_QUERIES = 0.481
"""Vanilla queries, beside a call whose trunk they share."""
_SHARED = 0.024
"""What the anchors' tokens add to a call."""
_FEATURES = 0.81
"""A call that ends after its first ``up`` block, where the features are."""


@functools.lru_cache(maxsize=256)
def scene_calls(settings: MethodSettings) -> float:
    """Calls that a scene takes."""
    plan = StepPlan.from_settings(settings)
    calls = sum(_step(plan, step) for step in range(plan.steps))
    calls += _QUERIES * sum(_half(plan, step) for step in plan.blended if step in plan.shared)
    calls += _SHARED * sum(_half(plan, step) for step in plan.shared)
    fork = plan.fork
    if fork is None:
        return calls
    if plan.first_pass == "full":
        calls += sum(_step(plan, step) for step in range(fork, plan.steps))
        calls += _SHARED * sum(_half(plan, step) for step in plan.shared if step >= fork)
    elif plan.first_pass == "lookahead":
        ahead = min(len(settings.lookahead), max(1, sum(step > fork for step in plan.full_calls)))
        calls += ahead * (_FULL + _SHARED)  # at the fork, and all but the last
        calls += _FEATURES / 2  # the last one is of the conditional half
    return calls


def anchor_calls(settings: MethodSettings) -> float:
    """Calls that each anchor takes: nothing is saved on them."""
    return scene_calls(settings.exact)


def _step(plan: StepPlan, step: int) -> float:
    return _half(plan, step) * (_FULL if step in plan.full_calls else _SHALLOW)


def _half(plan: StepPlan, step: int) -> float:
    """Steps without guidance compute one half of two."""
    return 1.0 if step in plan.guided else 0.5
