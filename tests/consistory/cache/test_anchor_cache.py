"""What an anchor cache holds, how it is stored, and what it refuses."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import stat
import weakref
from pathlib import Path

import fsspec
import numpy as np
import pytest
import safetensors.torch
import torch

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, SubjectResult, estimate_cache_bytes
from consistory_ray.consistory.cache.recorder import CacheRecorder
from consistory_ray.consistory.method.layout import Layer
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.consistory.models.sdxl_layout import (
    COARSE,
    FINE,
    LEVELS,
    SDXL_UNET_CONFIG,
    expected_layer_names,
    read_layers,
)
from consistory_ray.errors import CacheMismatchError, StorageError
from consistory_ray.settings import MethodSettings
from tests.consistory.late_copies import LateCopies

PROMPTS, STEPS = ["a photo of a cat in the garden", "a cat on the beach"], 10
FORK, LAST = 1, 3  # of the injection, at 10 steps


@pytest.fixture(scope="module")
def subject(pipe: ConsiStoryPipeline) -> SubjectResult:
    return pipe.create_subject(PROMPTS, ["cat"], [1, 2], num_inference_steps=STEPS, output_type="latent")


@pytest.fixture(scope="module")
def cache(subject: SubjectResult) -> AnchorCache:
    return subject.cache


def test_it_knows_where_it_comes_from(cache: AnchorCache, pipe: ConsiStoryPipeline) -> None:
    assert (cache.prompts, cache.concepts, cache.seeds) == (tuple(PROMPTS), ("cat",), (1, 2))
    assert cache.settings == MethodSettings(num_inference_steps=STEPS, height=32, width=32)
    assert (cache.fingerprint, cache.dtype, cache.anchors) == (pipe.fingerprint, "float32", 2)


def test_only_tokens_that_can_be_read_are_kept(cache: AnchorCache, subject: SubjectResult) -> None:
    subject_tokens = int(subject.masks["fine"].sum())
    assert cache.features.shape == (subject_tokens, 32)
    torch.testing.assert_close(cache.features.norm(dim=-1), torch.ones(subject_tokens))
    for step in range(1, STEPS):
        for level, layers, channels in (("coarse", 4, 32), ("fine", 2, 16)):
            shape = cache.shared(Pass(1, step))[level].shape
            assert (shape[0], shape[1], shape[3]) == (layers, 2, channels)
            total = subject.masks[level].numel()
            assert 0 < shape[2] < 0.75 * total, "dropout leaves about half of the subject's tokens"
    for step in range(FORK, LAST + 1):
        assert cache.injected(step).shape == (3, subject_tokens, 16)
    names = set(cache.tensors)
    assert not [name for name in names if name.startswith("pass2.step000")], "before the fork passes are the same"
    assert not any(name.startswith("pass1.step000") for name in names), "nothing is shared at step 0"
    assert {name for name in names if "injected" in name} == {f"pass2.step{s:03d}.injected.fine" for s in (1, 2, 3)}


def test_pass_2_reads_the_first_pass_until_they_part(pipe: ConsiStoryPipeline) -> None:
    cache = pipe.create_subject(PROMPTS, ["cat"], [1, 2], num_inference_steps=20, output_type="latent").cache
    assert cache.shared(Pass(2, 1))["fine"] is cache.shared(Pass(1, 1))["fine"]
    assert cache.shared(Pass(2, 2))["fine"] is not cache.shared(Pass(1, 2))["fine"]
    assert torch.equal(cache.shared(Pass(2, 2))["coarse"], cache.tensors["pass2.step002.shared.coarse"])


def test_masks_are_the_subjects(cache: AnchorCache, subject: SubjectResult) -> None:
    for level, mask in cache.masks().items():
        assert torch.equal(mask, subject.masks[level])


def test_a_file_is_plain_safetensors_with_contiguous_steps(cache: AnchorCache, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "cat.safetensors"
    cache.save(path)
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == cache.tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in cache.tensors.items())
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["settings"])["num_inference_steps"] == STEPS
    by_offset = sorted((name for name in header if name.startswith("pass")), key=lambda n: header[n]["data_offsets"])
    steps = [name.split(".shared")[0].split(".injected")[0] for name in by_offset]
    assert steps == sorted(steps), "each step is one run of bytes, in the order of use"
    assert list(path.parent.iterdir()) == [path], "no temporary file stays behind"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_loading_is_lazy_and_the_same(cache: AnchorCache, tmp_path: Path) -> None:
    path = tmp_path / "cat.safetensors"
    cache.save(str(path))
    loaded = AnchorCache.load(f"file://{path}")
    assert loaded.settings == cache.settings and loaded.seeds == cache.seeds and loaded.nbytes == cache.nbytes
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in cache.tensors.items())
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) in maps.read_text(), "a local file is memory-mapped"


def test_buffers_are_the_files_bytes_and_are_not_copied(cache: AnchorCache, tmp_path: Path) -> None:
    cache.save(tmp_path / "cat.safetensors")
    buffer = cache.to_buffer()
    assert buffer.tobytes() == (tmp_path / "cat.safetensors").read_bytes()
    buffer.flags.writeable = False
    shared = AnchorCache.from_buffer(buffer)
    begin = buffer.__array_interface__["data"][0]
    inside = [begin <= t.data_ptr() < begin + buffer.nbytes for t in shared.tensors.values() if t.numel()]
    assert all(inside)
    assert shared.to_buffer().tobytes() == buffer.tobytes()


def test_a_cache_becomes_its_bytes_and_is_gone(cache: AnchorCache) -> None:
    expected = cache.to_buffer()
    copy = dataclasses.replace(cache, tensors={name: tensor.clone() for name, tensor in cache.tensors.items()})
    watched = [weakref.ref(tensor) for tensor in copy.tensors.values()]
    buffer, digest = copy.into_buffer()
    assert buffer.tobytes() == expected.tobytes() and digest == hashlib.sha256(expected.data).hexdigest()
    assert not copy.tensors and not [reference for reference in watched if reference() is not None]
    mapped = AnchorCache.from_buffer(expected)
    assert mapped.into_buffer()[1] == digest, "a cache on top of other memory can be packed too"


def test_any_fsspec_url(cache: AnchorCache) -> None:
    cache.save("memory://subjects/cat.safetensors")
    loaded = AnchorCache.load("memory://subjects/cat.safetensors")
    assert torch.equal(loaded.features, cache.features)
    fsspec.filesystem("memory").rm("subjects", recursive=True)


def test_bfloat16_survives(cache: AnchorCache, tmp_path: Path) -> None:
    tensors = {k: t.bfloat16() if t.is_floating_point() else t for k, t in cache.tensors.items()}
    halved = AnchorCache(cache.settings, cache.fingerprint, cache.concepts, cache.prompts, None, cache.grids, tensors)
    halved.save(tmp_path / "cat.safetensors")
    loaded = AnchorCache.load(tmp_path / "cat.safetensors")
    assert loaded.dtype == "bfloat16" and loaded.seeds is None
    assert torch.equal(loaded.features, tensors["features.fine"])


def test_a_failed_save_leaves_the_old_file(cache: AnchorCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cat.safetensors"
    path.write_bytes(b"old")

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StorageError, match="disk full"):
        cache.save(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere\.safetensors"):
        AnchorCache.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(StorageError):
        AnchorCache.load("memory://nowhere.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, -1])
def test_truncated_files_are_refused(cache: AnchorCache, kept: float, tmp_path: Path) -> None:
    buffer = cache.to_buffer()
    size = int(kept * len(buffer)) if isinstance(kept, float) else kept
    (tmp_path / "cat.safetensors").write_bytes(buffer[:size].tobytes())
    with pytest.raises(CacheMismatchError, match="not an anchor cache"):
        AnchorCache.load(tmp_path / "cat.safetensors")


def test_other_files_and_versions_are_refused(cache: AnchorCache, tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CacheMismatchError, match="some other safetensors file"):
        AnchorCache.load(tmp_path / "other.safetensors")
    newer = cache.to_buffer().tobytes().replace(b'"format_version":"2"', b'"format_version":"9"')
    with pytest.raises(CacheMismatchError, match="another format version"):
        AnchorCache.from_buffer(np.frombuffer(newer, np.uint8))
    odd = cache.to_buffer().tobytes().replace(b"num_inference_steps", b"num_inference_stepz")
    with pytest.raises(CacheMismatchError, match="metadata cannot be read"):
        AnchorCache.from_buffer(np.frombuffer(odd, np.uint8))


@pytest.mark.parametrize("changes", [{}, {"injection": False}, {"sdsa": False}, {"guidance_scale": 1.0}])
def test_the_estimate_is_that_of_a_real_cache(pipe: ConsiStoryPipeline, changes: dict[str, object]) -> None:
    settings = MethodSettings(num_inference_steps=STEPS, height=64, width=48).replace(**changes)
    subject = pipe.create_subject(PROMPTS, ["cat"], [7, 8], settings=settings, output_type="latent")
    fraction = float(subject.masks["fine"].float().mean())
    config = pipe.pipe.unet.config
    estimate = estimate_cache_bytes(config, settings, 2, fraction, dtype="float32", vae_scale_factor=2)
    assert estimate == pytest.approx(subject.cache.to_buffer().nbytes, rel=0.15)  # masks vary over the steps


def test_full_size_sdxl_fits_its_budget() -> None:
    estimate = estimate_cache_bytes(SDXL_UNET_CONFIG, MethodSettings(), anchors=2, mask_fraction=0.25, dtype="float16")
    assert 5.2e9 < estimate <= 5.6e9
    assert estimate_cache_bytes(SDXL_UNET_CONFIG, MethodSettings(injection=False)) < 0.6 * estimate


LAYERS = read_layers(expected_layer_names(SDXL_UNET_CONFIG), 3)
SHARED = [layer for layer in LAYERS if layer.shared_slot is not None]
INJECTED = [layer for layer in LAYERS if layer.injected_slot is not None]


def number(layer: Layer) -> torch.Tensor:
    return torch.full((2, 3, 4), float(LAYERS.index(layer)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_steps_are_the_same_as_small_ones(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [layer for layer in SHARED if layer.level == FINE]
    parts = [torch.randn(2, 3, 4).to(dtype).transpose(0, 1).contiguous().transpose(0, 1) for _ in layers]
    filed = []
    for own_pages in (1 << 20, 1):
        monkeypatch.setattr("consistory_ray.consistory.cache.recorder._OWN_PAGES", own_pages)
        recorder = CacheRecorder(LEVELS)
        for layer, part in zip(layers, parts, strict=True):
            recorder.add_shared(layer, part)
        recorder.end_step(Pass(1, 1))
        filed.append(recorder.tensors["pass1.step001.shared.fine"])
    assert torch.equal(*filed) and filed[1].is_contiguous() and filed[0].dtype == filed[1].dtype == dtype


def test_steps_without_tokens_are_kept_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistory_ray.consistory.cache.recorder._OWN_PAGES", 1)
    recorder = CacheRecorder(LEVELS)
    for layer in SHARED:
        recorder.add_shared(layer, torch.empty(2, 0, 4))
    recorder.end_step(Pass(1, 1))
    assert recorder.tensors["pass1.step001.shared.fine"].shape[1:] == (2, 0, 4)


@pytest.mark.parametrize("backwards", [False, True])
def test_layers_are_filed_by_their_slots_in_whatever_order_they_run(backwards: bool) -> None:
    recorder = CacheRecorder(LEVELS)
    for step in (1, 2):
        for layer in SHARED[::-1] if backwards else SHARED:
            recorder.add_shared(layer, number(layer))
        for layer in INJECTED[::-1] if backwards else INJECTED:
            recorder.add_injected(layer, number(layer)[0])
        recorder.end_step(Pass(2, step))
    tensors = recorder.finish({COARSE: torch.ones(2, 4) > 0, FINE: torch.ones(2, 4) > 0}, None)
    for layer in SHARED:
        filed = tensors[f"pass2.step002.shared.{layer.level}"]
        assert layer.shared_slot is not None and torch.equal(filed[layer.shared_slot], number(layer))
    for layer in INJECTED:
        filed = tensors["pass2.step002.injected.fine"]
        assert layer.injected_slot is not None and torch.equal(filed[layer.injected_slot], number(layer)[0])
    assert not recorder.tensors, "what was handed over is not held any longer"


def test_a_layer_that_is_missing_or_comes_twice_is_an_error() -> None:
    recorder = CacheRecorder(LEVELS)
    for layer in SHARED:
        recorder.add_shared(layer, number(layer))
    with pytest.raises(RuntimeError, match="twice"):
        recorder.add_shared(SHARED[0], number(SHARED[0]))
    with pytest.raises(RuntimeError, match="no slot"):
        recorder.add_injected(next(layer for layer in LAYERS if layer.name.startswith("mid_block")), torch.zeros(3, 4))
    recorder.end_step(Pass(1, 1))
    for layer in SHARED[1:]:
        recorder.add_shared(layer, number(layer))
    with pytest.raises(RuntimeError, match="step 2"):
        recorder.end_step(Pass(1, 2))


def test_a_recorded_cache_is_freed_with_its_last_reference(pipe: ConsiStoryPipeline) -> None:
    gc.disable()  # nothing may depend on the collector: caches have gigabytes
    try:
        made = pipe.create_subject(PROMPTS, ["cat"], [1, 2], num_inference_steps=4, output_type="latent")
        watched = [weakref.ref(tensor) for tensor in made.cache.tensors.values()]
        del made
        assert not [reference for reference in watched if reference() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("injected", [True, False])
def test_steps_that_leave_a_device_late_are_filed_as_if_it_were_the_host(injected: bool) -> None:
    files = []
    for copies in (None, LateCopies()):
        recorder = CacheRecorder(LEVELS, copies=copies)
        for step in range(1, 7):
            for layer in SHARED if step % 3 else ():
                recorder.add_shared(layer, number(layer) + step)
            for layer in INJECTED if injected and step > 3 else ():
                recorder.add_injected(layer, number(layer)[0] - step)
            for level in LEVELS.names if step % 3 else ():
                recorder.add_positions(level, [torch.arange(step), torch.arange(2)], 9)
            recorder.end_step(Pass(1, step))
            if copies is not None and step == 5:
                assert len(recorder.tensors) < 20 and not any("step005" in name for name in recorder.tensors)
        recorder.add_features(Pass(1, 2), torch.ones(3, 4))
        files.append(recorder.finish({COARSE: torch.ones(2, 4) > 0, FINE: torch.ones(2, 4) > 0}, None))
    host, late = files
    assert list(host) == list(late), "in the same order, so that the files are the same bytes"
    assert all(torch.equal(late[name], tensor) and late[name].dtype == tensor.dtype for name, tensor in host.items())


def test_nobody_waits_for_the_last_steps_to_leave_a_device() -> None:
    copies = LateCopies()
    recorder = CacheRecorder(LEVELS, copies=copies)
    for step in range(1, 6):
        for layer in SHARED:
            recorder.add_shared(layer, number(layer))
        recorder.end_step(Pass(1, step))
    assert copies.log == [
        *(("begun", step) for step in (1, 2)),
        *(pair for step in (3, 4, 5) for pair in (("begun", step), ("left", step - 2))),
    ]
