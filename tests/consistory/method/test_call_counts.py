"""Calls of the network that settings promise, against what was counted and what the sampler does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.method.call_counts import anchor_calls, scene_calls
from consistory_ray.consistory.method.steps import StepPlan, suffices
from consistory_ray.consistory.models.split_unet import SplitUNet
from consistory_ray.settings import PROFILES, MethodSettings

N = 20


def cost(steps: int = 50, **changes: Any) -> float:
    settings = MethodSettings(num_inference_steps=steps).replace(**changes)
    return scene_calls(settings) / steps


def test_they_are_those_that_were_counted_in_flops() -> None:
    """Of SDXL's UNet at 1024 px: benchmarks/cost.py for exact, the study of look-ahead and deep reuse otherwise."""
    assert cost() == pytest.approx(1.98, abs=0.005)
    studied: dict[str, Any] = {"first_pass": "lookahead", "lookahead": (651, 451, 251)}
    studied |= {"reuse_deep": (0.35, 2), "shared_every": 2}
    assert cost(**studied) == pytest.approx(0.81, abs=0.005)
    assert cost(20, first_pass="live") == pytest.approx(1.064, abs=0.005)
    assert cost(sdsa=False, injection=False) == pytest.approx(0.992)
    assert anchor_calls(MethodSettings(**PROFILES["turbo"])) == scene_calls(MethodSettings())


def test_half_of_a_call_is_saved_without_guidance() -> None:
    plain = {"sdsa": False, "injection": False}
    assert cost(guidance_interval=(0.0, 0.6), **plain) == pytest.approx(0.8 * cost(**plain))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    calls: Counter[str] = Counter()
    for name in ("finish", "shallow", "features"):
        original = getattr(SplitUNet, name)

        def counting(self: SplitUNet, *given: Any, _name: str = name, _call: Any = original, **named: Any) -> Any:
            calls[_name] += 1
            return _call(self, *given, **named)

        monkeypatch.setattr(SplitUNet, name, counting)
    yield calls


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"finish": N + N - 2}),
        ({"reuse_deep": (0.5, 2)}, {"finish": 15 + 13, "shallow": 5 + 5}),
        ({"first_pass": "lookahead"}, {"finish": N + 1 + 2, "features": 1}),
        ({"first_pass": "live", "reuse_deep": (0.5, 2)}, {"finish": 15, "shallow": 5}),
        ({"injection": False}, {"finish": N}),
    ],
)
def test_the_sampler_makes_as_many(
    pipe: ConsiStoryPipeline, counted: Counter[str], settings: dict[str, Any], expected: dict[str, int]
) -> None:
    chosen = MethodSettings(num_inference_steps=N, query_blending=False).replace(**settings)
    made = pipe.create_subject(["a cat in the garden"], "cat", [1], settings=chosen, output_type="latent")
    counted.clear()
    pipe.render(["a cat at night"], made.cache, [2], output_type="latent")
    assert counted == expected
    shared = 0.024 * len([*StepPlan.from_settings(chosen).shared_in(1), *StepPlan.from_settings(chosen).shared_in(2)])
    shared += 0.024 * 2 if "features" in expected else 0
    whole = 0.992 * expected["finish"] + 0.067 * expected.get("shallow", 0) + 0.405 * expected.get("features", 0)
    assert scene_calls(chosen) == pytest.approx(whole + shared)


def test_what_a_cache_suffices_for_is_told_by_plans() -> None:
    exact, fast, turbo = (StepPlan.from_settings(MethodSettings(**PROFILES[name])) for name in PROFILES)
    live = StepPlan.from_settings(MethodSettings(first_pass="live"))
    assert suffices(exact, fast) and suffices(exact, turbo) and not suffices(fast, exact)
    assert not suffices(exact, live) and suffices(live, live)
