"""What packed tensors lose: bounds for any numbers, what outliers cost, and that scenes and joined caches read them."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline
from consistory_ray.consistory.cache.codec_sizes import INT4_GROUP, INT8_GROUP, packed_bytes
from consistory_ray.consistory.cache.codecs import CODECS
from consistory_ray.consistory.cache.joining import joined
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.errors import CacheMismatchError
from consistory_ray.guards.choices import CacheCodec
from consistory_ray.settings import MethodSettings

PACKING = ("int8", "fp8", "int4")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GROUPS = {"int8": INT8_GROUP, "int4": INT4_GROUP}
STEPS_EACH_WAY = {"int8": 127, "int4": 7}
PROMPTS, SCENES = ["a photo of a cat in the garden", "a cat on the beach"], ["a cat in the snow", "a cat at night"]


def there_and_back(codec: str, tensor: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    packed = dict(CODECS[codec].pack("a.b", tensor))
    return CODECS[codec].unpack("a.b", packed), packed


def largest(tensor: Tensor, size: int) -> Tensor:
    """Of each group of channels, at each of them, in float64."""
    parts = [part.abs().amax(-1, keepdim=True).expand_as(part) for part in torch.split(tensor.double(), size, -1)]
    return torch.cat(parts, -1)


def bound(codec: str, tensor: Tensor) -> Tensor:
    """The largest error that each number may have: half a step, or a sixteenth; and what rounding adds."""
    precision = torch.finfo(tensor.dtype)
    if codec == "fp8":
        least = largest(tensor, tensor.shape[-1]) / 448 * 2**-10  # half of the smallest float8
        error = torch.maximum(tensor.double().abs() / 16, least)
    else:
        error = largest(tensor, GROUPS[codec]) / (2 * STEPS_EACH_WAY[codec])
    smallest = precision.smallest_normal * precision.eps * 448
    return error * (1 + 2 * precision.eps) + precision.eps * tensor.double().abs() + smallest


SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 2), st.integers(0, 5), st.sampled_from([1, 2, 31, 33, 64, 96, 131])
)


@given(
    st.sampled_from(PACKING), st.sampled_from(DTYPES), SHAPES, st.integers(0, 2**32 - 1), st.floats(1e-6, 100),
    st.sampled_from(["normal", "zeros", "constant", "large tokens", "large channels"]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_number_is_further_off_than_its_bound(
    codec: str, dtype: torch.dtype, shape: tuple[int, ...], seed: int, size: float, kind: str
) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size
    tensor = tensor * (kind != "zeros") if kind != "constant" else torch.full(shape, -size)
    if kind == "large tokens":
        tensor[:, :, ::3] *= 50
    if kind == "large channels":
        tensor[..., ::17] *= 50
    tensor = tensor.to(dtype).transpose(0, 2).contiguous().transpose(0, 2)
    before = tensor.clone()
    found, packed = there_and_back(codec, tensor)
    assert found.shape == tensor.shape and found.dtype == dtype and torch.equal(tensor, before)
    assert ((found.double() - tensor.double()).abs() <= bound(codec, tensor)).all()
    assert kind != "zeros" or not found.any()
    numbers = {name: part.view(torch.uint8) if part.itemsize == 1 else part for name, part in packed.items()}
    kept = {name: part.clone() for name, part in numbers.items()}
    CODECS[codec].unpack("a.b", packed)
    assert all(torch.equal(kept[name], numbers[name]) for name in packed), "unpacking does not write"
    layers, halves, tokens, channels = shape
    count = packed_bytes(codec, channels, dtype.itemsize) * layers * halves * tokens  # type: ignore[arg-type]
    assert sum(part.nbytes for part in packed.values()) == count
    assert all(name.startswith("a.b.") for name in packed)


@pytest.mark.parametrize("codec", PACKING)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_range(codec: str, dtype: torch.dtype) -> None:
    precision = torch.finfo(dtype)
    ends = torch.tensor([precision.max, -precision.max, 1.0] * 11)
    small = torch.full((33,), precision.smallest_normal)
    tensor = torch.stack([ends, small, torch.zeros(33)]).to(dtype)[None]
    found, _ = there_and_back(codec, tensor)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[0, 0, :2].float(), ends[:2], rtol=2 * precision.eps, atol=0)
    assert ((found.double() - tensor.double()).abs() <= bound(codec, tensor)).all()
    assert (found[0, 1] != 0).all(), "scales do not vanish"


@pytest.mark.parametrize("codec", PACKING)
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_not_finite_is_not_finite_again_and_only_there(codec: str, odd: float) -> None:
    tensor = torch.randn(2, 3, 70, generator=torch.Generator().manual_seed(0)).half()
    tensor[1, 2, 5] = odd
    found, _ = there_and_back(codec, tensor)
    assert not torch.isfinite(found[1, 2, 5])
    assert torch.isfinite(found[0]).all() and torch.isfinite(found[1, :2]).all()


def kept_db(found: Tensor, tensor: Tensor) -> float:
    return float(10 * torch.log10(tensor.double().square().sum() / (found - tensor).double().square().sum()))


@pytest.mark.parametrize(("codec", "plain", "beside_channels"), [("int8", 44, 21), ("fp8", 31, 31), ("int4", 20, 6)])
def test_outliers_cost_their_neighbours_at_most_so_much(codec: str, plain: float, beside_channels: float) -> None:
    """One channel in a hundred is 50 times the others, and one token in forty 80 times; what is left of the others."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2, 2, 128, 1280, generator=generator)
    large = torch.zeros(1280, dtype=torch.bool)
    large[torch.randperm(1280, generator=generator)[:13]] = True
    channels = torch.where(large, normal * 50, normal).half()
    tokens = normal.clone()
    tokens[:, :, ::40] *= 80
    small = torch.ones(128, dtype=torch.bool)
    small[::40] = False
    assert kept_db(there_and_back(codec, normal.half())[0].float(), normal) > plain
    found, _ = there_and_back(codec, channels)
    assert kept_db(found[..., ~large].float(), normal[..., ~large]) > beside_channels
    assert kept_db(found[..., large].float(), normal[..., large] * 50) > plain
    found, _ = there_and_back(codec, tokens.half())
    assert kept_db(found[:, :, small].float(), normal[:, :, small]) > plain, "tokens do not touch each other"


