"""What is measured, on the CPU: kernels, the machine, the output, precision, and pictures within their time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.random_sdxl import TINY
from consistory_ray.doctor import machine, timings
from consistory_ray.doctor.copies import measured_speeds
from consistory_ray.doctor.diagnosis import ANCHORS, VANILLA
from consistory_ray.doctor.examination import Examination, Request
from consistory_ray.doctor.kernels import examined_kernels
from consistory_ray.doctor.models import MeasuredModel
from consistory_ray.doctor.precision import examined_precision
from consistory_ray.doctor.random_models import SDXL_AUTOENCODER, random_model
from consistory_ray.doctor.timings import Stopwatch
from consistory_ray.errors import AssetError
from consistory_ray.settings import PROFILES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> MeasuredModel:
    """The smallest there is."""
    torch.set_num_threads(1)
    pipe = random_model(TINY, CPU, torch.float32)
    return MeasuredModel("random", pipe, "cat", pipe.default_settings.replace(height=128, width=128))


def test_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {(check.call, check.choice): check for check in examined_kernels(CPU, torch.float32)}
    assert {call for call, _ in found} == {"plain", "ragged"}
    for call in ("plain", "ragged"):
        assert found[call, "auto"].kernel == "flash" and found[call, "math"].kernel == "math"
        assert not found[call, "cudnn"].kernel and found[call, "cudnn"].why
        assert all(check.error < 1e-5 and check.ms > 0 for check in found.values() if check.kernel)
    monkeypatch.setenv("CONSISTORY_RAY_ATTENTION_KERNEL", "math")
    assert examined_kernels(CPU, torch.float32, ["auto"])[0].kernel == "math", "what the environment chooses"


def test_the_machine() -> None:
    found = machine.examined_machine()
    assert found.memory > found.memory_free > 0 and found.cpus >= 1
    assert {"python", "torch", "diffusers", "ray"} <= found.versions.keys()
    assert found.temporary.free > 0
    if not torch.version.cuda:
        assert not found.cuda and not found.gpus and not found.cuda_problem


def test_speeds() -> None:
    found = measured_speeds(CPU, torch.float32)
    assert found.matmul_tflops > 0 and found.copies["in memory"] > 0


def test_an_output_is_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    (found,) = machine.of_output(str(tmp_path / "new" / "out"))
    assert found.level == "note" and "GB free" in found.text
    assert not list(tmp_path.iterdir())
    (found,) = machine.of_output("memory://doctor/out")
    assert found.level == "note"


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="root writes everywhere")
def test_an_output_that_cannot_be_written_to() -> None:
    (found,) = machine.of_output("/proc/version/out")
    assert found.level == "wrong" and found.fix


def test_precision_compares_arithmetic_alone(model: MeasuredModel) -> None:
    found = examined_precision(model, torch.bfloat16, 2)
    assert found.finite and 0 < found.vanilla_rms < 0.1 and 0 < found.rms < 0.3
    assert model.pipe.backbone.dtype == torch.float32, "as it was"
    again = examined_precision(model, torch.float32, 2)
    assert again.rms == again.vanilla_rms == again.flipped == 0, "rounding made all of the difference"


def test_numbers_that_are_not_finite_are_told(model: MeasuredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = model.pipe.pipe.unet.conv_out.weight
    before = weight.data.clone()
    weight.data.fill_(torch.nan)
    try:
        found = examined_precision(model, torch.bfloat16, 2)
    finally:
        model.pipe.pipe.unet.conv_out.weight.data.copy_(before)
    assert not found.finite


def test_every_way_is_measured_alone_and_in_batches(model: MeasuredModel) -> None:
    watch = Stopwatch(model, time.perf_counter() + 1000, lambda text: None)
    watch.measure_all(2, (1, 2))
    found = {(timing.way, timing.batch): timing for timing in watch.found}
    assert found.keys() == {(way, batch) for way in timings.WAYS for batch in (1, 2)} | {(ANCHORS, 1)}
    assert all(timing.seconds and timing.memory and timing.full_calls > timing.calls for timing in found.values())
    flops = [found[way, 1].tflops or 0.0 for way in (VANILLA, "fast", "exact")]
    assert 0 < flops[0] < flops[1] < flops[2]
    assert found["exact", 2].tflops == found["exact", 1].tflops
    assert 0 < (watch.mask_share or 0) < 1


def test_what_there_is_no_time_for_is_left_out(model: MeasuredModel) -> None:
    watch = Stopwatch(model, time.perf_counter(), lambda text: None)
    assert watch.chosen_steps() == timings.LEAST_STEPS
    watch.until = time.perf_counter() + 1000
    watch.measure(VANILLA, 1, 2, counted=True)
    watch.until = time.perf_counter() + 0.5 * (watch.found[0].seconds or 0)
    watch.measure(VANILLA, 8, 2)
    assert watch.found[1].seconds is None and watch.found[1].why.startswith("skipped")


@pytest.mark.parametrize(
    "error, batch, why",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "failed: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 4, "out of memory"),
        (AssetError("numbers that are not finite"), 1, "failed: numbers that are not finite"),
    ],
)
def test_pictures_that_fail_are_told(
    model: MeasuredModel, monkeypatch: pytest.MonkeyPatch, error: Exception, batch: int, why: str
) -> None:
    def fails(*args: Any) -> None:
        raise error

    monkeypatch.setattr(MeasuredModel, "pictures", fails)
    watch = Stopwatch(model, time.perf_counter() + 1000, lambda text: None)
    watch.measure(VANILLA, batch, 2)
    assert [(timing.seconds, timing.why) for timing in watch.found] == [(None, why)]


def test_a_part_that_fails_is_a_finding_and_the_rest_goes_on() -> None:
    examination = Examination(Request(), str, CPU, torch.float32)

    def fails() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")

    assert examination._part("attention", fails) is None
    (found,) = examination.findings
    assert found.level == "wrong" and found.text == "CUDA error: an illegal memory access was encountered" and found.fix


def test_a_random_model_may_have_sdxls_own_autoencoder() -> None:
    pipe = random_model(TINY, CPU, torch.bfloat16, SDXL_AUTOENCODER)
    assert sum(weight.numel() for weight in pipe.pipe.vae.parameters()) == pytest.approx(84e6, rel=0.01)
    again = random_model(TINY, CPU, torch.bfloat16)
    for name, weight in pipe.pipe.unet.state_dict().items():
        assert torch.equal(weight, again.pipe.unet.state_dict()[name]), "always the same weights"


def test_the_profiles_are_those_there_are() -> None:
    assert (VANILLA, *PROFILES) == timings.WAYS
