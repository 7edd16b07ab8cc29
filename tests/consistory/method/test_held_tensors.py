"""What a pass holds on to while it goes on: of the vanilla queries, gigabytes at a large batch, nothing."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.method import sampler
from consistory_ray.consistory.method.attention import Queries
from consistory_ray.consistory.models.split_unet import SplitUNet
from consistory_ray.settings import MethodSettings

SETTINGS = MethodSettings(num_inference_steps=12, height=32, width=32, query_blend_until=0.3)
FORK = 1
WAYS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "lookahead, the fork's call shared": {"first_pass": "lookahead", "injection_window": (0.1, 0.9)},
    "lookahead, the fork's step again": {"first_pass": "lookahead"},
    "live": {"first_pass": "live"},
}


class Watched:
    """Vanilla queries that were computed, and which of them are still there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed: list[weakref.ref[Tensor]] = []
        self.put_aside: list[Tensor] = []
        compute = SplitUNet.vanilla_queries

        def computed(network: SplitUNet, *arguments: Any, **options: Any) -> Queries:
            queries = compute(network, *arguments, **options)
            self.computed += [weakref.ref(query) for query in queries.values()]
            return queries

        def put_aside(tensor: Tensor) -> Tensor:
            self.put_aside.append(tensor.clone())  # on a CPU the copy to the host is the tensor itself
            return self.put_aside[-1]

        monkeypatch.setattr(SplitUNet, "vanilla_queries", computed)
        monkeypatch.setattr(sampler, "to_host", put_aside)

    def there(self, until: int) -> int:
        """How many of the first ones there still are."""
        return sum(query() is not None for query in self.computed[:until])


@pytest.mark.parametrize("way", WAYS)
def test_vanilla_queries_are_let_go_of_when_their_step_is_over(
    way: str, pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.replace(**WAYS[way])
    cache = pipe.create_subject(
        ["a cat", "the red cat"], ["cat"], [1, 2], settings=settings, output_type="latent"
    ).cache
    expected = pipe.render(["a cat in space"], cache, [3], output_type="latent").images
    watched, before, held = Watched(monkeypatch), 0, dict[int, int]()

    def look(done: int, of: int) -> None:
        nonlocal before
        held[done] = watched.there(before)
        if way == "lookahead, the fork's call shared" and done == FORK + 1:
            held[done] = watched.there(len(watched.computed))
        before = len(watched.computed)

    found = pipe.render(["a cat in space"], cache, [3], progress=look, output_type="latent").images
    assert torch.equal(found, expected) and watched.computed
    assert not any(held.values()), f"queries of earlier steps that are still there after each step: {held}"
    assert bool(watched.put_aside) == (way == "full")
