"""Caches on their way to a device and on it: what is there when, in which order it comes, and what stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline
from consistory_ray.consistory.cache.codecs import CODECS
from consistory_ray.consistory.cache.residence import PlacedCache
from consistory_ray.consistory.method.exchange import SceneSharing
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.settings import MethodSettings
from tests.consistory.late_copies import LateCopies

ANCHORS, SCENES = ["a photo of a cat in the garden", "a cat on the beach"], ["a cat in space", "a cat with a hat"]
STEPS = 12
CPU = torch.device("cpu")
WAYS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "lookahead": {"first_pass": "lookahead", "reuse_deep": (0.5, 2), "shared_every": 2},
    "live": {"first_pass": "live", "shared_every": 2, "scene_blending": False},
    "guided at first": {"guidance_interval": (0, 0.5)},
    "one pass": {"injection": False},
}


@pytest.fixture(scope="module")
def caches(pipe: ConsiStoryPipeline) -> dict[str, AnchorCache]:
    """By the way in which scenes are made of them."""
    settings = MethodSettings(num_inference_steps=STEPS, height=32, width=32)
    return {
        name: pipe.create_subject(
            ANCHORS, ["cat"], [1, 2], settings=settings.replace(**way), output_type="latent"
        ).cache
        for name, way in WAYS.items()
    }


def render(pipe: ConsiStoryPipeline, cache: AnchorCache | PlacedCache, **options: Any) -> Tensor:
    images: Tensor = pipe.render(SCENES, cache, [3, 4], output_type="latent", **options).images
    return images


def bytes_read(cache: AnchorCache) -> int:
    """Of everything that scenes read, with what it takes to align it: all but masks and positions."""
    sizes = [
        tensor.numel() * tensor.element_size()
        for name, tensor in cache.tensors.items()
        if "positions" not in name and "mask" not in name
    ]
    return sum(-(-size // 64) * 64 for size in sizes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_pictures_are_the_same_wherever_the_cache_is(
    way: str, share: float, pipe: ConsiStoryPipeline, caches: dict[str, AnchorCache]
) -> None:
    cache, copies = caches[way], LateCopies()
    placed = PlacedCache(cache, CPU, int(share * bytes_read(cache)), copies)
    expected = render(pipe, cache)
    assert torch.equal(render(pipe, placed, batch_size=1)[0], render(pipe, cache, batch_size=1)[0])
    first = copies.uploaded
    assert torch.equal(render(pipe, placed), expected)
    assert copies.uploaded - first <= (0 if share == 1 else first), "what is there is not brought again"
    assert 0.6 * placed._room <= placed.resident_bytes <= placed._room
    placed.limit(0)
    assert placed.resident_bytes == 0 and copies.on_device == 0, "nothing of it is left on the device"


def test_a_step_is_on_its_way_while_the_one_before_it_is_computed(
    pipe: ConsiStoryPipeline, caches: dict[str, AnchorCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, attend = LateCopies(), SceneSharing.__call__

    def attended(self: SceneSharing, *arguments: Any) -> Tensor:
        copies.log.append(("computed", None))
        return attend(self, *arguments)

    monkeypatch.setattr(SceneSharing, "__call__", attended)
    render(
        pipe, PlacedCache(caches["exact"], CPU, 0, copies), progress=lambda done, of: copies.log.append(("end", done))
    )
    begun = {event: place for place, (what, event) in enumerate(copies.log) if what == "begun"}
    arrived = {event: place for place, (what, event) in enumerate(copies.log) if what == "arrived"}
    assert begun.keys() == arrived.keys(), "nothing is brought in vain"
    late = [event for event in begun if ("computed", None) not in copies.log[begun[event] : arrived[event]]]
    assert len(late) == 2, "the very first step, and the features of the DIFT step, which nobody computes beside"
    for event in begun.keys() - late:
        between = copies.log[begun[event] : arrived[event]]
        steps = [what for what, _ in between if what in ("computed", "end")]
        assert steps[0] == "computed" and steps.count("end") == 1, (
            "begun before a step is computed, waited for after it"
        )


@pytest.mark.parametrize("way", WAYS)
def test_a_device_never_holds_more_than_the_steps_at_hand(
    way: str, pipe: ConsiStoryPipeline, caches: dict[str, AnchorCache]
) -> None:
    most, copies = 0, LateCopies()

    def look(done: int, of: int) -> None:
        nonlocal most
        most = max(most, copies.on_device)

    placed = PlacedCache(caches[way], CPU, 0, copies)
    render(pipe, placed, progress=look)
    assert 2 <= most <= (6 if way == "live" else 5), (
        "shared and injected tensors of this step and the next one, and features"
    )
    assert copies.on_device == 0, "the next batch of another subject finds the device empty"


def test_what_stays_is_what_came_first(caches: dict[str, AnchorCache], pipe: ConsiStoryPipeline) -> None:
    copies = LateCopies()
    placed = PlacedCache(caches["exact"], CPU, bytes_read(caches["exact"]) // 2, copies)
    render(pipe, placed)
    before, uploaded = placed.resident_bytes, copies.uploaded
    render(pipe, placed)
    assert copies.uploaded - uploaded == uploaded - before, "a cache that does not fit is not driven out by itself"
    placed.limit(before // 2)
    assert 0 < placed.resident_bytes <= before // 2


class Halved:
    """A codec that keeps half precision, and counts where it is asked to unpack."""

    name = "halved"

    def __init__(self) -> None:
        self.unpacked: list[str] = []

    def pack(self, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        return {f"{name}.half": tensor.half()}

    def unpack(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        self.unpacked.append(name)
        return tensors[f"{name}.half"].float()


def test_packed_tensors_travel_and_are_unpacked_once_where_they_are_used(
    pipe: ConsiStoryPipeline, caches: dict[str, AnchorCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, copies = Halved(), LateCopies()
    monkeypatch.setitem(CODECS, codec.name, codec)
    tensors: dict[str, Tensor] = {}
    for name, tensor in caches["lookahead"].tensors.items():
        tensors |= codec.pack(name, tensor) if "shared." in name or "injected." in name else {name: tensor}
    cache = dataclasses.replace(caches["lookahead"], tensors=tensors, codec=codec.name)
    placed = PlacedCache(cache, CPU, 10**9, copies)
    render(pipe, placed)
    assert copies.uploaded == placed.resident_bytes <= bytes_read(cache) < 0.6 * bytes_read(caches["lookahead"])
    first, second = codec.unpacked, list[str]()
    codec.unpacked = second
    assert torch.equal(render(pipe, placed), render(pipe, cache))
    runs = [name for name, before in zip(second, ["", *second], strict=False) if name == before]
    assert first and not runs, "two steps that share the same tokens unpack them once"


def test_a_cache_that_is_there_is_not_copied(pipe: ConsiStoryPipeline, caches: dict[str, AnchorCache]) -> None:
    placed = PlacedCache(caches["exact"], CPU)
    render(pipe, placed)
    assert placed.resident_bytes == 0
    assert placed.shared(Pass(1, 1))["fine"] is placed.cache.tensors["pass1.step001.shared.fine"]
