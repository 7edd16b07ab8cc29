"""The split UNet call against diffusers' own forward, and that the user's model is left as found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from consistory_ray.consistory.method.attention import AttentionCall, Injection, Queries, Sharing
from consistory_ray.consistory.method.conditioning import Conditioning, Rows
from consistory_ray.consistory.method.layout import Layer
from consistory_ray.consistory.models.sdxl_layout import expected_layer_names, level_grids
from consistory_ray.consistory.models.split_unet import SplitUNet, method_installed, unet_layers

FREEU = (0.6, 0.4, 1.1, 1.2)


@pytest.fixture
def unet(diffusers_pipe: StableDiffusionXLPipeline) -> UNet2DConditionModel:
    return diffusers_pipe.unet


def conditioning(rows: int = 2) -> Conditioning:
    draw = torch.Generator().manual_seed(7)
    text, pooled = torch.randn(rows, 16, 40, generator=draw), torch.randn(rows, 24, generator=draw)
    time_ids = torch.tensor([[32.0, 32, 0, 0, 32, 32]]).expand(rows, -1)
    return Conditioning(Rows(2, rows // 2), text, pooled, {"time_ids": time_ids})


def noise(rows: int, height: int, width: int) -> Tensor:
    return torch.randn(rows, 4, height, width, generator=torch.Generator().manual_seed(3))


def stock_forward(unet: UNet2DConditionModel, sample: Tensor, given: Conditioning) -> Tensor:
    added = {"text_embeds": given.pooled, **given.extra}
    return unet(sample, torch.tensor(261), given.text, added_cond_kwargs=added).sample


def split_forward(split: SplitUNet, sample: Tensor, given: Conditioning, call: AttentionCall) -> Tensor:
    return split.finish(split.begin(sample, torch.tensor(261), given, call), call)


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (18, 13), (11, 6)])
@pytest.mark.parametrize("freeu", [None, FREEU])
@torch.no_grad()
def test_both_halves_give_the_stock_forward(
    unet: UNet2DConditionModel, freeu: tuple[float, float, float, float] | None, size: tuple[int, int]
) -> None:
    sample, given = noise(2, *size), conditioning()
    if freeu is not None:
        unet.enable_freeu(*freeu)
    expected = stock_forward(unet, sample, given)
    unet.disable_freeu()
    call = AttentionCall()
    with method_installed(unet, freeu) as split:
        first = split_forward(split, sample, given, call)
        second = split_forward(split, sample, given, call)  # with remembered text keys
    torch.testing.assert_close(first, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(first, second)


@pytest.mark.parametrize("size", [(16, 16), (18, 13)])
@pytest.mark.parametrize("freeu", [None, FREEU])
@torch.no_grad()
def test_with_the_same_processors_it_is_the_stock_forward_bit_for_bit(
    unet: UNet2DConditionModel, freeu: tuple[float, float, float, float] | None, size: tuple[int, int]
) -> None:
    sample, given = noise(2, *size), conditioning()
    added = {"text_embeds": given.pooled, **given.extra}
    with method_installed(unet, freeu) as split:
        found = split_forward(split, sample, given, AttentionCall())
    with method_installed(unet, None):  # for the processors; FreeU is diffusers' own
        if freeu is not None:
            unet.enable_freeu(*freeu)
        expected = unet(sample, torch.tensor(261), given.text, added_cond_kwargs=added).sample
        unet.disable_freeu()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("freeu", [None, FREEU])
@torch.no_grad()
def test_a_reused_trunk_is_not_spoilt(unet: UNet2DConditionModel, freeu: tuple[float, float, float, float]) -> None:
    sample, given = noise(2, 16, 16), conditioning()
    with method_installed(unet, freeu) as split:
        expected = split_forward(split, sample, given, AttentionCall())
        call = AttentionCall()
        trunk = split.begin(sample, torch.tensor(261), given, call)
        queries = split.vanilla_queries(trunk, call.text_keys, reuse=True)
        found = split.finish(trunk, call)
    assert torch.equal(found, expected)
    shared = [layer.name for layer in unet_layers(unet) if layer.shared_slot is not None]
    assert sorted(queries) == sorted(shared)


@torch.no_grad()
def test_blending_with_the_same_queries_changes_nothing(unet: UNet2DConditionModel) -> None:
    sample, given = noise(2, 16, 16), conditioning()
    with method_installed(unet, None) as split:
        call = AttentionCall()
        trunk = split.begin(sample, torch.tensor(261), given, call)
        queries: Queries = split.vanilla_queries(trunk, call.text_keys, reuse=True)
        plain = split.finish(trunk, AttentionCall(), reuse=True)
        blended = split.finish(trunk, AttentionCall(vanilla=queries, blend=0.9), reuse=True)
        changed = {name: query + 1 for name, query in queries.items()}
        moved = split.finish(trunk, AttentionCall(vanilla=changed, blend=0.9))
    torch.testing.assert_close(plain, blended, atol=1e-5, rtol=1e-5)
    assert (moved - plain).abs().max() > 1e-3


def test_layers_are_those_of_the_configuration(unet: UNet2DConditionModel) -> None:
    layers = unet_layers(unet)
    assert sorted(layer.name for layer in layers) == sorted(expected_layer_names(unet.config))
    assert sum(layer.is_last_shared for layer in layers) == 1
    slots = [layer.shared_slot for layer in layers if layer.level == "coarse" and layer.shared_slot is not None]
    assert slots == list(range(4))
    assert [layer.injected_slot for layer in layers if layer.injected_slot is not None] == [0, 1, 2]
    assert {layer.level for layer in layers if layer.name.startswith("mid_block")} == {"coarse"}


@torch.no_grad()
def test_levels_match_the_tokens_that_layers_see(unet: UNet2DConditionModel) -> None:
    grids = level_grids(18, 13)
    seen: dict[str, int] = {}

    class Spy:
        shares = injects = True
        compiles = False

        def sharing(self, layer: Layer) -> Sharing:
            def attend(attn: Any, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                seen[str(layer.level)] = hidden.shape[1]
                return query

            return attend

        def injection(self, layer: Layer) -> Injection:
            return lambda output: seen.update({f"{layer.level} injected": output.shape[1]})

    with method_installed(unet, None) as split:
        split_forward(split, noise(2, 18, 13), conditioning(), AttentionCall(exchange=Spy()))
    assert seen == {level: grid.tokens for level, grid in grids.items()} | {"fine injected": grids["fine"].tokens}


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_found(unet: UNet2DConditionModel, fails: bool) -> None:
    processors = {name: id(processor) for name, processor in unet.attn_processors.items()}
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    unet.down_blocks[1].train()
    try:
        with method_installed(unet, None) as split:
            assert not any(part.training for part in split.unet.modules())
            assert unet.up_blocks[0].s1 is None
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert {name: id(processor) for name, processor in unet.attn_processors.items()} == processors
    assert (unet.up_blocks[0].s1, unet.up_blocks[1].b2) == (0.9, 1.4)
    assert unet.down_blocks[1].training and not unet.down_blocks[0].training and not unet.training
    for block in unet.up_blocks:
        for key in ("s1", "s2", "b1", "b2"):
            delattr(block, key)
    with method_installed(unet, FREEU):
        assert unet.up_blocks[0].s1 == 0.6
    assert not hasattr(unet.up_blocks[0], "s1")
    unet.eval()
