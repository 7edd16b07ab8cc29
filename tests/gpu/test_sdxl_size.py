"""Kernels, memory and exactness at SDXL's size with random weights; on a CPU the same checks on a tiny model.

scripts/test -n 0 -m gpu tests/gpu -s     # prints what it measures
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from benchmarks import device_checks as checks
from benchmarks.random_sdxl import SDXL, Topology, random_model
from consistory_ray.settings import MethodSettings

TINY = Topology((16, 32, 64), (1, 1, 2), 1, (1, 1, 1), (32, 32), 8, 8, 16)
SETTINGS = MethodSettings(num_inference_steps=5, query_blend_until=0.2, injection_window=(0.2, 0.4))
BATCH = 8


def topology(device: torch.device) -> Topology:
    return SDXL if device.type == "cuda" else TINY


def half(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def test_which_kernels_run(device: torch.device) -> None:
    pipe = random_model(topology(device), device, half(device))
    cache = checks.subject(pipe, SETTINGS)
    for what, action in (
        ("anchors", lambda: checks.subject(pipe, SETTINGS)),
        ("scenes", lambda: checks.scenes(pipe, cache, 1)),
    ):
        found = checks.kernels(action)
        print(f"\n{what} on {device}: shared {dict(found[True])}, other {dict(found[False])}")
        assert found[True] and found[False]
        if device.type == "cuda":
            assert set(found[True]) == {"flash"}, "no plan is made for each of the many key lengths"
            assert "math" not in found[False], "nothing keeps a fused kernel from being used"
        else:
            assert set(found[True]) == set(found[False]) == {"flash"}


def test_what_the_kernels_cost(device: torch.device) -> None:
    pipe = random_model(topology(device), device, half(device))
    cache = checks.subject(pipe, SETTINGS)
    checks.scenes(pipe, cache, 1)
    choices = ("auto", "default", "flash", "cudnn") if device.type == "cuda" else ("auto", "default", "math")
    found = checks.seconds_by_kernel(pipe, cache, choices, 1)
    print(f"\nseconds of a scene, first and second time, on {device}: {found}")
    assert all(min(times) > 0 for times in found.values())
    if device.type == "cuda":
        assert found["auto"][0] <= 1.1 * found["default"][0], "shared calls are no faster with the flash kernel"


def test_padded_numbers_of_anchors_tokens(device: torch.device) -> None:
    pipe = random_model(topology(device), device, torch.float32)
    cache = checks.subject(pipe, SETTINGS)
    found, chosen = checks.bucketed_difference(pipe, cache, 1)
    times = checks.seconds_by_lengths(pipe, cache, 1)
    print(f"\nbucketed against exact on {device}: {asdict(found)}; kernels {dict(chosen)}; seconds {times}")
    assert 0 < found.rms < 1e-3 and found.flipped < 0.01
    assert device.type != "cuda" or "math" not in chosen, "no fused kernel takes the mask"


def test_compiled_scenes(device: torch.device) -> None:
    torch._dynamo.reset()
    pipe = random_model(topology(device), device, half(device))
    backend = "inductor" if device.type == "cuda" else "eager"
    found = checks.compiled(pipe, checks.subject(pipe, SETTINGS), 1, backend)
    print(f"\ncompiled against eager on {device}: {asdict(found)}")
    assert found.difference.rms < 0.1 and found.difference.flipped < 0.2
    assert 0 < found.graphs <= 24 and found.again == 0 and found.breaks == 0
    if device.type == "cuda":
        assert found.compiled_seconds[-1] <= 1.02 * found.eager_seconds, "compiling does not pay"


@pytest.mark.parametrize("batch", [1, BATCH])
def test_memory_is_what_was_forecast(device: torch.device, batch: int) -> None:
    pipe = random_model(topology(device), device, half(device))
    found = checks.memory(pipe, SETTINGS, batch)
    print(f"\non {device}: {asdict(found)}")
    # a tiny cache is mostly header, which the forecast counts
    assert found.cache == pytest.approx(found.cache_forecast, rel=0.05 if device.type == "cuda" else 0.3)
    if device.type == "cuda":
        assert found.scenes <= found.scenes_forecast, "batches of this size would not fit where they are planned to"
        assert found.scenes >= 0.1 * found.scenes_forecast, "the forecast wastes most of the device"


@pytest.mark.parametrize("dtype", ["float32", "half"])
def test_a_batch_and_single_scenes(device: torch.device, dtype: str) -> None:
    pipe = random_model(topology(device), device, torch.float32 if dtype == "float32" else half(device))
    found = checks.batch_difference(pipe, checks.subject(pipe, SETTINGS), BATCH)
    print(f"\nbatch {BATCH} against 1, {dtype} on {device}: {asdict(found)}")
    assert found.rms < (1e-3 if dtype == "float32" else 0.1)
    assert found.flipped < (0.01 if dtype == "float32" else 0.2)


def test_half_precision_and_float32(device: torch.device) -> None:
    pipe = random_model(topology(device), device, torch.float32)
    found = checks.precision_difference(pipe, SETTINGS, half(device), 2)
    print(f"\n{half(device)} against float32 on {device}: {asdict(found)}")
    assert 0 < found.rms < 0.1 and found.flipped < 0.2


@pytest.mark.parametrize("batch", [1, 2])
def test_a_cache_gives_the_same_scenes_wherever_it_is(device: torch.device, batch: int) -> None:
    pipe = random_model(topology(device), device, half(device))
    found = checks.differences_by_place(pipe, checks.subject(pipe, SETTINGS), batch)
    assert found.keys() == {"device", "ahead", "pageable"}
    assert all(difference.largest == 0 and difference.flipped == 0 for difference in found.values()), found


def test_what_the_place_of_a_cache_costs(device: torch.device) -> None:
    pipe = random_model(topology(device), device, half(device))
    found = checks.seconds_by_place(pipe, checks.subject(pipe, SETTINGS), 1)
    print(f"\nseconds of a scene by the cache's place, first and second time, on {device}: {found}")
    assert all(min(times) > 0 for times in found.values())
    if device.type == "cuda":
        assert found["device"][1] <= 1.05 * found["pageable"][1] and found["ahead"][1] <= 1.05 * found["pageable"][1]


def test_profiles_cost_what_they_should(device: torch.device) -> None:
    pipe = random_model(topology(device), device, half(device))
    settings = SETTINGS.replace(num_inference_steps=25) if device.type == "cuda" else SETTINGS
    found = checks.seconds_by_profile(pipe, settings, 1)
    print(f"\nseconds of a picture on {device}: {found}")
    assert found.keys() == {"vanilla", "exact", "fast", "turbo"}
    if device.type == "cuda":
        assert found["turbo"] < found["fast"] < found["exact"] and found["fast"] < 1.2 * found["vanilla"]


def test_comparisons_are_in_float32_proper() -> None:
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    with checks.exact_arithmetic():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32, "left as found"
    torch.backends.cudnn.allow_tf32 = False
