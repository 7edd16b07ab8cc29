"""Which kernel computes which attention: one door for all of them, and a choice that leaves the CPU's numbers alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline
from torch.nn.attention import SDPBackend

import consistory_ray
from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline
from consistory_ray.consistory.method import attention_kernel
from consistory_ray.consistory.method.attention_kernel import (
    LENGTHS_VARIABLE,
    VARIABLE,
    attend,
    check_choices,
    chosen_kernel,
    padded_length,
)
from consistory_ray.consistory.method.attention_packages import PACKAGES
from consistory_ray.errors import InputError

ANCHORS = ["a photo of a cat in the garden", "a cat on the beach"]
QUICK = {"num_inference_steps": 4, "output_type": "latent"}


class Door:
    """Stands in for :func:`attend` and tells what came through."""

    def __init__(self) -> None:
        self.calls: list[tuple[bool, int, int]] = []

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        ragged: bool,
        key_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self.calls.append((ragged, query.shape[2], key.shape[2]))
        return attend(query, key, value, ragged=ragged, key_mask=key_mask)


@pytest.fixture
def subject(pipe: ConsiStoryPipeline) -> AnchorCache:
    return pipe.create_subject(ANCHORS, ["cat"], [1, 2], num_inference_steps=4, output_type="latent").cache


def test_nobody_else_computes_attention() -> None:
    package = Path(consistory_ray.__file__).parent / "consistory"
    callers = {
        path.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Attribute, ast.Name))
        and "scaled_dot_product" in (node.attr if isinstance(node, ast.Attribute) else node.id)
    }
    assert callers == {"attention_kernel.py"}


def test_every_attention_comes_through_and_shared_calls_say_so(
    pipe: ConsiStoryPipeline, subject: AnchorCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = Door()
    monkeypatch.setattr("consistory_ray.consistory.method.attention.attend", door)
    monkeypatch.setattr(F, "scaled_dot_product_attention", _only_from_the_door(F.scaled_dot_product_attention, door))
    for render in (
        lambda: pipe.create_subject(ANCHORS, ["cat"], [1, 2], **QUICK),
        lambda: pipe.render(["a cat in space"], subject, [3], output_type="latent"),
    ):
        door.calls.clear()
        render()
        lengths = {ragged: {(own, keys) for which, own, keys in door.calls if which == ragged} for ragged in (0, 1)}
        assert all(keys in (own, 16) for own, keys in lengths[False]), "own tokens, or the text's"
        assert all(keys >= own for own, keys in lengths[True]) and len({keys for _, keys in lengths[True]}) > 4
    door.calls.clear()
    pipe.render_vanilla(["a cat"], [3], settings=pipe.default_settings.replace(num_inference_steps=2))
    assert door.calls and not any(ragged for ragged, *_ in door.calls)


def _only_from_the_door(original: Any, door: Door) -> Any:
    def checked(query: torch.Tensor, key: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        if query.dim() == 4 and query.shape[2] > 1 and "attn_mask" not in named:  # not the text encoders'
            assert door.calls[-1][1:] == (query.shape[2], key.shape[2])
        found: torch.Tensor = original(query, key, *rest, **named)
        return found

    return checked


@pytest.mark.parametrize(
    ("kernel", "device", "ragged", "expected"),
    [
        ("auto", "cpu", False, None),
        ("auto", "cpu", True, None),
        ("auto", "mps", True, None),
        ("auto", "cuda", False, None),  # constant shapes: cuDNN's plan is made once, and it is the fastest
        ("auto", "cuda", True, [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]),
        ("default", "cuda", True, None),
        ("cudnn", "cuda", True, [SDPBackend.CUDNN_ATTENTION]),
        ("efficient", "cuda", False, [SDPBackend.EFFICIENT_ATTENTION]),
        ("math", "cpu", False, [SDPBackend.MATH]),
    ],
)
def test_what_pytorch_is_restricted_to(
    kernel: Any, device: str, ragged: bool, expected: Sequence[SDPBackend] | None
) -> None:
    assert attention_kernel._backends(kernel, torch.device(device), ragged) == expected


@pytest.mark.parametrize("ragged", [False, True])
def test_on_a_cpu_auto_is_pytorchs_own_choice(ragged: bool) -> None:
    query, key = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 33, 8)
    expected = F.scaled_dot_product_attention(query, key, key)
    assert torch.equal(attend(query, key, key, ragged=ragged), expected)
    with attention_kernel.attention_kernel("math"):
        torch.testing.assert_close(attend(query, key, key, ragged=ragged), expected)


def test_a_kernel_changes_a_picture_by_rounding_only(pipe: ConsiStoryPipeline, subject: AnchorCache) -> None:
    expected = pipe.render(["a cat in space"], subject, [3], output_type="latent").images
    with attention_kernel.attention_kernel("math"):
        found = pipe.render(["a cat in space"], subject, [3], output_type="latent").images
    assert 0 < (found - expected).abs().max() < 1e-3
    assert subject.settings.digest() == pipe.create_subject(ANCHORS, ["cat"], [1, 2], **QUICK).cache.settings.digest()


def test_padding_contributes_nothing() -> None:
    query, key, value = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 33, 8), torch.randn(2, 3, 33, 8)
    expected = attend(query, key, value, ragged=True)
    padding = torch.full((2, 3, 31, 8), 1e4)  # whatever it holds
    key_mask = torch.arange(64) < 33
    longer = torch.cat([key, padding], dim=2), torch.cat([value, padding], dim=2)
    torch.testing.assert_close(attend(query, *longer, ragged=True, key_mask=key_mask), expected)
    with attention_kernel.attention_kernel("math"):
        torch.testing.assert_close(attend(query, *longer, ragged=True, key_mask=key_mask), expected)
    assert (attend(query, *longer, ragged=True) - expected).abs().max() > 1


def test_padded_numbers_are_few_and_not_much_larger() -> None:
    lengths = [padded_length(kept) for kept in range(8193)]
    assert all(length >= kept and length % 64 == 0 for kept, length in enumerate(lengths))
    assert lengths == sorted(lengths) and len(set(lengths)) <= 24
    assert max(length / kept for kept, length in enumerate(lengths) if kept >= 256) <= 1.25


def test_bucketed_lengths_are_few_and_the_picture_is_the_same(
    pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> tuple[torch.Tensor, torch.Tensor, set[tuple[int, int]]]:
        door.calls.clear()
        made = pipe.create_subject(ANCHORS, ["cat"], [1, 2], **QUICK)
        scenes = pipe.render(["a cat in space"], made, [3], output_type="latent").images
        return made.images, scenes, {(own, keys) for ragged, own, keys in door.calls if ragged}

    door = Door()
    monkeypatch.setattr("consistory_ray.consistory.method.attention.attend", door)
    anchors, scenes, exact = made()
    with attention_kernel.shared_lengths("bucketed"):
        same_anchors, same_scenes, bucketed = made()
    assert len(bucketed) < len(exact) / 2 and all((keys - own) % 64 == 0 for own, keys in bucketed)
    torch.testing.assert_close(same_anchors, anchors, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(same_scenes, scenes, atol=1e-3, rtol=1e-3)
    assert not torch.equal(same_scenes, scenes)


@pytest.mark.parametrize("kernel", ["flash3", "sage"])
def test_packages_get_what_they_take(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def heads_last(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, None]:
        seen.append("flash3")
        first = (each.transpose(1, 2) for each in (query, key, value))
        return F.scaled_dot_product_attention(*first).transpose(1, 2), None

    def heads_first(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tensor_layout: str) -> torch.Tensor:
        assert tensor_layout == "HND"
        seen.append("sage")
        return F.scaled_dot_product_attention(query, key, value)

    seen: list[str] = []
    query, key = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 33, 8)
    expected = attend(query, key, key, ragged=True)
    with attention_kernel.attention_kernel(kernel):
        with pytest.raises(InputError, match=PACKAGES[kernel].module):
            check_choices()
        monkeypatch.setitem(sys.modules, "flash_attn_interface", SimpleNamespace(flash_attn_func=heads_last))
        monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=heads_first))
        check_choices()
        assert torch.equal(attend(query, key, key, ragged=True), expected) and seen == [kernel]
        attend(query, key, key, ragged=True, key_mask=torch.arange(33) < 30)
        assert seen == [kernel], "they take no masks"


def test_the_innermost_choice_holds_then_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert chosen_kernel() == "auto"
    monkeypatch.setenv(VARIABLE, "default")
    assert chosen_kernel() == "default"
    with attention_kernel.attention_kernel("math"):
        with attention_kernel.attention_kernel("flash"):
            assert chosen_kernel() == "flash"
        assert chosen_kernel() == "math"
    assert chosen_kernel() == "default"


def test_what_cannot_be_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(1, 1, 4, 8)
    with attention_kernel.attention_kernel("cudnn"), pytest.raises(InputError, match="cudnn for float32 on cpu"):
        attend(query, query, query, ragged=True)
    with pytest.raises(InputError, match="use one of auto, default, flash"), attention_kernel.attention_kernel("fast"):  # type: ignore[arg-type]
        pass
    monkeypatch.setenv(VARIABLE, "Flash")
    with pytest.raises(InputError, match=VARIABLE):
        attend(query, query, query, ragged=False)
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv(LENGTHS_VARIABLE, "padded")
    with pytest.raises(InputError, match="use one of exact, bucketed"):
        check_choices()
    with attention_kernel.attention_kernel("flash"):
        attend(query, query, query, ragged=False)


def test_a_wrong_environment_is_refused_before_anything_is_rendered(
    diffusers_pipe: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "xformers")
    with pytest.raises(InputError, match="xformers"):
        ConsiStoryPipeline(diffusers_pipe)


def test_other_errors_stay_what_they_are() -> None:
    query = torch.randn(1, 1, 4, 8)
    with attention_kernel.attention_kernel("math"), pytest.raises(RuntimeError, match="size"):
        attend(query, torch.randn(1, 1, 4, 9), query, ragged=False)
