"""The cost benchmark: its bars on a small topology, and that leaving out the computation changes no count."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.cost import main, rendered_flops
from benchmarks.hollow_tensors import HollowExecution, count_flops, hollow, hollow_out, is_hollow
from benchmarks.random_sdxl import QUICK, Topology, build_pipeline, build_unet
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.settings import MethodSettings

TINY = Topology((16, 32, 64), (1, 1, 2), 1, (1, 1, 1), (32, 32), 8, 8, 16)
SHALLOW = dataclasses.replace(QUICK, layers_per_block=1, transformer_layers=(1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("topology", [SHALLOW, pytest.param(QUICK, marks=pytest.mark.full)], ids=["shallow", "quick"])
def test_quick_run_prints_every_key_and_holds_the_bars(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.cost.QUICK", topology)
    result = main(["--quick", "--out", str(tmp_path)])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored = json.loads((tmp_path / "cost.json").read_text())
    assert stored.pop("stamp")["model_fingerprint"] and stored == printed

    profiles = result.pop("profiles")
    assert printed.pop("profiles").keys() == profiles.keys()
    assert printed == pytest.approx(result, abs=1e-4)
    assert 1.5 < printed["scene_flops_ratio"] <= 2.05
    assert printed["scene_flops_ratio"] < printed["scene_flops_ratio_strict"] <= 2.1
    assert 1.5 < printed["anchors_flops_ratio"] <= 2.1
    assert printed["led_flops_ratio"] > 1.2
    assert printed["naive_flops_ratio"] > printed["scene_flops_ratio"] + 0.2
    assert printed["wall_ratio"] > 1
    assert printed["scene_decodes"] == 1
    assert printed["sdxl_cache_gb"] == pytest.approx(printed["sdxl_cache_estimate_gb"], rel=0.05)
    for profile in profiles.values():  # rounded to four digits
        assert profile["cache_gb"] == pytest.approx(profile["cache_estimate_gb"], rel=0.05, abs=1e-4)


def test_the_bytes_of_every_profile_at_full_size(capsys: pytest.CaptureFixture[str]) -> None:
    result = main(["--bytes"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    sizes = {name: profile["cache_estimate_gb"] for name, profile in result["profiles"].items()}
    assert sizes["turbo"] < sizes["fast"] <= 1.2 < sizes["exact"] == result["profiles"]["exact"]["codecs_gb"]["none"]


def test_hollow_execution_counts_what_real_execution_counts() -> None:
    torch.manual_seed(0)
    settings = MethodSettings(num_inference_steps=4)
    unet = build_unet(TINY).to(torch.bfloat16)
    real = ConsiStoryPipeline(build_pipeline(TINY, unet, torch.bfloat16))
    *expected, cache = rendered_flops(real, settings, hollow=False)

    hollow_out(unet, torch.bfloat16)
    *counted, hollow_cache = rendered_flops(real, settings)

    assert counted == expected
    assert min(expected) > 0
    assert {name: tensor.shape for name, tensor in hollow_cache.tensors.items()} == {
        name: tensor.shape for name, tensor in cache.tensors.items()
    }


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
def test_attention_on_the_cpu_is_counted(inference: type[torch.no_grad]) -> None:
    query, key = torch.zeros(2, 3, 50, 16), torch.zeros(2, 3, 70, 16)
    with inference(), count_flops() as counter:
        F.scaled_dot_product_attention(query, key, key)

    assert counter.get_total_flops() == 2 * 2 * (2 * 3) * 50 * 70 * 16  # two matrix products


def test_hollow_tensors_keep_shapes_that_depend_on_real_masks() -> None:
    mask = torch.tensor([True, False, True, True])
    with HollowExecution():
        tokens = hollow((2, 4, 8), torch.float16)
        kept = (tokens * 2 + 1)[:, mask]
        index = torch.cat([kept, kept], dim=1).argmax(dim=1)

    assert is_hollow(kept)
    assert (kept.shape, kept.dtype) == ((2, 3, 8), torch.float16)
    assert not is_hollow(index)
    assert index.shape == (2, 8)