def test_narrow_groups_are_what_saves_the_channels_beside_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(2, 128, 1280, generator=generator)
    large = torch.zeros(1280, dtype=torch.bool)
    large[torch.randperm(1280, generator=generator)[:13]] = True
    tensor[..., large] *= 50
    kept = []
    for size in (64, 128, 1280):
        monkeypatch.setattr("consistory_ray.consistory.cache.codecs.INT8_GROUP", size)
        kept.append(kept_db(there_and_back("int8", tensor)[0][..., ~large], tensor[..., ~large]))
    assert all(more > less + 2 for more, less in pairwise(kept))


@pytest.mark.parametrize("codec", PACKING)
@pytest.mark.parametrize("channels", [33, 96])
def test_tokens_of_several_can_be_packed_apart_or_together(codec: str, channels: int) -> None:
    one, other = torch.randn(3, 2, 4, channels), torch.randn(3, 2, 5, channels) * 100
    apart = [CODECS[codec].pack("a", part) for part in (one, other)]
    together = CODECS[codec].pack("a", torch.cat([one, other], 2))
    for name, part in together.items():
        tokens = torch.cat([each[name] for each in apart], 2)
        assert tokens.shape == part.shape and tokens.float().equal(part.float())


def test_the_codecs_are_those_that_settings_name() -> None:
    assert tuple(CODECS) == get_args(CacheCodec) and all(codec.name == name for name, codec in CODECS.items())


# In caches ------------------------------------------------------------------------------------------------------------


