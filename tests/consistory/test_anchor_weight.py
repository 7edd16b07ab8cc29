"""The anchors' weight: a token of weight 2 is what two equal ones come to, in anchors and in scenes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.method import exchange
from consistory_ray.consistory.method.attention_kernel import attend, shared_lengths
from consistory_ray.errors import InputError
from consistory_ray.settings import MethodSettings

ANCHORS = ["a photo of a cat in the garden", "a cat on the beach"]
QUICK: dict[str, Any] = {"num_inference_steps": 6, "mask_dropout": 0.5}


def rendered(pipe: ConsiStoryPipeline, weight: float) -> tuple[Tensor, Tensor]:
    """Latents of two anchors and of a scene."""
    made: Any = pipe.create_subject(ANCHORS, "cat", [1, 2], output_type="latent", anchor_weight=weight, **QUICK)
    scene: Any = pipe.render(["a cat in space"], made, [3], output_type="latent")
    return made.images, scene.images


@pytest.mark.parametrize("lengths", ["exact", "bucketed"])
def test_twice_the_weight_is_every_token_twice(
    pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch, lengths: Any
) -> None:
    with shared_lengths(lengths):
        weighted = rendered(pipe, 2.0)
    plain, companions, init = rendered(pipe, 1.0), exchange.companions_of, exchange.SceneExchange.__init__

    def with_twice_the_tokens(self: Any, rows: Any, tokens: Any, *more: Any, **named: Any) -> None:
        twice = tokens and {level: torch.cat([one] * 2, dim=-2) for level, one in tokens.items()}
        init(self, rows, twice, *more, **named)

    monkeypatch.setattr(exchange, "companions_of", lambda *of, led: companions(*of, led=led) * 2)
    monkeypatch.setattr(exchange.SceneExchange, "__init__", with_twice_the_tokens)
    for ours, theirs, without in zip(weighted, rendered(pipe, 1.0), plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
        assert (ours - without).abs().max() > 0.01, "it makes no difference"


def test_attention_with_weights_is_that_of_repeated_keys() -> None:
    query, own, kept = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 20, 8), torch.randn(2, 3, 7, 8)
    repeated = torch.cat([own, *[kept] * 3], dim=2)
    expected = attend(query, repeated, repeated, ragged=True)
    with shared_lengths("bucketed"):
        tokens, key_mask = exchange.weighted(kept, 3.0)
    assert tokens.shape[2] == 64 and key_mask is not None
    keys = torch.cat([own, tokens], dim=2)
    mask = torch.cat([key_mask.new_zeros(20), key_mask])
    torch.testing.assert_close(attend(query, keys, keys, ragged=True, key_mask=mask), expected)


def test_weight_one_is_the_papers_and_keeps_every_id() -> None:
    paper = MethodSettings()
    assert paper.anchor_weight == 1 and paper.replace(anchor_weight=1.0).digest() == paper.digest()
    assert "anchor_weight" not in paper.to_dict() and exchange.weighted(torch.ones(3, 2), 1.0)[1] is None
    assert paper.replace(anchor_weight=2.0).digest() != paper.digest()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_none_is_refused(pipe: ConsiStoryPipeline, weight: float) -> None:
    with pytest.raises(InputError, match="anchor_weight"):
        pipe.create_subject(ANCHORS, "cat", [1, 2], anchor_weight=weight, **QUICK)
