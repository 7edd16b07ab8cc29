"""What is found wrong, what is not, and that everything wrong comes with a fix."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from consistory_ray.doctor import verdicts
from consistory_ray.doctor.diagnosis import (
    Diagnosis,
    Finding,
    Gpu,
    KernelCheck,
    Machine,
    Place,
    PrecisionCheck,
    Speeds,
    Timing,
)

GPU = Gpu("NVIDIA H100", 80_000_000_000, 79_000_000_000, "9.0", 132)
MACHINE = Machine(
    system="Linux 6.1",
    cpus=16,
    memory=128_000_000_000,
    memory_free=100_000_000_000,
    versions={"torch": "2.13.0"},
    cuda="13.0",
    cudnn="91600",
    driver="580.65",
    cuda_problem="",
    gpus=(GPU,),
    shared_memory=Place("/dev/shm", 64_000_000_000, 64_000_000_000),
    temporary=Place("/tmp", 500_000_000_000, 100_000_000_000),
)
GOOD = PrecisionCheck("float16", 3, 0.004, 0.05, 0.01, finite=True, vanilla_rms=0.001)


def machine(**changes: Any) -> Machine:
    return dataclasses.replace(MACHINE, **changes)


def levels(findings: list[Finding]) -> list[str]:
    assert all(finding.fix for finding in findings if finding.level != "note"), "nobody is left alone with it"
    return [finding.level for finding in findings]


@pytest.mark.parametrize(
    "changes, device, expected",
    [
        ({}, "auto", []),
        ({"gpus": (), "cuda_problem": "the driver is too old"}, "auto", ["wrong"]),
        ({"gpus": ()}, "cuda", ["wrong"]),
        ({"gpus": ()}, "cpu", []),
        ({"gpus": (), "cuda": "", "driver": ""}, "auto", []),
        ({"gpus": (), "cuda": ""}, "auto", ["wrong"]),
        ({"gpus": (GPU, dataclasses.replace(GPU, problem="no kernel image"))}, "auto", ["wrong"]),
        ({"gpus": (dataclasses.replace(GPU, free=10_000_000_000),)}, "auto", ["warning"]),
    ],
)
def test_devices(changes: dict[str, Any], device: str, expected: list[str]) -> None:
    assert levels(verdicts.of_devices(machine(**changes), device)) == expected


def test_the_drivers_own_words_are_told() -> None:
    (found,) = verdicts.of_devices(machine(gpus=(), cuda_problem="the driver is too old (12020)"), "auto")
    assert "13.0" in found.text and "580.65" in found.text and "(12020)" in found.text


def test_a_model_has_to_fit() -> None:
    assert not verdicts.of_memory(7, 7, "a model")
    assert levels(verdicts.of_memory(8, 7, "a model")) == ["wrong"]


def test_every_call_needs_a_kernel_that_is_right() -> None:
    def found(*checks: KernelCheck, device: str = "cuda") -> list[str]:
        return levels(verdicts.of_kernels(checks, device, "float16"))

    good = KernelCheck("plain", "auto", "cudnn", error=1e-3)
    assert found(good, KernelCheck("plain", "flash", "", why="sm70")) == []
    assert found(KernelCheck("ragged", "auto", "", why="nothing")) == ["wrong"]
    assert found(dataclasses.replace(good, kernel="math")) == ["warning"]
    assert found(dataclasses.replace(good, kernel="math"), device="cpu") == []
    assert found(dataclasses.replace(good, error=float("nan"))) == ["wrong"]
    assert found(dataclasses.replace(good, error=0.5)) == ["wrong"]
    assert found(good, KernelCheck("plain", "cudnn", "cudnn", error=0.5)) == ["warning"], "auto does not take it"


@pytest.mark.parametrize("changes", [{"finite": False}, {"rms": 0.2}, {"rms": float("nan")}, {"flipped": 0.5}])
def test_half_precision_is_wrong_where_it_is_used(changes: dict[str, Any]) -> None:
    assert not verdicts.of_precision(GOOD, "float16")
    bad = dataclasses.replace(GOOD, **changes)
    assert levels(verdicts.of_precision(bad, "float16")) == ["wrong"]
    assert levels(verdicts.of_precision(bad, "float32")) == ["note"]


def test_bfloat16_rounds_more() -> None:
    found = dataclasses.replace(GOOD, dtype="bfloat16", rms=0.2)
    assert not verdicts.of_precision(found, "bfloat16")


def test_slow_copies() -> None:
    assert not verdicts.of_speeds(Speeds(700.0, {"pinned to device": 50.0}))
    assert not verdicts.of_speeds(Speeds(0.1, {"in memory": 1.0}))
    assert levels(verdicts.of_speeds(Speeds(700.0, {"pinned to device": 2.5}))) == ["warning"]


def test_pictures() -> None:
    def timing(way: str, batch: int, seconds: float | None, why: str = "") -> Timing:
        return Timing(way, batch, 10, 10.0, 50.0, seconds, why=why)

    assert levels(verdicts.of_timings([timing("exact", 1, None, "failed: out of memory")])) == ["wrong"]
    assert levels(verdicts.of_timings([timing("exact", 8, None, "skipped: it would take 60 s")])) == ["note"]
    assert levels(verdicts.of_batches([timing("exact", 8, None, "out of memory")])) == ["note"]
    assert not verdicts.of_batches([timing("vanilla", 1, 1.0), timing("vanilla", 8, 0.8)])
    assert levels(verdicts.of_batches([timing("vanilla", 1, 1.0), timing("vanilla", 8, 1.5)])) == ["note"]


def test_room_for_the_object_store_and_its_files() -> None:
    small = machine(shared_memory=Place("/dev/shm", 64_000_000, 64_000_000))
    assert not verdicts.of_disks(MACHINE, 5_500_000_000, "random")
    (found,) = verdicts.of_disks(small, 5_500_000_000, "random")
    assert found.level == "warning" and "14.7 GB" in found.text and "--shm-size" in found.fix
    assert not verdicts.of_disks(small, 30_000_000, "miniature")
    full = machine(temporary=Place("/tmp", 500_000_000_000, 1_000_000))
    assert levels(verdicts.of_disks(full, 0, "random")) == ["warning"]


def test_only_what_is_wrong_makes_a_machine_unwell() -> None:
    told = Diagnosis("miniature", "cpu", "float32", MACHINE)
    assert told.is_well
    assert dataclasses.replace(told, findings=(Finding("warning", "disk", "full", "make room"),)).is_well
    assert not dataclasses.replace(told, findings=(Finding("wrong", "CUDA", "none", "install it"),)).is_well