def made(pipe: ConsiStoryPipeline, concept: str = "cat", codec: CacheCodec = "none") -> AnchorCache:
    prompts = [prompt.replace("cat", concept) for prompt in PROMPTS]
    settings = MethodSettings(num_inference_steps=6, cache_codec=codec)
    return pipe.create_subject(prompts, concept, [1, 2], settings=settings, output_type="latent").cache


def packed(cache: AnchorCache, codec: CacheCodec, dtype: torch.dtype = torch.float32) -> AnchorCache:
    tensors: dict[str, Tensor] = {}
    for name, tensor in cache.tensors.items():
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        is_packed = ".shared." in name or ".injected." in name
        tensors |= CODECS[codec].pack(name, tensor) if is_packed else {name: tensor}
    return dataclasses.replace(cache, tensors=tensors, codec=codec)


@pytest.fixture(scope="module")
def plain(pipe: ConsiStoryPipeline) -> AnchorCache:
    return made(pipe)


@pytest.fixture(scope="module")
def dog(pipe: ConsiStoryPipeline) -> AnchorCache:
    return made(pipe, "dog")


def test_anchors_are_packed_as_they_are_recorded(pipe: ConsiStoryPipeline, plain: AnchorCache) -> None:
    cache, expected = made(pipe, codec="int8"), packed(plain, "int8")
    assert (cache.codec, cache.dtype, cache.settings.cache_codec) == ("int8", "float32", "int8")
    assert list(cache.tensors) == list(expected.tensors)
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in cache.tensors.items())


@pytest.mark.parametrize(("codec", "error"), [("int8", 0.003), ("fp8", 0.02), ("int4", 0.05)])
def test_scenes_are_nearly_the_same(
    pipe: ConsiStoryPipeline, plain: AnchorCache, codec: CacheCodec, error: float
) -> None:
    cache = AnchorCache.from_buffer(packed(plain, codec).to_buffer())
    assert cache.codec == codec and cache.dtype == "float32" and cache.nbytes < plain.nbytes / 2
    expected = pipe.render(SCENES[:1], plain, [3], output_type="latent").images
    found = pipe.render(SCENES[:1], cache, [3], output_type="latent").images
    assert 0 < (found - expected).square().mean().sqrt() < error


@pytest.mark.parametrize("codec", PACKING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_packed_cache_knows_its_models_dtype(plain: AnchorCache, codec: CacheCodec, dtype: torch.dtype) -> None:
    halved = packed(plain, codec, dtype)
    plain_features = dataclasses.replace(
        halved, tensors={name: part for name, part in halved.tensors.items() if ".shared." in name}
    )
    for cache in (halved, plain_features):
        assert f"torch.{AnchorCache.from_buffer(cache.to_buffer()).dtype}" == str(dtype)
        assert cache.shared(Pass(1, 2))["fine"].dtype == dtype


@pytest.mark.parametrize("codec", PACKING)
def test_packed_caches_are_joined(plain: AnchorCache, dog: AnchorCache, codec: CacheCodec) -> None:
    cat, dog = packed(plain, codec), packed(dog, codec)
    both = AnchorCache.from_buffer(joined([cat, dog]).to_buffer())
    assert both.nbytes == cat.nbytes + dog.nbytes and both.codec == codec
    for at in (Pass(1, 1), Pass(2, 3)):
        parts = [cache.shared(at)["coarse"] for cache in (cat, dog)]
        assert torch.equal(both.shared(at)["coarse"], torch.cat(parts, 2))
    assert torch.equal(both.injected(1), torch.cat([cat.injected(1), dog.injected(1)], 1))
    with pytest.raises(CacheMismatchError) as caught:
        joined([dog, plain])
    assert [problem.path for problem in caught.value.problems] == ["caches[1].codec"]


def test_a_codec_that_is_not_known_is_refused(plain: AnchorCache) -> None:
    newer = plain.to_buffer().tobytes().replace(b'"codec":"none"', b'"codec":"int2"')
    with pytest.raises(CacheMismatchError, match="packed in another way"):
        AnchorCache.from_buffer(np.frombuffer(newer, np.uint8))
