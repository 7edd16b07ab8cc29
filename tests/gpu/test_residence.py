"""A cache on its way to a device, on it, and in between: the same pictures, no memory left behind, copies beside."""

from __future__ import annotations

import pytest
import torch

from benchmarks import device_checks as checks
from benchmarks.random_sdxl import SDXL, random_model
from consistory_ray.consistory.cache.residence import PlacedCache
from consistory_ray.doctor.meters import seconds_for
from tests.gpu.test_sdxl_size import SETTINGS, TINY, half

BATCH = 2


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_pictures_and_memory_with_the_cache_on_its_way_and_on_the_device(codec: str, device: torch.device) -> None:
    pipe = random_model(SDXL if device.type == "cuda" else TINY, device, half(device))
    cache = checks.subject(pipe, SETTINGS.replace(cache_codec=codec))
    assert cache.device.type == "cpu", "anchors leave the device"
    there = cache.to(device)
    expected = checks.scenes(pipe, there, BATCH).images
    seconds = {"there": seconds_for(lambda there=there: checks.scenes(pipe, there, BATCH), device)}
    del there
    for name, room in (("on its way", 0), ("half of it", cache.nbytes // 2), ("all of it", 2 * cache.nbytes)):
        before, placed = allocated(device), PlacedCache(cache, device, room)
        for _ in range(2):
            assert torch.equal(checks.scenes(pipe, placed, BATCH).images, expected), name
        seconds[name] = seconds_for(lambda placed=placed: checks.scenes(pipe, placed, BATCH), device)
        if device.type == "cuda":
            assert (placed.resident_bytes > 0) == (room > 0)
            assert abs(allocated(device) - before - placed.resident_bytes) < 64 << 20, "nothing else is left there"
            placed.limit(0)
            assert abs(allocated(device) - before) < 64 << 20
    print(f"\ncache of {cache.nbytes / 1e6:.0f} MB ({codec}) on {device}, seconds of {BATCH} scenes: {seconds}")
    if device.type == "cuda":
        assert seconds["on its way"] <= 1.15 * seconds["there"], "copies do not run beside the computation"


def test_anchors_of_a_device_leave_the_same_bytes_each_time(device: torch.device) -> None:
    pipe = random_model(SDXL if device.type == "cuda" else TINY, device, half(device))
    first, second = (checks.subject(pipe, SETTINGS.replace(cache_codec="int8")) for _ in range(2))
    assert all(torch.equal(second.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert list(first.tensors) == list(second.tensors)
